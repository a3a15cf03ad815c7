/** Each command, in a few lines: what it asks for, and who does the work. */

import * as vscode from 'vscode';
import { canGoOn, type Answer, type Answers, type AskOptions } from './answers';
import type { Citations } from './citations';
import { fittingCommand, type Daemon } from './daemon';
import { documentUris, existingDocument, useAsDocument } from './document';
import { failure } from './errors';
import { installCommand } from './find';
import { host } from './host';
import { activeFile, askFor, chooseFile, currentFile, selected } from './inputs';
import { menu } from './menu';
import type { PopUps } from './popups';
import { METHOD, type RefreshResult, type Selection } from './protocol';
import { answerReport, debugInformation } from './report';
import { SECTION, documentSetting, openSettings } from './settings';
import type { AnswersView } from './view';

/** Whom the commands set to work. */
export interface Workers {
  answers: Answers;
  citations: Citations;
  daemon: Daemon;
  log: vscode.LogOutputChannel;
  popUps: PopUps;
  view: () => AnswersView;
  /** Of this extension: its id and its version. */
  id: string;
  version: string;
  setContext: (name: string, value: boolean) => void;
}

/** Commands by the name after `cagDaemon.`. */
export type Commands = Record<string, (...given: unknown[]) => unknown>;

export function commands({ answers, citations, daemon, log, popUps, view, id: extension, version, setContext }: Workers): Commands {
  const run = (name: string, ...given: unknown[]): unknown => all[name]?.(...given);

  async function ask(question: string, options: AskOptions = {}): Promise<Answer> {
    await view().show();
    return answers.ask(question, { about: currentFile(), ...options });
  }

  /** What is told with each key of a question. */
  function typing(selection?: Selection): (words: string) => void {
    const about = currentFile();
    return (words) => answers.typing(words, { selection, about });
  }

  /** Do what fails with a sentence for the user. */
  async function tryTo<T>(work: () => Thenable<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      const problem = failure(error);
      // One that there is no daemon has popped up by itself.
      if (problem && error !== daemon.problem) {
        log.error(problem.message);
        void vscode.window.showErrorMessage(problem.message);
      }
      return undefined;
    }
  }

  /** The answer that a command is about, if it can be done with it: the one named, or the last. */
  function about(id: unknown, can: (answer: Answer) => boolean = () => true): Answer | undefined {
    const able = answers.all.filter(can);
    return typeof id === 'string' ? able.find((answer) => answer.id === id) : able.at(-1);
  }

  function choose(uri: vscode.Uri | undefined): Promise<void> {
    return tryTo(async () => {
      // The daemon follows the setting by itself; where none runs yet, it is started when the document is found.
      if (uri && !(await useAsDocument(uri))) {
        const name = vscode.workspace.asRelativePath(uri);
        const chosen = await vscode.window.showInformationMessage(
          `${name} is the document once you trust this folder; until then its settings do not count.`,
          'Manage Trust',
        );
        if (chosen) {
          await vscode.commands.executeCommand('workbench.trust.manage');
        }
      }
    });
  }

  const all: Commands = {
    ask: async (question) => {
      const words = typeof question === 'string' ? question : await askFor('What do you want to know?', typing());
      return words && ask(words);
    },

    askSelection: async (question) => {
      const selection = selected();
      if (!selection) {
        return vscode.window.showInformationMessage('Select some text first, then ask about it.');
      }
      const words =
        typeof question === 'string' ? question : await askFor('What do you want to know about the selection?', typing(selection));
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

    copyAnswer: async (id) => {
      const answer = about(id, ({ text }) => text !== '');
      if (answer) {
        await vscode.env.clipboard.writeText(answer.text);
        void vscode.window.setStatusBarMessage('The answer is copied.', 3000);
      }
    },

    copyReport: async (id) => {
      const answer = about(id);
      if (answer) {
        await vscode.env.clipboard.writeText(answerReport(answer, daemon, version));
        void vscode.window.setStatusBarMessage('Copied. Paste it where you report the bug.', 4000);
      }
    },

    cite: async (id, index) => {
      const { result } = about(id) ?? {};
      const citation = typeof index === 'number' ? result?.citations[index] : undefined;
      if (result && citation) {
        setContext('cited', true);
        await tryTo(() => citations.show(result, citation));
      }
    },

    clear: () => answers.clear(),

    useAsDocument: async (given) => choose(given instanceof vscode.Uri ? given : (activeFile() ?? (await chooseFile()))),
    chooseDocument: async () => choose(await chooseFile()),

    openDocument: async () => {
      const uri = await existingDocument();
      if (uri) {
        await tryTo(() => vscode.window.showTextDocument(uri));
        return;
      }
      const missing =
        documentUris().length > 0
          ? `There is no ${documentSetting()} in this workspace.`
          : 'No folder is open that the document could be in.';
      if (await vscode.window.showInformationMessage(missing, 'Choose a File')) {
        await run('chooseDocument');
      }
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
      }),

    unload: () =>
      daemon.running
        ? tryTo(() => daemon.request(METHOD.unload))
        : vscode.window.setStatusBarMessage('The daemon is not running: there is nothing to unload.', 4000),

    restart: () => {
      // Who asks for it wants to hear how it goes.
      popUps.forget('daemon');
      return daemon.restart();
    },

    showLog: () => log.show(),
    walkthrough: () => vscode.commands.executeCommand('workbench.action.openWalkthrough', `${extension}#start`),
    modelSettings: () => openSettings(`${SECTION}.model`),
    executableSetting: () => openSettings(`${SECTION}.executable`),
    copyInstallCommand: () => vscode.env.clipboard.writeText(installCommand(host())),
    copyUpgradeCommand: () => vscode.env.clipboard.writeText(fittingCommand(daemon)),

    debugInformation: async () => {
      const content = await vscode.window.withProgress({ location: vscode.ProgressLocation.Window, title: 'Looking at the set-up' }, () =>
        debugInformation(daemon, version),
      );
      await vscode.window.showTextDocument(await vscode.workspace.openTextDocument({ content, language: 'markdown' }));
    },

    menu: () => menu(daemon, run),
  };
  return all;
}
