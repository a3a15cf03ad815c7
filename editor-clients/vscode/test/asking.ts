/** Asking, and trusting what comes: streaming, selections, edits, citations, cut answers, earlier versions, reports. */

import * as assert from 'node:assert/strict';
import * as vscode from 'vscode';
import { waitsLong, type Answer } from '../src/answers';
import { shown } from '../src/shown';
import { EXAMPLE, api, ask, edit, env, open, popups, set, sleep, until, untilReady, untilStatus, write, type Case } from './help';

const LATHE = 'Who donated the lathe?';
const DONOR = 'The lathe was donated by a retired clockmaker named Anselm Brandt.';

function notes(answer: Answer): string {
  return shown(answer)
    .notes.map(({ text }) => text)
    .join('; ');
}

export const cases: Case[] = [
  [
    'ask: the answer streams, and says from what it comes',
    async () => {
      const states: string[] = [];
      const texts: string[] = [];
      const listener = api().answers.onChange((answer) => {
        if (answer) {
          states.push(answer.state);
          texts.push(answer.text);
        }
      });
      const answer = await ask(LATHE);
      listener.dispose();
      assert.equal(answer.text, DONOR);
      assert.equal(answer.state, 'done');
      assert.ok(states.indexOf('answering') >= 0 && states.indexOf('answering') < states.indexOf('done'), states.join());
      const partial = texts.filter((text) => text && text !== DONOR);
      assert.ok(partial.length > 2 && partial.every((text) => DONOR.startsWith(text)), partial.join('|'));
      const page = shown(answer);
      assert.deepEqual(page.spans, [{ text: DONOR, citation: 0 }]);
      assert.deepEqual(page.places, ['document.txt:11']);
      assert.match(page.about.join(' · '), /^embedded model, a stand-in for a real Mistral · version [0-9a-f]{7} · \d+\.\d s$/);
      assert.equal(notes(answer), '');
    },
  ],
  [
    'ask: about a selection, which goes along with its place',
    async () => {
      const editor = await open('notes.md');
      const document = editor.document;
      const start = document.getText().indexOf('Who donated');
      editor.selection = new vscode.Selection(document.positionAt(start), document.positionAt(start + LATHE.length));
      const answer = await vscode.commands.executeCommand<Answer>('cagDaemon.askSelection', 'Who donated the lathe?');
      assert.deepEqual(answer.selection, {
        uri: document.uri.toString(),
        range: { start: { line: 2, character: 0 }, end: { line: 2, character: LATHE.length } },
        text: LATHE,
      });
      assert.equal(shown(answer).selection, 'notes.md:3');
      assert.equal(answer.state, 'done');
      assert.equal(answer.about, document.uri.toString());
    },
  ],
  [
    'ask: what is typed is told to a daemon that wants to hear it',
    async () => {
      const { answers, daemon } = api();
      const told: unknown[] = [];
      const hint = daemon.hint.bind(daemon);
      daemon.hint = (feature, method, params) => {
        told.push([feature, method, params]);
        hint(feature, method, params);
      };
      try {
        const about = vscode.Uri.file(env('TEST_EXAMPLE')).toString();
        answers.typing('Who', { about });
        answers.typing('  ');
        assert.deepEqual(told, [['typing', 'cag/typing', { question: 'Who', document: about }]]);
      } finally {
        daemon.hint = hint;
      }
      assert.equal((await ask(LATHE)).text, DONOR);
    },
  ],
  [
    'trust: a citation jumps to its words',
    async () => {
      const answer = await ask(LATHE);
      const [citation] = answer.result?.citations ?? [];
      assert.ok(answer.result && citation);
      await vscode.commands.executeCommand('workbench.action.closeAllEditors');
      await cite(answer);
      const editor = vscode.window.activeTextEditor;
      assert.ok(editor);
      assert.ok(editor.document.fileName.endsWith('document.txt'));
      const at = editor.document.offsetAt(editor.selection.active);
      assert.equal(editor.document.getText().slice(at - DONOR.length, at), DONOR);
    },
  ],
  [
    'trust: an unsaved edit counts; the answer before it is marked, until the edit is taken back',
    async () => {
      const before = await ask(LATHE);
      const editor = await open();
      const place = editor.document.positionAt(editor.document.getText().indexOf('Anselm Brandt'));
      await edit(editor, (builder) => builder.replace(new vscode.Range(place, place.translate(0, 'Anselm Brandt'.length)), 'Berta Quist'));
      const after = await ask(LATHE);
      assert.match(after.text, /Berta Quist/);
      assert.ok(editor.document.isDirty);
      await until('the earlier answer is marked', () => before.changed);
      assert.match(notes(before), /the document has changed since/);
      assert.equal(after.changed, false);
      await vscode.commands.executeCommand('undo');
      await until('the mark has gone', () => before.changed === false);
      await until('the other one is marked', () => after.changed);
      assert.match((await ask(LATHE)).text, /Anselm Brandt/);
    },
  ],
  [
    'trust: after an edit a citation goes to where its words are now, or says that they have gone',
    async () => {
      const answer = await ask(LATHE);
      const editor = await open();
      await edit(editor, (builder) => builder.insert(new vscode.Position(0, 0), 'A new first line. 🏮\n\n'));
      await cite(answer);
      const at = editor.document.offsetAt(editor.selection.active);
      assert.equal(editor.document.getText().slice(at - DONOR.length, at), DONOR);
      assert.equal(editor.selection.active.line, 12);
      await edit(editor, (builder) => builder.replace(new vscode.Range(0, 0, 99, 0), 'Nothing of it is left.\n'));
      const said = await popups(() => cite(answer));
      assert.match(said[0]?.message ?? '', /^These words stand in document\.txt no longer/);
      await vscode.commands.executeCommand('workbench.action.files.revert');
      await untilReady();
    },
  ],
  [
    'ask: a cut answer says so, and goes on longer',
    async () => {
      await set('maxNewTokens', 4);
      const cut = await ask(LATHE);
      assert.equal(cut.result?.finishReason, 'length');
      assert.match(notes(cut), /^cut at 4 tokens/);
      const count = api().answers.all.length;
      const longer = await vscode.commands.executeCommand<Answer>('cagDaemon.goOn', cut.id);
      assert.equal(longer.maxNewTokens, 16);
      assert.equal(cut.maxNewTokens, undefined); // the daemon's own setting counts
      assert.ok(longer.text.startsWith(cut.text.trimEnd()) && longer.text.length > cut.text.length, `${cut.text} → ${longer.text}`);
      assert.equal(api().answers.all.length, count);
      assert.equal(api().answers.find(cut.id), undefined);
      await set('maxNewTokens', undefined);
    },
  ],
  [
    'ask: again, and with nothing asked the commands do nothing',
    async () => {
      const first = await ask('When does the workshop open?');
      const again = await vscode.commands.executeCommand<Answer>('cagDaemon.askAgain', first.id);
      assert.equal(again.text, first.text);
      assert.notEqual(again.id, first.id);
      await vscode.commands.executeCommand('cagDaemon.clear');
      assert.deepEqual(api().answers.all, []);
      await vscode.env.clipboard.writeText('as it was');
      for (const name of ['stop', 'askAgain', 'goOn', 'answerFromEarlier', 'copyReport', 'copyAnswer', 'cite']) {
        assert.equal(await vscode.commands.executeCommand(`cagDaemon.${name}`, first.id, 0), undefined, name);
      }
      assert.deepEqual(api().answers.all, []);
      assert.equal(await vscode.env.clipboard.readText(), 'as it was');
    },
  ],
  [
    'ask: a setting out of its limits is told, and the question is answered all the same',
    async () => {
      const said = await popups(async () => {
        await set('maxNewTokens', 100_000);
        await sleep(200);
        assert.equal((await ask(LATHE)).text, DONOR);
        await set('maxNewTokens', undefined);
      });
      assert.match(said.map(({ message }) => message).join(), /maxNewTokens/);
    },
  ],
  [
    'ask: going on that fails leaves the answer that was cut',
    async () => {
      await set('maxNewTokens', 4);
      const cut = await ask(LATHE);
      const going = vscode.commands.executeCommand<Answer>('cagDaemon.goOn', cut.id);
      api().answers.stop();
      assert.equal((await going).state, 'stopped');
      const { all } = api().answers;
      assert.deepEqual(all.slice(-2), [cut, await going]);
      await set('maxNewTokens', undefined);
      await untilReady();
    },
  ],
  [
    'trust: of several places the longest is gone to; a part of the words is said to be one',
    async () => {
      await write('Anselm Brandt is a clockmaker.\n\nThe lathe was donated by a retired clockmaker named Anselm Brandt.\n');
      await untilReady();
      const answer = await ask(LATHE);
      assert.equal(answer.text, DONOR);
      const editor = await open();
      await edit(editor, (builder) =>
        builder.replace(new vscode.Range(2, 0, 2, 99), 'A donation: by a retired clockmaker named Anselm Brandt.'),
      );
      const said = await popups(() => cite(answer));
      assert.equal(editor.selection.active.line, 2);
      assert.match(said[0]?.message ?? '', /^Only a part of these words still stands in document\.txt/);
      await vscode.commands.executeCommand('workbench.action.files.revert');
      await write(EXAMPLE());
      await untilReady();
    },
  ],
  [
    'trust: a report has question, answer, versions and model, and nothing else of the document',
    async () => {
      const answer = await ask(LATHE);
      await vscode.commands.executeCommand('cagDaemon.copyReport', answer.id);
      const report = await vscode.env.clipboard.readText();
      for (const part of [LATHE, DONOR, answer.result?.document.version ?? '-', 'model: embedded', 'protocol 1', vscode.version]) {
        assert.ok(report.includes(part), `${part} is not in ${report}`);
      }
      const others = EXAMPLE()
        .split(/(?<=\.)\s/)
        .filter((sentence) => sentence.length > 20 && !DONOR.includes(sentence.trim()));
      assert.ok(others.length > 10 && others.every((sentence) => !report.includes(sentence.trim())));
      assert.ok(!report.includes(vscode.workspace.workspaceFolders?.[0]?.uri.fsPath ?? '-'));
      await vscode.commands.executeCommand('cagDaemon.copyAnswer', answer.id);
      assert.equal(await vscode.env.clipboard.readText(), DONOR);
    },
  ],
  [
    'ask: a slow answer can be stopped, and what had come stays',
    async () => {
      await set('model', env('TEST_SLOW_MODEL'));
      await set('dtype', 'float32');
      await set('threads', 1);
      await set('refresh', 'ask');
      await write('The cat sleeps in a copper kettle.\n');
      await untilStatus('the slow model', ({ state, model }) => state === 'ready' && model !== undefined && model.name !== 'embedded', 60);
      await vscode.commands.executeCommand('cagDaemon.clear');
      const asked = vscode.commands.executeCommand<Answer>('cagDaemon.ask', 'What?');
      const answer = await until('a question is asked', () => api().answers.last);
      await until('it comes', () => answer.state === 'answering' && answer.text.length > 3, 60);
      assert.ok(shown(answer).running);
      assert.equal(api().items.entry.text, '$(comment) answering');
      await vscode.commands.executeCommand('cagDaemon.stop');
      assert.equal(await asked, answer);
      assert.equal(answer.state, 'stopped');
      assert.ok(answer.text.length > 3);
      assert.equal(notes(answer), 'stopped');
      await untilReady();
    },
  ],
  [
    'ask: where the document would take long to read, the earlier version is offered and answers',
    async () => {
      await set('maxNewTokens', 4);
      await write(EXAMPLE().repeat(12));
      const { short } = await untilStatus(
        'the change is known',
        ({ state, documents }) => state === 'ready' && documents[0]?.state === 'waiting',
      );
      assert.match(short, / · text changed$/);
      const waiting = vscode.commands.executeCommand<Answer>('cagDaemon.ask', 'What?');
      const first = await until('it is offered', () => (api().answers.last?.earlierOffered ? api().answers.last : undefined), 20);
      assert.equal(shown(first).notes[0]?.action?.title, 'Answer from the earlier version');
      const words = /^\$\(loading~spin\) reading [\d,]+ of [\d,]+ tokens, about \d+ (s|min)$/;
      await until('the status bar says how far the reading is', () => words.test(api().items.entry.text));
      assert.match(notes(first), /^Reading [\d,]+ of [\d,]+ tokens/);
      const answer = await vscode.commands.executeCommand<Answer>('cagDaemon.answerFromEarlier', first.id);
      assert.equal((await waiting).state, 'stopped');
      assert.equal(answer.state, 'done', answer.problem?.message);
      assert.equal(answer.result?.snapshot, 'previous');
      assert.match(notes(answer), /answered from an earlier version/);
      assert.doesNotMatch(notes(answer), /good for/);
      const result = { ...answer.result, notice: 'The document has 2,900 tokens, and the model is good for about 1,000' };
      assert.match(notes({ ...answer, result }), /is good for about 1,000/);
      await set('maxNewTokens', undefined);
      await write('The cat sleeps in a copper kettle.\n');
    },
  ],
  [
    'ask: a question under way when the daemon is killed ends with a sentence',
    async () => {
      const asked = ask('What?');
      await until('it comes', () => api().answers.last?.state === 'answering', 60);
      const { pid } = api().daemon;
      assert.ok(pid);
      process.kill(pid, 'SIGKILL');
      const answer = await asked;
      assert.equal(answer.state, 'failed');
      assert.equal(answer.problem?.message, 'The daemon ended before it had answered; try again.');
      assert.equal(notes(answer), answer.problem.message);
    },
  ],
  [
    'ask: an earlier version is offered only where there is one, and the wait is long',
    () => {
      const document = {
        uri: 'file:///d',
        state: 'reading',
        source: 'disk',
        version: 'b',
        secondsLeft: 6,
        cached: { version: 'a', tokens: 1, computed: 1 },
      } as const;
      assert.equal(waitsLong(document, 'b', 0), true);
      assert.equal(waitsLong({ ...document, secondsLeft: 4 }, 'b', 0), false);
      assert.equal(waitsLong({ ...document, secondsLeft: 4 }, 'b', 5100), true);
      assert.equal(waitsLong({ ...document, cached: { version: 'b', tokens: 1, computed: 1 } }, 'b', 5100), false);
      assert.equal(waitsLong(document, 'a', 5100), false); // it came before the change: its version is cached
      assert.equal(waitsLong(document, undefined, 5100), false);
      assert.equal(waitsLong({ uri: 'file:///d', state: 'reading', source: 'disk', version: 'b', secondsLeft: 6 }, 'b', 5100), false);
      return Promise.resolve();
    },
  ],
];

/** Click the first citation of an answer in the side view. */
async function cite(answer: Answer): Promise<void> {
  const { result } = answer;
  const [citation] = result?.citations ?? [];
  assert.ok(result && citation);
  await vscode.commands.executeCommand('cagDaemon.cite', answer.id, 0);
  await sleep(50);
}
