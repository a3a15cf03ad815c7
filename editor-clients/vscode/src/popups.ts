/** Messages that pop up: each once, until what it is about has been well again. */

import * as vscode from 'vscode';
import type { Remedy } from './errors';

export class PopUps {
  private readonly shown = new Set<string>();

  /** @param run a command of this extension's, by the name after `cagDaemon.`. */
  constructor(private readonly run: (command: string) => unknown) {}

  /**
   * Show a message, unless the one of that key was shown already.
   *
   * @param key what the message is about; it may say the same in other words, with other figures.
   */
  once(kind: 'error' | 'warning', key: string, message: string, remedies: Remedy[]): void {
    if (this.shown.has(key)) {
      return;
    }
    this.shown.add(key);
    const show = kind === 'error' ? vscode.window.showErrorMessage : vscode.window.showWarningMessage;
    void show(message, ...remedies.map(({ title }) => title)).then((chosen) => {
      const remedy = remedies.find(({ title }) => title === chosen);
      if (remedy) {
        void this.run(remedy.command);
      }
    });
  }

  /** What begins with that key is well again, or was begun anew by the user: it may be shown the next time. */
  forget(key = ''): void {
    for (const each of this.shown) {
      if (each.startsWith(key)) {
        this.shown.delete(each);
      }
    }
  }
}
