/** The section `cag`, as the daemon gets it: only what the user has set, so that the daemon's own defaults hold. */

import * as vscode from 'vscode';

export const SECTION = 'cag';

/** The daemon's settings. A test compares them with the contract's table. */
export const KEYS = [
  'document',
  'systemPrompt',
  'maxNewTokens',
  'refresh',
  'model',
  'device',
  'dtype',
  'quantization',
  'threads',
  'idleUnloadMinutes',
  'lingerSeconds',
  'cacheDirectory',
  'cacheMaxGigabytes',
  'memoryMaxGigabytes',
] as const;

export type Key = (typeof KEYS)[number];

/** What is set, by key; null where nothing is. */
export function section(): Record<Key, unknown> {
  const settings = vscode.workspace.getConfiguration(SECTION);
  const value = (key: Key): unknown => {
    const set = settings.inspect(key);
    const anywhere = set?.globalValue ?? set?.workspaceValue ?? set?.workspaceFolderValue;
    // Not the value that was found there: in an untrusted workspace it may not count. The settings editor leaves an
    // empty text behind where somebody takes back what was set; only a prompt may be empty on purpose.
    const counts = anywhere === undefined ? null : (settings.get<unknown>(key) ?? null);
    return counts === '' && key !== 'systemPrompt' ? null : counts;
  };
  return Object.fromEntries(KEYS.map((key) => [key, value(key)])) as Record<Key, unknown>;
}

/** Show a setting where it can be changed: what is of machine scope, in a remote window among those of the remote host. */
export function openSettings(query: string): Thenable<unknown> {
  const command = vscode.env.remoteName ? 'workbench.action.openRemoteSettings' : 'workbench.action.openSettings';
  return vscode.commands.executeCommand(command, { query });
}

export function documentSetting(): string {
  return vscode.workspace.getConfiguration(SECTION).get<string>('document', 'document.txt') || 'document.txt';
}

export function executableSetting(): string {
  return vscode.workspace.getConfiguration(SECTION).get<string>('executable', '').trim();
}
