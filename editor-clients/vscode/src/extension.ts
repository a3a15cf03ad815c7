/** The extension: asleep until the document is found or a command is used. Here its parts are put together. */

import * as vscode from 'vscode';
import { Answers, canGoOn } from './answers';
import { Citations } from './citations';
import { commands } from './commands';
import { Daemon } from './daemon';
import { DocumentWatch } from './document';
import { PopUps } from './popups';
import { StatusItems } from './status';
import { AnswersView } from './view';

/** What tests may see. */
export interface Api {
  answers: Answers;
  citations: Citations;
  daemon: Daemon;
  items: StatusItems;
}

let running: Daemon | undefined;

export function activate(context: vscode.ExtensionContext): Api {
  const { id } = context.extension;
  const { version } = context.extension.packageJSON as { version: string };
  const log = vscode.window.createOutputChannel('cag-daemon', { log: true });
  const run = (name: string, ...given: unknown[]): unknown => all[name]?.(...given);
  const popUps = new PopUps(run);
  const daemon = new Daemon(log, popUps);
  const answers = new Answers(daemon);
  const citations = new Citations(daemon);
  const items = new StatusItems(daemon, popUps);
  const setContext = contexts();
  const all = commands({ answers, citations, daemon, log, popUps, view: () => view, id, version, setContext });
  const view = new AnswersView(context.extensionUri, answers, daemon, run);
  const watch = new DocumentWatch(() => {
    if (!daemon.running && daemon.problem === undefined) {
      daemon.start().catch(() => undefined); // said already
    }
  });

  for (const name of Object.keys(all)) {
    context.subscriptions.push(vscode.commands.registerCommand(`cagDaemon.${name}`, (...given: unknown[]) => run(name, ...given)));
  }
  const tell = () => {
    setContext('answering', answers.underWay && answers.all.some(({ state }) => state === 'waiting' || state === 'answering'));
    setContext('asked', answers.all.length > 0);
    setContext('cut', answers.all.some(canGoOn));
    setContext(
      'earlierOffered',
      answers.all.some(({ earlierOffered }) => earlierOffered),
    );
    setContext('running', daemon.running);
    setContext('hasDocument', daemon.status !== undefined && daemon.status.state !== 'noDocument');
  };
  // The log at the end: what ends before it may still write there.
  context.subscriptions.push(answers.onChange(tell), daemon.onStatus(tell), answers, citations, items, view, watch, daemon, log);
  running = daemon;
  void watch.look();
  return { answers, citations, daemon, items };
}

/** The window closes, or the extension is switched off: the daemon ends, and that is waited for. */
export function deactivate(): Promise<void> | undefined {
  return running?.stop();
}

/** What decides which commands can be used, told to VS Code where it has changed. */
function contexts(): (name: string, value: boolean) => void {
  const told = new Map<string, boolean>();
  return (name, value) => {
    if (told.get(name) !== value) {
      told.set(name, value);
      void vscode.commands.executeCommand('setContext', `cagDaemon.${name}`, value);
    }
  };
}
