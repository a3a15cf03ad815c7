/** The daemon's state where it is seen: the language status item, one status bar entry, and a message when it fails. */

import * as vscode from 'vscode';
import type { Daemon } from './daemon';
import { remedy } from './shown';
import type { Status } from './protocol';

const ICONS: Record<Status['state'], string> = {
  starting: '$(loading~spin)',
  noDocument: '$(book)',
  loading: '$(loading~spin)',
  reading: '$(loading~spin)',
  ready: '$(book)',
  answering: '$(comment)',
  unloaded: '$(circle-slash)',
  failed: '$(error)',
};

export class StatusItems implements vscode.Disposable {
  /** Public for tests: what the user reads. */
  readonly entry = vscode.window.createStatusBarItem('cagDaemon.status', vscode.StatusBarAlignment.Right, 100);
  readonly language = vscode.languages.createLanguageStatusItem('cagDaemon.status', [{ scheme: 'file' }, { scheme: 'untitled' }]);

  private readonly listener: vscode.Disposable;
  private failure = '';

  constructor(
    private readonly daemon: Daemon,
    private readonly help: (command: string) => void,
  ) {
    this.entry.name = this.language.name = 'cag-daemon';
    this.entry.command = 'cagDaemon.menu';
    this.language.command = { command: 'cagDaemon.showLog', title: 'Show Log' };
    this.listener = daemon.onStatus(() => this.show());
    this.show();
  }

  dispose(): void {
    this.listener.dispose();
    this.entry.dispose();
    this.language.dispose();
  }

  private show(): void {
    const { status, problem } = this.daemon;
    if (!status && problem === undefined) {
      this.entry.hide();
      this.language.text = 'cag-daemon is asleep';
      this.language.detail = 'It wakes when the document is there, or with the first question.';
      this.language.severity = vscode.LanguageStatusSeverity.Information;
      this.language.busy = false;
      return;
    }
    const state = status?.state ?? 'failed';
    const text = status?.short ?? 'not running';
    const message = status?.message ?? problem ?? '';
    this.entry.text = `${ICONS[state]} ${text}`;
    this.entry.tooltip = tooltip(message, status);
    this.entry.accessibilityInformation = { label: `cag-daemon: ${text}. ${message}` };
    this.entry.backgroundColor = state === 'failed' ? new vscode.ThemeColor('statusBarItem.errorBackground') : undefined;
    this.entry.show();
    this.language.text = `$(book) ${text}`;
    this.language.detail = message;
    this.language.severity = state === 'failed' ? vscode.LanguageStatusSeverity.Error : vscode.LanguageStatusSeverity.Information;
    this.language.busy = state === 'starting' || state === 'loading' || state === 'reading';
    if (status) {
      this.popUp(status);
    }
  }

  /** A failure pops up once, and again only after things were well in between. */
  private popUp(status: Status): void {
    if (status.state === 'ready' || status.state === 'noDocument') {
      this.failure = '';
    } else if (status.state === 'failed' && status.message !== this.failure) {
      this.failure = status.message;
      const action = remedy(status.reason);
      const titles = [...(action ? [action.title] : []), 'Try Again', 'Show Log'];
      void vscode.window.showErrorMessage(status.message, ...titles).then((chosen) => {
        if (chosen === 'Show Log') {
          this.help('showLog');
        } else if (chosen === 'Try Again') {
          this.help('refresh');
        } else if (chosen !== undefined && action) {
          this.help(action.command);
        }
      });
    }
  }
}

function tooltip(message: string, status: Status | undefined): vscode.MarkdownString {
  const text = new vscode.MarkdownString('', true);
  text.appendMarkdown(plain(message));
  if (status?.model) {
    const { name, device, dtype } = status.model;
    text.appendMarkdown(`\n\n${plain(`${name} on ${device}, ${dtype}`)}`);
  }
  if (status?.unloadsInSeconds !== undefined && status.unloadsInSeconds > 0) {
    text.appendMarkdown(`\n\nThe model leaves memory in ${Math.ceil(status.unloadsInSeconds / 60)} min without a question.`);
  }
  return text;
}

/** Text as Markdown that means just that. Not `appendText`: its spaces do not wrap. */
function plain(text: string): string {
  return text.replace(/[\\`*_{}[\]()#+\-.!<>|~$]/g, '\\$&');
}
