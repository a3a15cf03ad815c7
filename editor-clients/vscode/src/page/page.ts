/** The page in the side view: it draws what it is told, and says what is clicked. It keeps nothing of its own but a draft. */

import type { FromPage, Note, Shown, ToPage } from './messages';

const vscode = acquireVsCodeApi<{ draft: string }>();
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

function draw(answer: Shown): HTMLElement {
  const made = element('article', `answer ${answer.state}`);
  made.dataset.id = answer.id;
  made.append(element('h2', 'question', answer.question));
  if (answer.selection) {
    made.append(element('p', 'selection', `about ${answer.selection}`));
  }
  const text = element('p', 'text');
  for (const span of answer.spans) {
    const { citation } = span;
    if (citation === undefined) {
      text.append(span.text);
      continue;
    }
    const link = element('a', 'citation', span.text);
    link.href = '#';
    link.title = `Stands in ${answer.places[citation] ?? 'the document'}`;
    link.addEventListener('click', (event) => {
      event.preventDefault();
      say({ type: 'cite', id: answer.id, citation });
    });
    text.append(link);
  }
  if (answer.spans.length > 0) {
    made.append(text);
  }
  if (answer.places.length > 0) {
    const places = element('p', 'places');
    for (const [citation, place] of answer.places.entries()) {
      places.append(button(place, 'place', () => say({ type: 'cite', id: answer.id, citation })));
    }
    made.append(places);
  }
  made.append(...answer.notes.map((note) => drawNote(answer, note)));
  if (answer.about.length > 0) {
    made.append(element('p', 'about', answer.about.join(' · ')));
  }
  made.append(drawActions(answer));
  return made;
}

function drawNote(answer: Shown, { kind, text, action }: Note): HTMLElement {
  const made = element('p', `note ${kind}`);
  made.append(element('span', 'words', text));
  if (action) {
    made.append(button(action.title, 'action', () => say({ type: 'command', command: action.command, id: answer.id })));
  }
  return made;
}

function drawActions(answer: Shown): HTMLElement {
  const actions: [string, string][] = answer.running
    ? [['stop', 'Stop']]
    : [
        ...(answer.spans.length > 0 ? ([['copyAnswer', 'Copy']] as [string, string][]) : []),
        ['askAgain', 'Ask again'],
        ['copyReport', 'Copy for a bug report'],
      ];
  const made = element('div', 'actions');
  made.append(...actions.map(([command, title]) => button(title, 'quiet', () => say({ type: 'command', command, id: answer.id }))));
  return made;
}

/** Change the page, and stay at its end where the reader was there. */
function following(change: () => void): void {
  const follow = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_THE_END;
  change();
  if (follow) {
    list.scrollTop = list.scrollHeight;
  }
}

function show(message: ToPage): void {
  if (message.type === 'state') {
    state.textContent = message.state;
    state.classList.toggle('busy', message.busy);
  } else if (message.type === 'all') {
    following(() => list.replaceChildren(...message.answers.map(draw)));
    document.body.classList.toggle('empty', message.answers.length === 0);
  } else {
    const before = [...list.children].find((each) => each instanceof HTMLElement && each.dataset.id === message.answer.id);
    following(() => before?.replaceWith(draw(message.answer)));
  }
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
    vscode.setState({ draft: '' });
    fit();
    list.scrollTop = list.scrollHeight;
  }
});
input.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
input.addEventListener('input', () => {
  vscode.setState({ draft: input.value });
  fit();
});
if (navigator.platform.startsWith('Mac')) {
  byId('key').textContent = '⌘K Q';
}
input.value = vscode.getState()?.draft ?? '';
fit();
say({ type: 'ready' });
