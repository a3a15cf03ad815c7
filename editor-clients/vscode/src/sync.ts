/** What the daemon is told of open files: of its documents, unsaved changes included, and of no other file. */

import type * as vscode from 'vscode';
import { TextDocumentSyncKind, type LanguageClient, type Middleware } from 'vscode-languageclient/node';
import { isDocument } from './document';

const ID = 'cag-document';
const METHODS = ['textDocument/didClose', 'textDocument/didOpen', 'textDocument/didChange', 'textDocument/didSave'] as const;

/** Have the library look through all open files, now and from now on. `middleware` decides which the daemon hears of. */
export function syncDocuments(client: LanguageClient): void {
  const registerOptions = { documentSelector: [{ scheme: 'file' }] };
  client.getFeature('textDocument/didOpen').register({ id: ID, registerOptions });
  const syncKind = TextDocumentSyncKind.Incremental;
  client.getFeature('textDocument/didChange').register({ id: ID, registerOptions: { ...registerOptions, syncKind } });
  client.getFeature('textDocument/didSave').register({ id: ID, registerOptions });
  client.getFeature('textDocument/didClose').register({ id: ID, registerOptions });
}

/** What is open already may have become a document: have the library look through all open files again. */
export function syncAgain(client: LanguageClient): void {
  for (const method of METHODS) {
    client.getFeature(method as 'textDocument/didOpen').unregister(ID);
  }
  syncDocuments(client);
}

export function syncMiddleware(): Middleware {
  /** What the daemon was told is open: it also hears of the end of that, whatever is set by then. */
  const shared = new Set<string>();
  const isShared = (uri: vscode.Uri) => shared.has(uri.toString());
  return {
    didOpen: (document, next) => {
      if (!isDocument(document.uri)) {
        return Promise.resolve();
      }
      shared.add(document.uri.toString());
      return next(document);
    },
    didChange: (event, next) => (isShared(event.document.uri) ? next(event) : Promise.resolve()),
    didSave: (document, next) => (isShared(document.uri) ? next(document) : Promise.resolve()),
    didClose: (document, next) => (shared.delete(document.uri.toString()) ? next(document) : Promise.resolve()),
  };
}
