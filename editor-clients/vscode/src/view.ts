/** The side view: the session's answers, and a place to type the next question. */

import * as crypto from 'node:crypto';
import * as vscode from 'vscode';
import type { Answers } from './answers';
import type { Daemon } from './daemon';
import { currentFile } from './inputs';
import type { FromPage, ToPage } from './page/messages';
import { shown } from './shown';

export const VIEW = 'cagDaemon.answers';

export class AnswersView implements vscode.WebviewViewProvider, vscode.Disposable {
  private view: vscode.WebviewView | undefined;
  private ready = false;
  /** What is typed and not asked yet. Here, and not in the page's own state, which VS Code keeps on disk. */
  private draft = '';
  private readonly listeners: vscode.Disposable[];

  constructor(
    private readonly extension: vscode.Uri,
    private readonly answers: Answers,
    private readonly daemon: Daemon,
    /** A command of this extension's, by the name after `cagDaemon.`. */
    private readonly run: (command: string, ...given: unknown[]) => unknown,
  ) {
    this.listeners = [
      vscode.window.registerWebviewViewProvider(VIEW, this),
      answers.onChange((answer) => {
        if (answer) {
          this.tell({ type: 'one', answer: shown(answer) });
        } else {
          this.tellAll();
        }
      }),
      daemon.onStatus(() => this.tellState()),
    ];
  }

  /** Bring the view to the front, without taking the cursor out of the editor. */
  async show(): Promise<void> {
    if (this.view) {
      this.view.show(true);
    } else {
      await vscode.commands.executeCommand(`${VIEW}.focus`, { preserveFocus: true });
    }
  }

  resolveWebviewView(view: vscode.WebviewView): void {
    this.view = view;
    this.ready = false;
    const roots = ['dist', 'media'].map((folder) => vscode.Uri.joinPath(this.extension, folder));
    view.webview.options = { enableScripts: true, localResourceRoots: roots };
    view.webview.onDidReceiveMessage((message: FromPage) => this.receive(message));
    view.onDidDispose(() => {
      if (this.view === view) {
        this.view = undefined;
      }
    });
    view.webview.html = this.html(view.webview);
  }

  dispose(): void {
    for (const each of this.listeners) {
      each.dispose();
    }
  }

  private receive(message: FromPage): void {
    switch (message.type) {
      case 'ready':
        // Also after the view was hidden: a hidden page is thrown away.
        this.ready = true;
        this.tell({ type: 'draft', draft: this.draft });
        this.tellAll();
        this.tellState();
        break;
      case 'draft':
        this.draft = message.draft;
        this.answers.typing(message.draft, { about: currentFile() });
        break;
      case 'ask':
        void this.run('ask', message.question);
        break;
      case 'cite':
        void this.run('cite', message.id, message.citation);
        break;
      case 'command':
        void this.run(message.command, message.id);
        break;
    }
  }

  private tellAll(): void {
    this.tell({ type: 'all', answers: this.answers.all.map(shown) });
  }

  private tellState(): void {
    const { status, starting, problem } = this.daemon;
    const otherwise = starting ? 'starting' : problem ? 'cag-daemon does not run' : '';
    this.tell({ type: 'state', state: status?.short ?? otherwise });
  }

  private tell(message: ToPage): void {
    if (this.ready && this.view) {
      void this.view.webview.postMessage(message);
    }
  }

  private html(webview: vscode.Webview): string {
    const nonce = crypto.randomBytes(16).toString('base64');
    const uri = (...parts: string[]) => webview.asWebviewUri(vscode.Uri.joinPath(this.extension, ...parts)).toString();
    return `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src ${webview.cspSource}; script-src 'nonce-${nonce}'">
    <link rel="stylesheet" href="${uri('media', 'answers.css')}">
    <title>Answers</title>
  </head>
  <body class="empty">
    <p id="hint">Ask below, with <kbd id="key">Ctrl+K Q</kbd>, or select some text first to ask about it. Answers come from the document as it stands, unsaved changes included.</p>
    <main id="answers" role="log" aria-live="polite" aria-label="Answers" tabindex="0"></main>
    <div id="gap"></div>
    <form id="form">
      <textarea id="question" rows="1" aria-label="Question" placeholder="Ask the document" title="Enter asks, Shift+Enter begins a new line"></textarea>
      <p id="state" role="status"></p>
    </form>
    <script nonce="${nonce}" src="${uri('dist', 'page.js')}"></script>
  </body>
</html>`;
  }
}
