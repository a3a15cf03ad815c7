/** The daemon's state where it is seen: the language status item, one status bar entry, and a message when it fails. */

import * as vscode from 'vscode';
import type { Daemon } from './daemon';
import { remedy, type Remedy } from './errors';
import type { PopUps } from './popups';
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

/** The state in the words that are shown. */
export interface Seen {
  state: Status['state'];
  text: string;
  message: string;
  remedy?: Remedy | undefined;
}

/** What is to be seen of a daemon; undefined: it is asleep. */
export function seen({ status, starting, problem }: Daemon): Seen | undefined {
  if (status) {
    return { state: status.state, text: status.short, message: status.message, remedy: remedy(status.reason) };
  }
  if (starting) {
    return { state: 'starting', text: 'starting', message: 'The daemon is starting.' };
  }
  return problem && { state: 'failed', text: 'not running', message: problem.message, remedy: remedy(problem.reason) };
}

export class StatusItems implements vscode.Disposable {
  /** Public for tests: what the user reads. */
  readonly entry = vscode.window.createStatusBarItem('cagDaemon.status', vscode.StatusBarAlignment.Right, 100);
  readonly language = vscode.languages.createLanguageStatusItem('cagDaemon.status', [{ scheme: 'file' }, { scheme: 'untitled' }]);

  private readonly listener: vscode.Disposable;

  constructor(
    private readonly daemon: Daemon,
    private readonly popUps: PopUps,
  ) {
    this.entry.name = this.language.name = 'cag-daemon';
    this.entry.command = 'cagDaemon.menu';
    this.listener = daemon.onStatus(() => this.show());
    this.show();
  }

  dispose(): void {
    this.listener.dispose();
    this.entry.dispose();
    this.language.dispose();
  }

  private show(): void {
    const { status } = this.daemon;
    const what = seen(this.daemon);
    this.showLanguage(what);
    if (!what) {
      this.entry.hide();
      return;
    }
    const { state, text, message } = what;
    this.entry.text = `${ICONS[state]} ${text}`;
    this.entry.tooltip = tooltip(what, status);
    this.entry.accessibilityInformation = { label: `cag-daemon: ${text}. ${message}` };
    this.entry.backgroundColor = state === 'failed' ? new vscode.ThemeColor('statusBarItem.errorBackground') : undefined;
    this.entry.show();
    if (status) {
      this.popUp(status);
    }
  }

  private showLanguage(what: Seen | undefined): void {
    const {
      state,
      text,
      message,
      remedy: helps,
    } = what ?? {
      state: 'noDocument',
      text: 'cag-daemon is asleep',
      message: 'It wakes when the document is there, or with the first question.',
    };
    this.language.text = what ? `$(book) ${text}` : text;
    this.language.detail = message;
    this.language.severity = state === 'failed' ? vscode.LanguageStatusSeverity.Error : vscode.LanguageStatusSeverity.Information;
    this.language.busy = state === 'starting' || state === 'loading' || state === 'reading';
    const { command, title } = helps ?? { command: 'menu', title: 'Actions' };
    this.language.command = { command: `cagDaemon.${command}`, title };
  }

  /** A failure pops up once, and again only after things were well in between. */
  private popUp({ state, reason, message }: Status): void {
    if (state === 'ready' || state === 'noDocument') {
      this.popUps.forget('status');
    } else if (state === 'failed' && reason !== 'documentEmpty') {
      // A document that is empty is one that is being begun.
      const first = remedy(reason);
      const others = [
        { command: 'refresh', title: 'Try Again' },
        { command: 'showLog', title: 'Show Log' },
      ];
      this.popUps.once('error', `status ${reason ?? message}`, message, [...(first ? [first] : []), ...others]);
    }
  }
}

function tooltip({ message, remedy: helps }: Seen, status: Status | undefined): vscode.MarkdownString {
  const text = new vscode.MarkdownString('', true);
  text.appendMarkdown(plain(message));
  if (helps) {
    text.isTrusted = { enabledCommands: [`cagDaemon.${helps.command}`] };
    text.appendMarkdown(`\n\n[${plain(helps.title)}](command:cagDaemon.${helps.command})`);
  }
  if (status?.model) {
    const { name, device, dtype } = status.model;
    text.appendMarkdown(`\n\n${plain(`${name} on ${device}, ${dtype}`)}`);
  }
  if (status?.unloadsInSeconds !== undefined && status.unloadsInSeconds > 0) {
    // The time of day: nobody tells anew how many minutes are left.
    const at = new Date(Date.now() + status.unloadsInSeconds * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
    text.appendMarkdown(`\n\nThe model leaves memory at ${plain(at)} if nothing is asked before.`);
  }
  return text;
}

/** Text as Markdown that means just that. Not `appendText`: its spaces do not wrap. */
function plain(text: string): string {
  return text.replace(/[\\`*_{}[\]()#+\-.!<>|~$]/g, '\\$&');
}
