/** The questions of this session and their answers, in memory only. Asking, stopping, asking again, going on longer. */

import * as vscode from 'vscode';
import type { Daemon } from './daemon';
import { failure, type Failure } from './errors';
import {
  METHOD,
  MOST_NEW_TOKENS,
  type AskParams,
  type AskResult,
  type DocumentStatus,
  type Selection,
  type TypingParams,
} from './protocol';

/** A question that would wait longer may be answered from the earlier version. */
export const PATIENCE_MS = 5000;
/** After so long the daemon has told of the text that it had when it was asked: it looks, and lets typing settle. */
const TOLD_MS = 700;

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
  /** Only where more room was asked for than the settings give. */
  readonly maxNewTokens?: number;
  readonly from: 'wait' | 'previous';
  readonly asked: number;
  state: 'waiting' | 'answering' | 'done' | 'stopped' | 'failed';
  text: string;
  result?: AskResult;
  problem?: Failure;
  /** While it waits: what for, in the daemon's words. */
  waitingFor?: string;
  /** The version of the document that it waits for, once that is known. */
  wants?: string;
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
  /** Another answer, below which this one is shown. */
  below?: string | undefined;
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
  async ask(question: string, { below, ...options }: AskOptions = {}): Promise<Answer> {
    const { selection, about, maxNewTokens, from } = options;
    const answer: Answer = {
      id: `vscode-${process.pid}-${++this.count}`,
      question,
      from: from ?? 'wait',
      asked: Date.now(),
      state: 'waiting',
      text: '',
      ...(selection && { selection }),
      ...(about && { about }),
      ...(maxNewTokens && { maxNewTokens }),
    };
    const above = this.all.findIndex((each) => each.id === below);
    this.all.splice(above < 0 ? this.all.length : above + 1, 0, answer);
    const source = new vscode.CancellationTokenSource();
    this.open.set(answer.id, source);
    this.emitter.fire(undefined);
    const timers: NodeJS.Timeout[] = [];
    try {
      this.look();
      const asking = this.daemon.request<AskResult>(METHOD.ask, params(answer), source.token);
      const started = () => {
        if (this.open.has(answer.id)) {
          timers.push(
            setTimeout(() => this.note(answer), TOLD_MS),
            setTimeout(() => this.look(), PATIENCE_MS + 50),
          );
        }
      };
      this.daemon.start().then(started, () => undefined);
      const result = await asking;
      // The reply repeats the whole text: whatever was streamed, this is the answer.
      this.set(answer, { state: 'done', text: result.answer, result });
    } catch (error) {
      const problem = failure(error);
      this.set(answer, problem ? { state: 'failed', problem } : { state: 'stopped' });
    } finally {
      timers.forEach(clearTimeout);
      this.open.delete(answer.id);
      source.dispose();
      this.look();
    }
    return answer;
  }

  /** A question is being typed: the daemon may read it already. */
  typing(question: string, { selection, about }: Pick<AskOptions, 'selection' | 'about'> = {}): void {
    if (question.trim()) {
      const params: TypingParams = { question, ...(selection && { selection }), ...(about && { document: about }) };
      this.daemon.hint('typing', METHOD.typing, params);
    }
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

  again({ question, selection, about, maxNewTokens }: Answer): Promise<Answer> {
    return this.ask(question, { selection, about, maxNewTokens });
  }

  /** The same question with more room. The answer that was cut, which begins with the same words, goes once the longer one is whole. */
  async goOn(cut: Answer): Promise<Answer> {
    const { question, selection, about, from, id } = cut;
    const answer = await this.ask(question, { selection, about, from, maxNewTokens: longer(cut), below: id });
    if (answer.state === 'done') {
      this.remove(id);
    }
    return answer;
  }

  /** Give up waiting, and have the question answered from the version that is cached whole. */
  async fromEarlier({ question, selection, about, maxNewTokens, id }: Answer): Promise<Answer> {
    this.stop(id);
    const answer = this.ask(question, { selection, about, maxNewTokens, from: 'previous', below: id });
    this.remove(id);
    return answer;
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

  private remove(id: string): void {
    const index = this.all.findIndex((each) => each.id === id);
    if (index >= 0) {
      this.all.splice(index, 1);
      this.emitter.fire(undefined);
    }
  }

  /** Remember which version a question waits for. */
  private note(answer: Answer): void {
    const version = this.documentOf(answer)?.version;
    this.set(answer, version === undefined ? {} : { wants: version });
    this.look();
  }

  /** See what the daemon's state means for each answer. */
  private look(): void {
    const { status } = this.daemon;
    for (const answer of this.all) {
      if (answer.state === 'waiting') {
        const earlierOffered = answer.from === 'wait' && waitsLong(this.documentOf(answer), answer.wants, Date.now() - answer.asked);
        this.set(answer, { waitingFor: status?.short ?? 'starting', earlierOffered });
      } else if (answer.result && status) {
        const { uri, version } = answer.result.document;
        const now = status.documents.find((each) => each.uri === uri);
        if (!now || now.state === 'missing') {
          this.set(answer, { changed: true });
        } else if (now.version !== undefined) {
          this.set(answer, { changed: now.version !== version });
        }
      }
    }
  }

  private documentOf(answer: Answer): DocumentStatus | undefined {
    const documents = this.daemon.status?.documents ?? [];
    const folder = answer.about ? vscode.workspace.getWorkspaceFolder(vscode.Uri.parse(answer.about)) : undefined;
    return documents.find((each) => folder && each.uri.startsWith(`${folder.uri.toString()}/`)) ?? documents[0];
  }

  private set(answer: Answer, changes: Partial<Answer>): void {
    const differs = (Object.keys(changes) as (keyof Answer)[]).some((key) => answer[key] !== changes[key]);
    Object.assign(answer, changes);
    // Not of one that was removed.
    if (differs && this.all.includes(answer)) {
      this.emitter.fire(answer);
    }
  }
}

/** How many tokens to ask for when going on: four times as many, and never more than may be asked for. */
export function longer({ result }: Answer): number {
  return Math.min(MOST_NEW_TOKENS, 4 * Math.max(1, result?.tokens.generated ?? 1));
}

/** Whether an answer was cut, and asking for more tokens would make it longer. */
export function canGoOn({ result, maxNewTokens }: Answer): boolean {
  const generated = result?.tokens.generated ?? 0;
  // One that has got less than it asked for has met the end of the model's context.
  return result?.finishReason === 'length' && generated < MOST_NEW_TOKENS && generated >= (maxNewTokens ?? 0);
}

/**
 * Whether a question waits more than five seconds for a reading that an earlier version need not wait for.
 *
 * @param wants the version that it waits for; one that is cached already answers at once.
 */
export function waitsLong(document: DocumentStatus | undefined, wants: string | undefined, waited: number): boolean {
  if (!document?.cached || wants === undefined || document.cached.version === wants || document.state === 'ready') {
    return false;
  }
  return waited > PATIENCE_MS || (document.secondsLeft ?? 0) * 1000 > PATIENCE_MS;
}

function params({ question, id, maxNewTokens, from, selection, about }: Answer): AskParams {
  return {
    question,
    id,
    whileRefreshing: from,
    ...(maxNewTokens && { maxNewTokens }),
    ...(selection && { selection }),
    ...(about && { document: about }),
  };
}
