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
  private readonly timers = new Map<vscode.TextEditor, NodeJS.Timeout>();

  constructor(private readonly daemon: Daemon) {}

  /** Open the document where a citation stands now; false: its words are no longer there, which is said. */
  async show(result: AskResult, citation: Citation): Promise<boolean> {
    const words = result.answer.slice(...citation.answerRange);
    const uri = vscode.Uri.parse(citation.location.uri);
    const name = vscode.workspace.asRelativePath(uri);
    const document = await vscode.workspace.openTextDocument(uri).then(
      (opened) => opened,
      () => undefined,
    );
    if (!document) {
      void vscode.window.showInformationMessage(`${name} cannot be opened any more.`);
      return false;
    }
    let range = toRange(citation);
    if (squeezed(document.getText(range)) !== squeezed(words)) {
      // The document is another one by now: ask where the words have gone.
      const located = await this.daemon.request<LocateResult>(METHOD.locate, { text: words, document: citation.location.uri });
      if (located.document.uri !== result.document.uri) {
        void vscode.window.showInformationMessage(
          `${name} is no longer the document, and these words are no longer where they were in it.`,
        );
        return false;
      }
      const now = longest(located.citations);
      if (!now) {
        void vscode.window.showInformationMessage(`These words stand in ${name} no longer; it was changed since the answer.`);
        return false;
      }
      range = toRange(now);
      if (squeezed(document.getText(range)).length < squeezed(words).length) {
        void vscode.window.showInformationMessage(`Only a part of these words still stands in ${name}; it was changed since the answer.`);
      }
    }
    const editor = await vscode.window.showTextDocument(document, { preview: true, viewColumn: this.columnOf(uri) });
    // Behind the words: on one, the editor would highlight wherever else it stands.
    editor.selection = new vscode.Selection(range.end, range.end);
    editor.revealRange(range, vscode.TextEditorRevealType.InCenterIfOutsideViewport);
    this.highlight(editor, range);
    return true;
  }

  dispose(): void {
    for (const timer of this.timers.values()) {
      clearTimeout(timer);
    }
    this.decoration.dispose();
  }

  private highlight(editor: vscode.TextEditor, range: vscode.Range): void {
    editor.setDecorations(this.decoration, [range]);
    clearTimeout(this.timers.get(editor));
    const off = () => {
      this.timers.delete(editor);
      editor.setDecorations(this.decoration, []);
    };
    this.timers.set(editor, setTimeout(off, HIGHLIGHT_MS));
  }

  /** Where the document is open already; else beside nothing, where the user works. */
  private columnOf(uri: vscode.Uri): vscode.ViewColumn {
    const open = vscode.window.visibleTextEditors.find((editor) => editor.document.uri.toString() === uri.toString());
    return open?.viewColumn ?? vscode.ViewColumn.Active;
  }
}

function longest(citations: Citation[]): Citation | undefined {
  const length = ({ answerRange: [start, end] }: Citation) => end - start;
  return [...citations].sort((one, other) => length(other) - length(one))[0];
}

function toRange({ location: { range } }: Citation): vscode.Range {
  return new vscode.Range(range.start.line, range.start.character, range.end.line, range.end.character);
}

function squeezed(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}
