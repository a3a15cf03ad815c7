/** An answer in the words that are shown, so that the page only draws. */

import { canGoOn, longer, type Answer } from './answers';
import { remedy } from './errors';
import { MOST_NEW_TOKENS } from './protocol';
import type { Note, Shown, Span } from './page/messages';

export function shown(answer: Answer): Shown {
  const { id, question, state, selection } = answer;
  return {
    id,
    question,
    state,
    running: state === 'waiting' || state === 'answering',
    spans: spans(answer),
    places: answer.result?.citations.map(({ location }) => `${nameOf(location.uri)}:${location.range.start.line + 1}`) ?? [],
    notes: notes(answer),
    about: about(answer),
    ...(selection && { selection: `${nameOf(selection.uri)}:${lines(selection.range)}` }),
  };
}

/** The text, cut where citations begin and end. */
function spans({ text, result }: Answer): Span[] {
  const found: Span[] = [];
  let at = 0;
  for (const [citation, { answerRange }] of (result?.citations ?? []).entries()) {
    const [start, end] = answerRange;
    if (start > at) {
      found.push({ text: text.slice(at, start) });
    }
    found.push({ text: text.slice(start, end), citation });
    at = end;
  }
  return at < text.length ? [...found, { text: text.slice(at) }] : found;
}

function notes(answer: Answer): Note[] {
  const { state, result, problem } = answer;
  const found: Note[] = [];
  if (state === 'waiting') {
    found.push({
      kind: 'info',
      text: answer.waitingFor ? `${answer.waitingFor[0]?.toUpperCase()}${answer.waitingFor.slice(1)} …` : 'Waiting …',
      ...(answer.earlierOffered && { action: { command: 'answerFromEarlier', title: 'Answer from the earlier version' } }),
    });
  }
  if (state === 'stopped') {
    found.push({ kind: 'info', text: 'stopped' });
  }
  if (problem) {
    const action = remedy(problem.reason);
    found.push({ kind: 'error', text: problem.message, ...(action && { action }) });
  }
  if (result?.finishReason === 'length') {
    const cut = `cut at ${count(result.tokens.generated)} tokens`;
    found.push(
      canGoOn(answer)
        ? { kind: 'warning', text: cut, action: { command: 'goOn', title: `Go on, up to ${count(longer(answer))}` } }
        : { kind: 'warning', text: result.tokens.generated < MOST_NEW_TOKENS ? `${cut}: the document leaves no room for more` : cut },
    );
  }
  if (result?.snapshot === 'previous') {
    found.push({ kind: 'warning', text: 'answered from an earlier version' });
  }
  if (answer.changed && result?.snapshot !== 'previous') {
    found.push({ kind: 'warning', text: 'the document has changed since', action: { command: 'askAgain', title: 'Ask again' } });
  }
  if (result?.notice) {
    found.push({ kind: 'warning', text: result.notice });
  }
  if (result?.citations.length === 0) {
    found.push({ kind: 'info', text: 'not found word for word in the document' });
  }
  return found;
}

function about({ result }: Answer): string[] {
  if (!result) {
    return [];
  }
  const { name, quantization } = result.model;
  const model = name === 'embedded' ? 'embedded model, a stand-in for a real Mistral' : name;
  return [
    quantization === 'none' ? model : `${model} (${quantization})`,
    `version ${result.document.version.slice(0, 7)}`,
    duration(result.milliseconds.total),
  ];
}

export function duration(milliseconds: number): string {
  const seconds = milliseconds / 1000;
  if (seconds < 10) {
    return `${seconds.toFixed(1)} s`;
  }
  return seconds < 60 ? `${Math.round(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export function count(tokens: number): string {
  return tokens.toLocaleString('en-US');
}

function nameOf(uri: string): string {
  return decodeURIComponent(uri.split(/[?#]/)[0]?.split('/').at(-1) ?? uri);
}

function lines({ start, end }: { start: { line: number }; end: { line: number; character: number } }): string {
  const last = end.character === 0 && end.line > start.line ? end.line - 1 : end.line;
  return start.line === last ? `${start.line + 1}` : `${start.line + 1}–${last + 1}`;
}
