/** The extension: asleep until the document is found or a command is used. Each command is a few lines; the work is elsewhere. */

import * as path from 'node:path';
import * as vscode from 'vscode';
import { Answers, canGoOn, type Answer, type AskOptions } from './answers';
import { Citations } from './citations';
import { Daemon } from './daemon';
import { DocumentWatch, documentUris, existingDocument, folders, settingFor } from './document';
import { METHOD, type RefreshResult, type Selection } from './protocol';
import { answerReport, debugInformation } from './report';
import { SECTION, documentSetting, openSettings } from './settings';
import { StatusItems } from './status';
import { AnswersView } from './view';

/** What tests may see. */
export interface Api {
  answers: Answers;
  citations: Citations;
  daemon: Daemon;
  items: StatusItems;
}

export function activate(context: vscode.ExtensionContext): Api {
  const { version } = context.extension.packageJSON as { version: string };
  const log = vscode.window.createOutputChannel('cag-daemon', { log: true });
  const daemon = new Daemon(log);
  const answers = new Answers(daemon);
  const citations = new Citations(daemon);
  const items = new StatusItems(daemon, (name) => void run(name));
  const view = new AnswersView(context.extensionUri, answers, daemon, {
    ask: (question) => void ask(question),
    cite: (id, citation) => void cite(answers.find(id), citation),
    command: (name, id) => void run(name, id),
  });
  const watch = new DocumentWatch(() => {
    if (!daemon.running && daemon.problem === undefined) {
      daemon.start().catch(() => undefined); // said already
    }
  });

  async function ask(question: string, options: AskOptions = {}): Promise<Answer> {
    await view.show();
    return answers.ask(question, { about: currentFile(), ...options });
  }

  async function cite(answer: Answer | undefined, index: number): Promise<boolean> {
    const { result } = answer ?? {};
    const citation = result?.citations[index];
    if (!result || !citation) {
      return false;
    }
    void setContext('cited', true);
    return tryTo(() => citations.show(result, citation), false);
  }

  /** Do what fails with a sentence for the user. */
  async function tryTo<T>(work: () => Promise<T>, otherwise: T): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      log.error(message);
      if (message !== daemon.problem) {
        void vscode.window.showErrorMessage(message);
      }
      return otherwise;
    }
  }

  /** The answer that a command is about: the one named, or the last that it can be done with. */
  function about(id: unknown, can: (answer: Answer) => boolean = () => true): Answer | undefined {
    return typeof id === 'string' ? answers.find(id) : answers.all.filter(can).at(-1);
  }

  const commands: Record<string, (...given: unknown[]) => unknown> = {
    ask: async (question) => {
      const words = typeof question === 'string' ? question : await askFor('What do you want to know?');
      return words && ask(words);
    },

    askSelection: async (question) => {
      const selection = selected();
      if (!selection) {
        return vscode.window.showInformationMessage('Select some text first, then ask about it.');
      }
      const words = typeof question === 'string' ? question : await askFor('What do you want to know about the selection?');
      return words && ask(words, { selection });
    },

    stop: (id) => answers.stop(typeof id === 'string' ? id : undefined),

    askAgain: (id) => {
      const answer = about(id);
      return answer && answers.again(answer);
    },

    answerFromEarlier: (id) => {
      const answer = about(id, (each) => each.earlierOffered === true);
      return answer && answers.fromEarlier(answer);
    },

    goOn: (id) => {
      const answer = about(id, canGoOn);
      return answer && answers.goOn(answer);
    },

    copyAnswer: (id) => vscode.env.clipboard.writeText(about(id)?.text ?? ''),

    copyReport: async (id) => {
      const answer = about(id);
      if (answer) {
        await vscode.env.clipboard.writeText(answerReport(answer, daemon, version));
        void vscode.window.setStatusBarMessage('Copied. Paste it where you report the bug.', 4000);
      }
    },

    clear: () => answers.clear(),

    useAsDocument: async (given) => {
      const uri = given instanceof vscode.Uri ? given : await chooseFile();
      if (uri) {
        // The daemon follows the setting by itself; where none runs yet, `watch` starts it.
        await vscode.workspace.getConfiguration(SECTION).update('document', settingFor(uri), vscode.ConfigurationTarget.Workspace);
      }
    },

    openDocument: async () => {
      const uri = (await existingDocument()) ?? documentUris()[0];
      if (!uri || !(await existingDocument())) {
        const missing = `There is no ${documentSetting()} in this workspace.`;
        if (await vscode.window.showInformationMessage(missing, 'Choose a File')) {
          await run('useAsDocument');
        }
        return;
      }
      await vscode.window.showTextDocument(uri);
    },

    refresh: () =>
      tryTo(async () => {
        const { tokens } = await vscode.window.withProgress(
          { location: vscode.ProgressLocation.Notification, title: 'Reading the document', cancellable: true },
          async (progress, token) => {
            const listener = daemon.onStatus((status) => progress.report({ message: status?.short ?? '' }));
            try {
              return await daemon.request<RefreshResult>(METHOD.refresh, { ...(currentFile() && { document: currentFile() }) }, token);
            } finally {
              listener.dispose();
            }
          },
        );
        const kept = tokens.total ? Math.floor((100 * tokens.kept) / tokens.total) : 100;
        const cost = tokens.computed ? `kept ${kept} %, read ${tokens.computed.toLocaleString('en-US')} tokens` : 'nothing had changed';
        void vscode.window.setStatusBarMessage(`The document is read: ${cost}.`, 6000);
      }, undefined),

    unload: () => tryTo(() => daemon.request(METHOD.unload), undefined),
    restart: () => daemon.restart(),
    showLog: () => log.show(),
    walkthrough: () => vscode.commands.executeCommand('workbench.action.openWalkthrough', `${context.extension.id}#start`),
    modelSettings: () => openSettings(`${SECTION}.model`),

    debugInformation: async () => {
      const content = await vscode.window.withProgress({ location: vscode.ProgressLocation.Window, title: 'Looking at the set-up' }, () =>
        debugInformation(daemon, version),
      );
      await vscode.window.showTextDocument(await vscode.workspace.openTextDocument({ content, language: 'markdown' }));
    },

    menu: () => menu(daemon, run),
  };

  function run(name: string, ...given: unknown[]): unknown {
    return commands[name]?.(...given);
  }

  for (const name of Object.keys(commands)) {
    context.subscriptions.push(vscode.commands.registerCommand(`cagDaemon.${name}`, (...given: unknown[]) => run(name, ...given)));
  }
  context.subscriptions.push(log, daemon, answers, citations, items, view, watch);
  context.subscriptions.push(
    answers.onChange(() => tellContext(answers)),
    daemon.onStatus((status) => {
      void setContext('running', daemon.running);
      void setContext('hasDocument', status !== undefined && status.state !== 'noDocument');
    }),
  );
  void watch.look();
  return { answers, citations, daemon, items };
}

