/** What the user is asked for, and what stands in the editor. */

import * as vscode from 'vscode';
import { folders } from './document';
import type { Selection } from './protocol';

/**
 * A question typed into a box; undefined: none.
 *
 * @param typing Told what is in the box, with each key.
 */
export async function askFor(prompt: string, typing: (words: string) => void): Promise<string | undefined> {
  const validateInput = (words: string): undefined => {
    typing(words);
  };
  const placeHolder = 'A question about the document';
  const words = await vscode.window.showInputBox({ prompt, placeHolder, ignoreFocusOut: true, validateInput });
  return words?.trim() ? words : undefined;
}

/** A text file chosen in a dialog; undefined: none. */
export async function chooseFile(): Promise<vscode.Uri | undefined> {
  const [folder] = folders();
  const chosen = await vscode.window.showOpenDialog({
    openLabel: 'Use as the Document',
    canSelectMany: false,
    ...(folder && { defaultUri: folder.uri }),
    filters: { Text: ['txt', 'md', 'markdown', 'rst', 'adoc', 'org', 'tex'], 'All files': ['*'] },
  });
  return chosen?.[0];
}

/** The file in the editor. */
export function activeFile(): vscode.Uri | undefined {
  const uri = vscode.window.activeTextEditor?.document.uri;
  return uri?.scheme === 'file' ? uri : undefined;
}

/** The file in the editor, where it is in a workspace folder: it chooses the document. */
export function currentFile(): string | undefined {
  const uri = activeFile();
  return uri && vscode.workspace.getWorkspaceFolder(uri) ? uri.toString() : undefined;
}

/** What is selected in the editor; undefined: nothing. */
export function selected(): Selection | undefined {
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
