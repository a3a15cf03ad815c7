/** What went wrong, in words for the user, and what helps. */

import * as vscode from 'vscode';
import { ResponseError } from 'vscode-languageclient';
import { ERROR } from './protocol';

/** Why there is no daemon to talk to. */
export type NoDaemonReason =
  | 'daemonNotFound'
  | 'daemonUnfit'
  | 'daemonNotStarted'
  | 'daemonGivenUp' // it ended too often
  | 'daemonEnded' // before it had answered
  | 'daemonStopped'; // by the user

/** There is no daemon to talk to; the message says why, and the next step. */
export class NoDaemon extends Error {
  constructor(
    message: string,
    readonly reason: NoDaemonReason,
  ) {
    super(message);
  }
}

export interface Failure {
  message: string;
  reason?: string;
}

/** A failure as it is told; undefined where it is none, because the user stopped what was going on. */
export function failure(error: unknown): Failure | undefined {
  if (error instanceof vscode.CancellationError || (error instanceof ResponseError && error.code === ERROR.cancelled)) {
    return undefined;
  }
  if (error instanceof NoDaemon) {
    return error.reason === 'daemonStopped' ? undefined : { message: error.message, reason: error.reason };
  }
  if (error instanceof ResponseError) {
    const reason = (error.data as { reason?: string } | undefined)?.reason;
    return { message: error.message, ...(reason !== undefined && { reason }) };
  }
  return { message: error instanceof Error ? error.message : String(error) };
}

/** A command of this extension's, by the name after `cagDaemon.`, and what it is called where it helps. */
export interface Remedy {
  command: string;
  title: string;
}

/** What helps, by the reason of a failure. */
export function remedy(reason: string | undefined): Remedy | undefined {
  switch (reason) {
    case 'documentNotFound':
      return { command: 'chooseDocument', title: 'Choose a File' };
    case 'documentEmpty':
    case 'documentUnreadable':
    case 'documentTooLong':
      return { command: 'openDocument', title: 'Open the Document' };
    case 'modelNotFound':
    case 'modelFailed':
    case 'outOfMemory':
      return { command: 'modelSettings', title: 'Choose a Model' };
    case 'daemonNotFound':
      return { command: 'copyInstallCommand', title: 'Copy Command' };
    case 'daemonUnfit':
      return { command: 'copyUpgradeCommand', title: 'Copy Command' };
    case 'daemonNotStarted':
    case 'daemonEnded':
      return { command: 'showLog', title: 'Show Log' };
    case 'daemonGivenUp':
      return { command: 'restart', title: 'Restart' };
    default:
      return undefined;
  }
}
