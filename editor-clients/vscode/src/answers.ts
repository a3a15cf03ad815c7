/** The questions of this session and their answers, in memory only. Asking, stopping, asking again, going on longer. */

import * as vscode from 'vscode';
import { ResponseError } from 'vscode-languageclient';
import { NoDaemon, type Daemon } from './daemon';
import {
  CONNECTION_ERRORS,
  ERROR,
  METHOD,
  MOST_NEW_TOKENS,
  type AskParams,
  type AskResult,
  type DocumentStatus,
  type Selection,
} from './protocol';
import { maxNewTokens } from './settings';

/** A question that would wait longer may be answered from the earlier version. */
export const PATIENCE_MS = 5000;

/**
 * One question and what has come of it.
 *
 * - `waiting`: nothing has come yet; `answering`: it comes; `done`: `result` is there.
 * - `stopped`: by the user; what had come stays. `failed`: `problem` says why.
 */
export interface Answer {
  readonly id: string;
  readonly question: string;
  readonly selection?: Selection;
  /** Any file of the workspace folder whose document is asked. */
  readonly about?: string;
  readonly maxNewTokens: number;
  readonly from: 'wait' | 'previous';
  readonly asked: number;
  state: 'waiting' | 'answering' | 'done' | 'stopped' | 'failed';
  text: string;
  result?: AskResult;
  problem?: { message: string; reason?: string };
  /** While it waits: what for, in the daemon's words. */
  waitingFor?: string;
  /** It would wait long, and an earlier version could answer at once. */
  earlierOffered?: boolean;
  /** The document is another one by now. */
  changed?: boolean;
}

export interface AskOptions {
  selection?: Selection | undefined;
  about?: string | undefined;
  maxNewTokens?: number | undefined;
  from?: 'wait' | 'previous' | undefined;
  /** Another answer that this one takes the place of. */
  inPlaceOf?: string | undefined;
}

export class Answers implements vscode.Disposable {
  /** The oldest first. */
  readonly all: Answer[] = [];

  private readonly emitter = new vscode.EventEmitter<Answer | undefined>();
  /** An answer has changed; undefined: the list has. */
  readonly onChange = this.emitter.event;

  private readonly open = new Map<string, vscode.CancellationTokenSource>();
  private readonly listeners: vscode.Disposable[];
  private count = 0;

  constructor(private readonly daemon: Daemon) {
    this.listeners = [
      daemon.onPartial(({ id, text }) => {
        const answer = this.find(id);
        if (answer && this.open.has(id)) {
          this.set(answer, { state: 'answering', text: answer.text + text, earlierOffered: false });
        }
      }),
      daemon.onStatus(() => this.look()),
    ];
  }

  find(id: string): Answer | undefined {
    return this.all.find((answer) => answer.id === id);
  }

  get last(): Answer | undefined {
    return this.all.at(-1);
  }

  /** Ask, and resolve when the answer has ended, in whatever way. */
  async ask(question: string, options: AskOptions = {}): Promise<Answer> {
    const answer: Answer = {
      id: `vscode-${process.pid}-${++this.count}`,
      question,
      maxNewTokens: options.maxNewTokens ?? maxNewTokens(),
      from: options.from ?? 'wait',
      asked: Date.now(),
      state: 'waiting',
      text: '',
      ...(options.selection && { selection: options.selection }),
      ...(options.about && { about: options.about }),
    };
    const place = this.all.findIndex((each) => each.id === options.inPlaceOf);
    this.all.splice(place < 0 ? this.all.length : place, place < 0 ? 0 : 1, answer);
    const source = new vscode.CancellationTokenSource();
    this.open.set(answer.id, source);
    this.emitter.fire(undefined);
    const timer = setTimeout(() => this.look(), PATIENCE_MS + 50);
    try {
      this.look();
      const result = await this.daemon.request<AskResult>(METHOD.ask, params(answer), source.token);
      // The reply repeats the whole text: whatever was streamed, this is the answer.
      this.set(answer, { state: 'done', text: result.answer, result });
    } catch (error) {
      this.set(answer, outcome(error));
    } finally {
      clearTimeout(timer);
      this.open.delete(answer.id);
      source.dispose();
      this.look();
    }
    return answer;
  }

  /** Stop one answer, or all that are under way. What has come of them stays. */
  stop(id?: string): void {
    for (const [each, source] of this.open) {
      if (id === undefined || id === each) {
        source.cancel();
      }
    }
  }

