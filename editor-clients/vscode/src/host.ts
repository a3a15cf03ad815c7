/** This host, as `find` wants to know it, and the look for the daemon on it. */

import * as os from 'node:os';
import * as vscode from 'vscode';
import { find, installCommand, isExecutable, places, type Found, type Host, type Place } from './find';
import { folders } from './document';
import { executableSetting } from './settings';

/** How long another extension may take to say which interpreter is selected. */
const INTERPRETERS_MS = 5000;

export function host(): Host {
  return { platform: process.platform, env: process.env, home: os.homedir(), isExecutable };
}

/** Look for the daemon: what was found, and where it was looked for. An interpreter is asked for only where nothing else is. */
export async function look(): Promise<{ found: Found | undefined; looked: Place[] }> {
  const { isTrusted } = vscode.workspace;
  const setting = executableSetting();
  const excluded = isTrusted ? [] : folders().map((folder) => folder.uri.fsPath);
  const looked = places(host(), setting, [], excluded);
  const found = find(host(), looked);
  if (found || setting || !isTrusted) {
    return { found, looked };
  }
  const further = places(host(), setting, await interpreters(), excluded);
  return { found: find(host(), further), looked: further };
}

/** One sentence, or two: where it was looked for, on which host, and the next step. */
export function notFound(looked: Place[]): string {
  const where = `on ${vscode.env.remoteName ? `the remote host ${os.hostname()}` : os.hostname()}`;
  const setting = executableSetting();
  if (setting) {
    const [place] = looked;
    return place && place.files.length > 0
      ? `The setting cag.executable names ${place.files.join(', ')}, which is no program ${where}: correct it, or empty it to have cag-daemon looked for.`
      : `The setting cag.executable must be an absolute path, and is ${setting}: correct it, or empty it to have cag-daemon looked for.`;
  }
  const names = looked.filter((place) => place.files.length > 0).map((place) => place.name);
  return `cag-daemon was not found ${where}; looked in ${names.join(', ')}. Install it with: ${installCommand(host())}`;
}

/** Python interpreters that are selected: by the Python extension, else by its setting. */
async function interpreters(): Promise<string[]> {
  const setting = vscode.workspace.getConfiguration('python').get<string>('defaultInterpreterPath', '');
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath ?? '';
  const configured = setting.replace('${workspaceFolder}', folder).replace(/^~(?=[/\\])/, os.homedir());
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<string[]>((resolve) => (timer = setTimeout(() => resolve([]), INTERPRETERS_MS)));
  // Another extension's trouble is none of ours.
  const selected = await Promise.race([selectedInterpreters().catch(() => []), late]);
  clearTimeout(timer);
  return [...selected, configured].filter((each) => each !== '');
}

async function selectedInterpreters(): Promise<string[]> {
  const python = vscode.extensions.getExtension<PythonApi>('ms-python.python');
  const api = python && (python.isActive ? python.exports : await python.activate());
  const active = api?.environments?.getActiveEnvironmentPath(vscode.workspace.workspaceFolders?.[0]?.uri);
  const resolved = active && (await api?.environments?.resolveEnvironment(active));
  return [resolved?.executable?.uri?.fsPath, active?.path].filter((each) => each !== undefined);
}

interface PythonApi {
  environments?: {
    getActiveEnvironmentPath(resource?: vscode.Uri): { path: string };
    resolveEnvironment(environment: { path: string }): Promise<{ executable?: { uri?: vscode.Uri } } | undefined>;
  };
}
