/** From the words of an answer to where they stand in the document: jump, and show them for a moment. */

import * as vscode from 'vscode';
import type { Daemon } from './daemon';
import { METHOD, type AskResult, type Citation, type LocateResult } from './protocol';

const HIGHLIGHT_MS = 4000;

export class Citations implements vscode.Disposable {
  private readonly decoration = vscode.window.createTextEditorDecorationType({
    backgroundColor: new vscode.ThemeColor('editor.findMatchHighlightBackground'),
    borderRadius: '2px',
    overviewRulerColor: new vscode.ThemeColor('editorOverviewRuler.findMatchForeground'),
    overviewRulerLane: vscode.OverviewRulerLane.Full,
  });
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly daemon: Daemon) {}

  /** Open the document where a citation stands now; false: its words are no longer there, which is said. */
  async show(result: AskResult, citation: Citation): Promise<boolean> {
    const words = result.answer.slice(...citation.answerRange);
    const uri = vscode.Uri.parse(citation.location.uri);
    const document = await vscode.workspace.openTextDocument(uri);
    let range = toRange(citation);
    if (squeezed(document.getText(range)) !== squeezed(words)) {
      // The document is another one by now: ask where the words have gone.
      const located = await this.daemon.request<LocateResult>(METHOD.locate, { text: words, document: result.document.uri });
      const [now] = located.citations;
      if (!now) {
        const name = vscode.workspace.asRelativePath(uri);
        void vscode.window.showInformationMessage(`These words stand in ${name} no longer; it was changed since the answer.`);
        return false;
      }
      range = toRange(now);
    }
    const editor = await vscode.window.showTextDocument(document, { preview: true, viewColumn: this.columnOf(uri) });
    // Behind the words: on one, the editor would highlight wherever else it stands.
    editor.selection = new vscode.Selection(range.end, range.end);
    editor.revealRange(range, vscode.TextEditorRevealType.InCenterIfOutsideViewport);
    editor.setDecorations(this.decoration, [range]);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => editor.setDecorations(this.decoration, []), HIGHLIGHT_MS);
    return true;
  }

  dispose(): void {
    clearTimeout(this.timer);
    this.decoration.dispose();
  }

  /** Where the document is open already; else beside nothing, where the user works. */
  private columnOf(uri: vscode.Uri): vscode.ViewColumn {
    const open = vscode.window.visibleTextEditors.find((editor) => editor.document.uri.toString() === uri.toString());
    return open?.viewColumn ?? vscode.ViewColumn.Active;
  }
}

function toRange({ location: { range } }: Citation): vscode.Range {
  return new vscode.Range(range.start.line, range.start.character, range.end.line, range.end.character);
}

function squeezed(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}
