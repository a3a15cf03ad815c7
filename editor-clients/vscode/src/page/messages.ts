/** What travels between the extension and the page in the side view. */

/** A piece of an answer's text; `citation`: the index of where it stands in the document. */
export interface Span {
  text: string;
  citation?: number;
}

export interface Shown {
  id: string;
  question: string;
  selection?: string;
  running: boolean;
  state: 'waiting' | 'answering' | 'done' | 'stopped' | 'failed';
  spans: Span[];
  /** Links, as `document.txt:13`. */
  places: string[];
  notes: Note[];
  about: string[];
}

export interface Note {
  kind: 'info' | 'warning' | 'error';
  text: string;
  action?: { command: string; title: string };
}

/** What the page is told. */
export type ToPage =
  { type: 'all'; answers: Shown[] } | { type: 'one'; answer: Shown } | { type: 'state'; state: string } | { type: 'draft'; draft: string };

/** What the page asks for. `id`: of an answer. */
export type FromPage =
  | { type: 'ready' }
  | { type: 'ask'; question: string }
  | { type: 'draft'; draft: string }
  | { type: 'cite'; id: string; citation: number }
  | { type: 'command'; command: string; id: string };