  get underWay(): boolean {
    return this.open.size > 0;
  }

  again(answer: Answer): Promise<Answer> {
    return this.ask(answer.question, { selection: answer.selection, about: answer.about, maxNewTokens: answer.maxNewTokens });
  }

  /** The same question with more room, in place of the answer that was cut: it begins with the same words. */
  goOn(answer: Answer): Promise<Answer> {
    const { selection, about, from } = answer;
    return this.ask(answer.question, { selection, about, from, maxNewTokens: longer(answer), inPlaceOf: answer.id });
  }

  /** Give up waiting, and have the question answered from the version that is cached whole. */
  async fromEarlier(answer: Answer): Promise<Answer> {
    this.stop(answer.id);
    const { selection, about } = answer;
    return this.ask(answer.question, { selection, about, maxNewTokens: answer.maxNewTokens, from: 'previous', inPlaceOf: answer.id });
  }

  clear(): void {
    this.stop();
    this.all.length = 0;
    this.emitter.fire(undefined);
  }

  dispose(): void {
    this.stop();
    for (const each of this.listeners) {
      each.dispose();
    }
  }

  /** See what the daemon's state means for each answer. */
  private look(): void {
    for (const answer of this.all) {
      if (answer.state === 'waiting') {
        const document = this.documentOf(answer);
        const waitingFor = this.daemon.status?.short ?? 'starting';
        this.set(answer, { waitingFor, earlierOffered: answer.from === 'wait' && waitsLong(document, Date.now() - answer.asked) });
      } else if (answer.result) {
        const { uri, version } = answer.result.document;
        const now = this.daemon.status?.documents.find((each) => each.uri === uri)?.version;
        this.set(answer, { changed: now === undefined ? (answer.changed ?? false) : now !== version });
      }
    }
  }

  private documentOf(answer: Answer): DocumentStatus | undefined {
    const documents = this.daemon.status?.documents ?? [];
    const folder = answer.about ? vscode.workspace.getWorkspaceFolder(vscode.Uri.parse(answer.about)) : undefined;
    return documents.find((each) => folder && each.uri.startsWith(`${folder.uri.toString()}/`)) ?? documents[0];
  }

  private set(answer: Answer, changes: Partial<Answer>): void {
    const before = JSON.stringify(answer);
    Object.assign(answer, changes);
    // Not of one that another has taken the place of.
    if (JSON.stringify(answer) !== before && this.all.includes(answer)) {
      this.emitter.fire(answer);
    }
  }
}

/** How many tokens to ask for when going on: four times as many, and never more than may be asked for. */
export function longer(answer: Answer): number {
  return Math.min(MOST_NEW_TOKENS, 4 * answer.maxNewTokens);
}

/** Whether an answer was cut, and asking for more tokens would make it longer. */
export function canGoOn(answer: Answer): boolean {
  const { result } = answer;
  return result?.finishReason === 'length' && result.tokens.generated >= answer.maxNewTokens && answer.maxNewTokens < MOST_NEW_TOKENS;
}

/** Whether a question to that document waits for a reading of more than five seconds that an earlier version need not wait for. */
export function waitsLong(document: DocumentStatus | undefined, waited: number): boolean {
  if (!document?.cached || document.cached.version === document.version || document.state === 'ready') {
    return false;
  }
  return waited > PATIENCE_MS || (document.secondsLeft ?? 0) * 1000 > PATIENCE_MS;
}

function params(answer: Answer): AskParams {
  return {
    question: answer.question,
    id: answer.id,
    maxNewTokens: answer.maxNewTokens,
    whileRefreshing: answer.from,
    ...(answer.selection && { selection: answer.selection }),
    ...(answer.about && { document: answer.about }),
  };
}

function outcome(error: unknown): Partial<Answer> {
  if (error instanceof vscode.CancellationError || (error instanceof ResponseError && error.code === ERROR.cancelled)) {
    return { state: 'stopped' };
  }
  if (error instanceof ResponseError && !CONNECTION_ERRORS.includes(error.code)) {
    const reason = (error.data as { reason?: string } | undefined)?.reason;
    return { state: 'failed', problem: { message: error.message, ...(reason !== undefined && { reason }) } };
  }
  if (error instanceof NoDaemon) {
    return { state: 'failed', problem: { message: error.message, reason: 'noDaemon' } };
  }
  return { state: 'failed', problem: { message: 'The daemon ended before the answer was whole; ask again.', reason: 'daemonEnded' } };
}
