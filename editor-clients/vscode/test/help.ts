/** What the cases share: the extension's own objects, the files, waiting, and what was popped up. */

import * as assert from 'node:assert/strict';
import * as fs from 'node:fs';
import * as path from 'node:path';
import * as vscode from 'vscode';
import type { Answer } from '../src/answers';
import type { Api } from '../src/extension';
import type { Status } from '../src/protocol';

export type Case = [name: string, body: () => Promise<void>];

export function env(name: string): string {
  const value = process.env[name];
  assert.ok(value, `${name} is not set`);
  return value;
}

export function extension(): vscode.Extension<Api> {
  const found = vscode.extensions.getExtension<Api>('cag-daemon.cag-daemon');
  assert.ok(found, 'the extension is not there');
  return found;
}

export function api(): Api {
  return extension().exports;
}

export function folder(): string {
  const [first] = vscode.workspace.workspaceFolders ?? [];
  assert.ok(first);
  return first.uri.fsPath;
}

export function file(name: string): string {
  return path.join(folder(), name);
}

export const EXAMPLE = () => fs.readFileSync(env('TEST_EXAMPLE'), 'utf8');

export async function until<T>(what: string, condition: () => T | Promise<T>, seconds = 40): Promise<NonNullable<T>> {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const value = await condition();
    if (value) {
      return value;
    }
    if (Date.now() > deadline) {
      throw new Error(
        `not within ${seconds} s: ${what}; the status is ${JSON.stringify(api().daemon.status)}, the problem ${String(api().daemon.problem)}`,
      );
    }
    await sleep(25);
  }
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export function untilStatus(what: string, condition: (status: Status) => unknown, seconds = 40): Promise<Status> {
  return until(
    what,
    () => {
      const { status } = api().daemon;
      return status && condition(status) ? status : undefined;
    },
    seconds,
  );
}

export function untilReady(): Promise<Status> {
  return untilStatus('ready', ({ state, documents }) => state === 'ready' && documents[0]?.state === 'ready');
}

export async function set(key: string, value: unknown): Promise<void> {
  await vscode.workspace.getConfiguration('cag').update(key, value, vscode.ConfigurationTarget.Global);
}

/** Ask by the command, as the palette does, and wait for the end. */
export async function ask(question: string): Promise<Answer> {
  const answer = await vscode.commands.executeCommand<Answer>('cagDaemon.ask', question);
  assert.ok(answer);
  return answer;
}

/** Write a file as another program would. An editor that has it open without changes of its own sees it before this ends. */
export async function write(text: string, name = 'document.txt'): Promise<void> {
  await fs.promises.writeFile(file(name), text);
  const seen = (document: vscode.TextDocument) => document.isClosed || document.isDirty || document.getText() === text;
  await until(`the editor sees the new ${name}`, () =>
    vscode.workspace.textDocuments.filter(({ uri }) => uri.fsPath === file(name)).every(seen),
  );
}

export async function edit(editor: vscode.TextEditor, change: (builder: vscode.TextEditorEdit) => void): Promise<void> {
  assert.ok(await editor.edit(change));
}

export async function open(name = 'document.txt'): Promise<vscode.TextEditor> {
  return vscode.window.showTextDocument(await vscode.workspace.openTextDocument(file(name)));
}

export interface Popup {
  kind: 'error' | 'warning' | 'information';
  message: string;
  items: string[];
}

/** While `work` runs, messages are taken down instead of shown; `choose` says which button is pressed. */
export async function popups(
  work: () => Promise<unknown>,
  choose: (popup: Popup) => string | undefined = () => undefined,
): Promise<Popup[]> {
  const taken: Popup[] = [];
  const { window } = vscode;
  const before = { error: window.showErrorMessage, warning: window.showWarningMessage, information: window.showInformationMessage };
  const take =
    (kind: Popup['kind']) =>
    (message: string, ...items: string[]) => {
      const popup = { kind, message, items };
      taken.push(popup);
      return Promise.resolve(choose(popup));
    };
  const install = (functions: object) => Object.assign(window, functions);
  install({ showErrorMessage: take('error'), showWarningMessage: take('warning'), showInformationMessage: take('information') });
  try {
    await work();
  } finally {
    install({ showErrorMessage: before.error, showWarningMessage: before.warning, showInformationMessage: before.information });
  }
  return taken;
}
