/** The page in the side view: it draws what it is told, and says what is clicked. It keeps nothing of its own. */

import type { FromPage, Note, Shown, ToPage } from './messages';

const vscode = acquireVsCodeApi();
const list = byId('answers');
const form = byId('form') as HTMLFormElement;
const input = byId('question') as HTMLTextAreaElement;
const state = byId('state');
const NEAR_THE_END = 24; // pixels

function byId(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`there is no ${id}`);
  }
  return found;
}

function say(message: FromPage): void {
  vscode.postMessage(message);
}

function element<K extends keyof HTMLElementTagNameMap>(tag: K, kind: string, text = ''): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

function button(title: string, kind: string, action: () => void): HTMLButtonElement {
  const made = element('button', kind, title);
  made.type = 'button';
  made.addEventListener('click', action);
  return made;
}

/** A part of an answer. It is drawn anew only where what it shows has changed: what is in reach of a click stays as it is. */
interface Part {
  tag: 'h2' | 'p' | 'div';
  kind: string;
  of: (answer: Shown) => unknown;
  draw: (answer: Shown) => (Node | string)[];
}

const PARTS: Part[] = [
  { tag: 'h2', kind: 'question', of: ({ question }) => question, draw: ({ question }) => [question] },
  { tag: 'p', kind: 'selection', of: ({ selection }) => selection, draw: ({ selection }) => (selection ? [`about ${selection}`] : []) },
  { tag: 'p', kind: 'text', of: ({ spans, places }) => [spans, places], draw: drawText },
  { tag: 'p', kind: 'places', of: ({ places }) => places, draw: drawPlaces },
  { tag: 'div', kind: 'notes', of: ({ notes }) => notes, draw: (answer) => answer.notes.map((note) => drawNote(answer, note)) },
  { tag: 'p', kind: 'about', of: ({ about }) => about, draw: ({ about }) => (about.length > 0 ? [about.join(' · ')] : []) },
  { tag: 'div', kind: 'actions', of: ({ running, spans }) => [running, spans.length > 0], draw: drawActions },
];

interface Drawn {
  article: HTMLElement;
  parts: { element: HTMLElement; of: string }[];
}

const drawn = new Map<string, Drawn>();

/** The answer's article: that which is there, brought up to date, or a new one. */
function draw(answer: Shown): HTMLElement {
  const { article, parts } = drawn.get(answer.id) ?? begin(answer);
  article.className = `answer ${answer.state}`;
  article.setAttribute('aria-busy', String(answer.running));
  for (const [index, part] of PARTS.entries()) {
    const there = parts[index];
    const of = JSON.stringify(part.of(answer) ?? null);
    if (!there || there.of === of) {
      continue;
    }
    there.of = of;
    if (part.kind !== 'text' || !append(there.element, answer)) {
      there.element.replaceChildren(...part.draw(answer));
    }
    there.element.hidden = there.element.childNodes.length === 0;
  }
  return article;
}

function begin({ id }: Shown): Drawn {
  const article = element('article', 'answer');
  article.dataset.id = id;
  const parts = PARTS.map(({ tag, kind }) => {
    const made = element(tag, kind);
    made.hidden = true;
    return { element: made, of: '' };
  });
  article.append(...parts.map((part) => part.element));
  const made = { article, parts };
  drawn.set(id, made);
  return made;
}

/** Have a text that has only grown grow where it stands, so that what is selected in it stays selected; false: it has not. */
function append(text: HTMLElement, { spans, running }: Shown): boolean {
  const [span] = spans;
  const node = text.firstChild;
  if (!running || !span || spans.length > 1 || !(node instanceof Text) || !span.text.startsWith(node.data)) {
    return false;
  }
  node.appendData(span.text.slice(node.data.length));
  return true;
}

function drawText({ id, spans, places }: Shown): (Node | string)[] {
  return spans.map(({ text, citation }) => {
    if (citation === undefined) {
      return document.createTextNode(text);
    }
    const link = element('a', 'citation', text);
    link.href = '#';
    link.title = `Stands in ${places[citation] ?? 'the document'}`;
    link.addEventListener('click', (event) => {
      event.preventDefault();
      say({ type: 'cite', id, citation });
    });
    return link;
  });
}

function drawPlaces({ id, places }: Shown): Node[] {
  return places.map((place, citation) => button(place, 'place', () => say({ type: 'cite', id, citation })));
}

function drawNote({ id }: Shown, { kind, text, action }: Note): HTMLElement {
  const made = element('p', `note ${kind}`);
  made.append(element('span', 'words', text));
  if (action) {
    made.append(button(action.title, 'action', () => say({ type: 'command', command: action.command, id })));
  }
  return made;
}

function drawActions({ id, running, spans }: Shown): Node[] {
  const actions: [command: string, title: string][] = running
    ? [['stop', 'Stop']]
    : [
        ...(spans.length > 0 ? [['copyAnswer', 'Copy'] as [string, string]] : []),
        ['askAgain', 'Ask again'],
        ['copyReport', 'Copy for a bug report'],
      ];
  return actions.map(([command, title]) => button(title, 'quiet', () => say({ type: 'command', command, id })));
}

/** Change the page, and stay at its end where the reader was there. */
function following(change: () => void, always = false): void {
  const follow = always || list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_THE_END;
  change();
  if (follow) {
    list.scrollTop = list.scrollHeight;
  }
}

function show(message: ToPage): void {
  if (message.type === 'state') {
    state.textContent = message.state;
  } else if (message.type === 'draft') {
    input.value = message.draft;
    fit();
  } else if (message.type === 'all') {
    showAll(message.answers);
  } else if (drawn.has(message.answer.id)) {
    following(() => draw(message.answer));
  }
}

function showAll(answers: Shown[]): void {
  const grown = answers.some(({ id }) => !drawn.has(id));
  for (const [id, { article }] of drawn) {
    if (!answers.some((each) => each.id === id)) {
      article.remove();
      drawn.delete(id);
    }
  }
  // First, so that the list can be scrolled.
  document.body.classList.toggle('empty', answers.length === 0);
  following(() => {
    for (const [index, answer] of answers.entries()) {
      const article = draw(answer);
      // Not where it is in place: what is moved loses the focus.
      if (list.children[index] !== article) {
        list.insertBefore(article, list.children[index] ?? null);
      }
    }
  }, grown);
}

function fit(): void {
  input.style.height = 'auto';
  input.style.height = `${input.scrollHeight}px`;
}

window.addEventListener('message', ({ data }: MessageEvent<ToPage>) => show(data));
form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (input.value.trim()) {
    say({ type: 'ask', question: input.value });
    input.value = '';
    say({ type: 'draft', draft: '' });
    fit();
  }
});
input.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
input.addEventListener('input', () => {
  say({ type: 'draft', draft: input.value });
  fit();
});
if (navigator.platform.startsWith('Mac')) {
  byId('key').textContent = '⌘K Q';
}
say({ type: 'ready' });