function setContext(name: string, value: boolean): Thenable<unknown> {
  return vscode.commands.executeCommand('setContext', `cagDaemon.${name}`, value);
}

/** What decides which commands can be used. */
function tellContext(answers: Answers): void {
  void setContext('answering', answers.underWay && answers.all.some((each) => each.state === 'waiting' || each.state === 'answering'));
  void setContext('asked', answers.all.length > 0);
  void setContext('cut', answers.all.some(canGoOn));
  void setContext(
    'earlierOffered',
    answers.all.some((each) => each.earlierOffered === true),
  );
}

async function askFor(prompt: string): Promise<string | undefined> {
  const words = await vscode.window.showInputBox({ prompt, placeHolder: 'A question about the document', ignoreFocusOut: true });
  return words?.trim() ? words : undefined;
}

/** The file in the editor, where it is in a workspace folder: it chooses the document. */
function currentFile(): string | undefined {
  const uri = vscode.window.activeTextEditor?.document.uri;
  return uri?.scheme === 'file' && vscode.workspace.getWorkspaceFolder(uri) ? uri.toString() : undefined;
}

function selected(): Selection | undefined {
  const editor = vscode.window.activeTextEditor;
  if (!editor || editor.selection.isEmpty) {
    return undefined;
  }
  const { start, end } = editor.selection;
  return {
    uri: editor.document.uri.toString(),
    range: { start: { line: start.line, character: start.character }, end: { line: end.line, character: end.character } },
    text: editor.document.getText(editor.selection),
  };
}

async function chooseFile(): Promise<vscode.Uri | undefined> {
  const [folder] = folders();
  const chosen = await vscode.window.showOpenDialog({
    openLabel: 'Use as the Document',
    canSelectMany: false,
    ...(folder && { defaultUri: folder.uri }),
    filters: { Text: ['txt', 'md', 'markdown', 'rst', 'adoc', 'org', 'tex'], 'All files': ['*'] },
  });
  return chosen?.[0];
}

async function menu({ status, problem }: Daemon, run: (name: string) => unknown): Promise<void> {
  const item = (name: string, label: string, detail = '') => ({ name, label, ...(detail && { detail }) });
  const document = path.basename(documentSetting());
  const items = [
    item('ask', '$(comment) Ask the document…'),
    item('openDocument', `$(book) Open ${document}`),
    item('refresh', '$(refresh) Read it now', 'Otherwise it is read when the setting cag.refresh says so'),
    item('unload', '$(circle-slash) Unload the model', 'The next question brings it back'),
    item('modelSettings', '$(settings-gear) Choose a model'),
    item('restart', '$(debug-restart) Restart the daemon'),
    item('showLog', '$(output) Show log'),
    item('debugInformation', '$(info) Debug information'),
  ];
  const message = status?.message ?? problem ?? 'The daemon is not running.';
  const chosen = await vscode.window.showQuickPick(items, { title: 'cag-daemon', placeHolder: message });
  if (chosen) {
    await run(chosen.name);
  }
}
