/** What the status bar entry opens: what can be done now, what helps first. */

import * as path from 'node:path';
import * as vscode from 'vscode';
import type { Daemon } from './daemon';
import { documentSetting } from './settings';
import { seen } from './status';

export interface MenuItem extends vscode.QuickPickItem {
  /** A command of this extension's, by the name after `cagDaemon.`. */
  command: string;
}

/** The entries, by the daemon's state. */
export function menuItems(daemon: Daemon): MenuItem[] {
  const { status, running } = daemon;
  const helps = seen(daemon)?.remedy;
  const item = (command: string, label: string, detail = '') => ({ command, label, ...(detail && { detail }) });
  const loaded = running && status?.model !== undefined;
  const items = [
    item('ask', '$(comment) Ask the document…'),
    item('openDocument', `$(book) Open ${path.basename(documentSetting())}`),
    item('chooseDocument', '$(file) Use another file as the document…'),
    ...(running ? [item('refresh', '$(refresh) Read it now', 'Otherwise it is read when the setting cag.refresh says so')] : []),
    ...(loaded ? [item('unload', '$(circle-slash) Unload the model', 'The next question brings it back')] : []),
    item('modelSettings', '$(settings-gear) Choose a model'),
    item('restart', running ? '$(debug-restart) Restart the daemon' : '$(debug-start) Start the daemon'),
    item('showLog', '$(output) Show log'),
    item('debugInformation', '$(info) Debug information'),
  ];
  return helps ? [item(helps.command, `$(lightbulb) ${helps.title}`), ...items.filter(({ command }) => command !== helps.command)] : items;
}

/** Show them, and do what is chosen. */
export async function menu(daemon: Daemon, run: (command: string) => unknown): Promise<void> {
  const message = seen(daemon)?.message ?? 'The daemon is not running.';
  const chosen = await vscode.window.showQuickPick(menuItems(daemon), { title: 'cag-daemon', placeHolder: message });
  if (chosen) {
    await run(chosen.command);
  }
}
