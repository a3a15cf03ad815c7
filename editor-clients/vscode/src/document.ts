/** The configured document: which files it may be, whether one is there, and a call when one comes. */

import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import * as vscode from 'vscode';
import { SECTION, documentSetting } from './settings';

/** The document of each workspace folder, whether it is there or not. */
export function documentUris(): vscode.Uri[] {
  const name = documentSetting().replace(/^~(?=[/\\])/, os.homedir());
  if (path.isAbsolute(name)) {
    return [vscode.Uri.file(path.normalize(name))];
  }
  return folders().map((folder) => vscode.Uri.joinPath(folder.uri, ...name.split(/[/\\]/)));
}

/** Workspace folders that are on a disk of this host. */
export function folders(): vscode.WorkspaceFolder[] {
  return (vscode.workspace.workspaceFolders ?? []).filter((folder) => folder.uri.scheme === 'file');
}

/** The first document that is there. */
export async function existingDocument(): Promise<vscode.Uri | undefined> {
  for (const uri of documentUris()) {
    try {
      if ((await fs.promises.stat(uri.fsPath)).isFile()) {
        return uri;
      }
    } catch {
      // not this one
    }
  }
  return undefined;
}

/** Whether an open file is a document, also by another name of the same file. */
export function isDocument(uri: vscode.Uri): boolean {
  return uri.scheme === 'file' && documentUris().some((each) => each.fsPath === uri.fsPath || real(each) === real(uri));
}

function real(uri: vscode.Uri): string {
  try {
    return fs.realpathSync(uri.fsPath);
  } catch {
    return uri.fsPath;
  }
}

/** Calls back when a document is there: now, later, or where a setting or a folder makes one of a file. */
export class DocumentWatch implements vscode.Disposable {
  private watchers: vscode.Disposable[] = [];
  private readonly listeners: vscode.Disposable[];

  constructor(private readonly onThere: (uri: vscode.Uri) => void) {
    this.listeners = [
      vscode.workspace.onDidChangeWorkspaceFolders(() => void this.look()),
      vscode.workspace.onDidGrantWorkspaceTrust(() => void this.look()),
      vscode.workspace.onDidChangeConfiguration((event) => {
        if (event.affectsConfiguration(`${SECTION}.document`)) {
          void this.look();
        }
      }),
    ];
  }

  /** Look now, and watch from now on. */
  async look(): Promise<void> {
    this.unwatch();
    for (const uri of documentUris()) {
      const folder = vscode.Uri.file(path.dirname(uri.fsPath));
      const pattern = new vscode.RelativePattern(folder, escapeGlob(path.basename(uri.fsPath)));
      const watcher = vscode.workspace.createFileSystemWatcher(pattern, false, true, true);
      watcher.onDidCreate((created) => this.onThere(created));
      this.watchers.push(watcher);
    }
    const there = await existingDocument();
    if (there) {
      this.onThere(there);
    }
  }

  private unwatch(): void {
    for (const each of this.watchers.splice(0)) {
      each.dispose();
    }
  }

  dispose(): void {
    this.unwatch();
    for (const each of this.listeners) {
      each.dispose();
    }
  }
}

function escapeGlob(name: string): string {
  return name.replace(/[*?{}[\]]/g, '[$&]');
}

/**
 * Have a file be the document, by the setting.
 *
 * @returns whether it counts by now: the settings of a folder that is not trusted do not.
 */
export async function useAsDocument(uri: vscode.Uri): Promise<boolean> {
  const { Workspace, Global } = vscode.ConfigurationTarget;
  const target = (vscode.workspace.workspaceFolders ?? []).length > 0 ? Workspace : Global;
  await vscode.workspace.getConfiguration(SECTION).update('document', settingFor(uri), target);
  return vscode.workspace.isTrusted || target === Global;
}

/** Relative in a window of one folder, so that the project can move; in one of several it would be a file of each. */
function settingFor(uri: vscode.Uri): string {
  const folder = vscode.workspace.getWorkspaceFolder(uri);
  const alone = (vscode.workspace.workspaceFolders ?? []).length === 1;
  return folder && alone ? path.relative(folder.uri.fsPath, uri.fsPath).split(path.sep).join('/') : uri.fsPath;
}
