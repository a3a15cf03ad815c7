/** The wire contract as this client uses it: docs/PROTOCOL.md. A test compares these tables with the daemon's own. */

import type { Location, Range } from 'vscode-languageclient';

export const PROTOCOL_VERSION = 1;

/** What a daemon's answer to `initialize` must list. */
export const FEATURES = ['ask', 'citations', 'locate', 'partial', 'previous', 'refresh', 'selection', 'short', 'status', 'unload'] as const;

export const METHOD = {
  ask: 'cag/ask',
  status: 'cag/status',
  refresh: 'cag/refresh',
  locate: 'cag/locate',
  unload: 'cag/unload',
  typing: 'cag/typing',
  partial: 'cag/partial',
  statusChanged: 'cag/statusChanged',
} as const;

export const STATES = ['starting', 'noDocument', 'loading', 'reading', 'ready', 'answering', 'unloaded', 'failed'] as const;

export const ERROR = { cancelled: -32800, cancelledByDaemon: -32802, failed: -32803 } as const;

/** The library's own codes: the connection ended before the reply, or there is none. */
export const CONNECTION_ERRORS = [-32097, -32099];

/** The largest answer that may be asked for. */
export const MOST_NEW_TOKENS = 4096;

export interface Experimental {
  protocolVersion?: number;
  features?: string[];
}

export interface Selection {
  uri: string;
  range: Range;
  text: string;
}

export interface AskParams {
  question: string;
  id: string;
  document?: string;
  selection?: Selection;
  maxNewTokens?: number;
  whileRefreshing?: 'wait' | 'previous';
}

/** A hint that nobody answers. */
export interface TypingParams {
  question: string;
  document?: string;
  selection?: Selection;
}

export interface Citation {
  answerRange: [number, number];
  location: Location;
  match: 'exact';
}

export interface AskResult {
  answer: string;
  finishReason: 'stop' | 'length';
  model: { name: string; quantization: string };
  document: { uri: string; version: string; tokens: number };
  snapshot: 'current' | 'previous';
  citations: Citation[];
  tokens: { cached: number; prompt: number; generated: number; drafted: number; accepted: number };
  milliseconds: { queued: number; firstToken: number; total: number };
  notice?: string;
}

export interface Partial {
  id: string;
  seq: number;
  text: string;
}

export interface DocumentStatus {
  uri: string;
  state: 'missing' | 'waiting' | 'reading' | 'ready' | 'failed';
  message?: string;
  reason?: string;
  version?: string;
  source: 'disk' | 'buffer';
  tokens?: number;
  read?: number;
  maxTokens?: number;
  bytes?: number;
  secondsLeft?: number;
  cached?: { version: string; tokens: number; computed: number };
  notice?: string;
}

export interface Status {
  state: (typeof STATES)[number];
  short: string;
  message: string;
  reason?: string;
  percent?: number;
  model?: { name: string; device: string; dtype: string; quantization: string; parameters: number; bytes: number; chunk: number };
  documents: DocumentStatus[];
  queue: number;
  unloadsInSeconds?: number;
  clients?: { name: string; documents: string[] }[];
}

export interface RefreshResult {
  document: { uri: string; version: string; tokens: number };
  tokens: { total: number; kept: number; computed: number };
  milliseconds: number;
}

export interface LocateResult {
  document: { uri: string; version: string };
  citations: Citation[];
}
