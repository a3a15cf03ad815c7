/** The daemon's life as the editor sees it: reading, unloading, failing, crashing, another document, not being there. */

import * as assert from 'node:assert/strict';
import * as childProcess from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import * as vscode from 'vscode';
import {
  EXAMPLE,
  api,
  ask,
  edit,
  env,
  file,
  open,
  popups,
  set,
  sleep,
  until,
  untilReady,
  untilStatus,
  write,
  type Case,
  type Popup,
} from './help';
import { menuItems } from '../src/menu';

const LATHE = 'Who donated the lathe?';

export const cases: Case[] = [
  [
    'life: settings take effect, and what is unset is the daemon’s own default again',
    async () => {
      for (const key of ['model', 'dtype', 'threads', 'refresh', 'maxNewTokens']) {
        await set(key, undefined);
      }
      await write(EXAMPLE());
      const status = await untilStatus('the embedded model', ({ state, model }) => state === 'ready' && model?.name === 'embedded', 60);
      assert.equal(status.model?.dtype, 'float32');
      assert.match((await ask(LATHE)).text, /Anselm Brandt/);
    },
  ],
  [
    'life: the document is read now; the model is unloaded, and the next question brings it back',
    async () => {
      await vscode.commands.executeCommand('cagDaemon.refresh');
      await vscode.commands.executeCommand('cagDaemon.unload');
      const status = await untilStatus('unloaded', ({ state }) => state === 'unloaded');
      assert.ok(menuItems(api().daemon).every(({ command }) => command !== 'unload'));
      assert.equal(api().items.entry.text, '$(circle-slash) unloaded');
      assert.equal(status.model, undefined);
      assert.match((await ask(LATHE)).text, /Anselm Brandt/);
    },
  ],
  [
    'life: a failure is seen, says the next step, and pops up once',
    async () => {
      const said = await popups(async () => {
        await set('model', '/nowhere/at/all');
        const status = await untilStatus('failed', ({ state }) => state === 'failed');
        assert.equal(status.reason, 'modelNotFound');
        assert.equal(api().items.entry.text, '$(error) failed');
        assert.ok(api().items.entry.backgroundColor);
        assert.equal(api().items.language.severity, vscode.LanguageStatusSeverity.Error);
        assert.deepEqual(api().items.language.command, { command: 'cagDaemon.modelSettings', title: 'Choose a Model' });
        assert.match((api().items.entry.tooltip as vscode.MarkdownString).value, /\[Choose a Model\]\(command:cagDaemon\.modelSettings\)/);
        assert.equal(menuItems(api().daemon)[0]?.command, 'modelSettings');
        const answer = await ask(LATHE);
        assert.equal(answer.state, 'failed');
        assert.match(answer.problem?.message ?? '', /\/nowhere\/at\/all/);
        await vscode.commands.executeCommand('cagDaemon.restart');
        await untilStatus('failed again', ({ state }) => state === 'failed');
        await sleep(300);
      });
      const failures = said.filter(({ kind }) => kind === 'error');
      assert.equal(failures.length, 1, JSON.stringify(said));
      assert.deepEqual(failures[0]?.items, ['Choose a Model', 'Try Again', 'Show Log']);
      await set('model', undefined);
      await untilReady();
      assert.equal(api().items.entry.backgroundColor, undefined);
    },
  ],
  [
    'life: a daemon that is killed comes back by itself, without a word; after too many times it is left alone, with one',
    async () => {
      const { daemon } = api();
      const said = await popups(
        async () => {
          for (let death = 1; death <= 4; death++) {
            const pid = await until('it runs', () => (daemon.running ? daemon.pid : undefined));
            process.kill(pid, 'SIGKILL');
            await until('its end is seen', () => daemon.pid !== pid);
            if (death <= 3) {
              await until('another one runs', () => daemon.running);
            }
          }
          await until('it is left alone', () => daemon.problem);
          await sleep(500);
          assert.equal(daemon.running, false);
          assert.equal(api().items.entry.text, '$(error) not running');
        },
        () => undefined,
      );
      assert.deepEqual(
        said.map(({ kind, items }) => [kind, items]),
        [['error', ['Restart', 'Show Log']]],
      );
      const [first, ...others] = menuItems(daemon).map(({ command }) => command);
      assert.equal(first, 'restart');
      assert.ok(!others.includes('restart') && !others.includes('refresh') && !others.includes('unload'));
      await vscode.commands.executeCommand('cagDaemon.unload');
      assert.equal(daemon.starting, false); // nothing is started only to be unloaded
      await vscode.commands.executeCommand('cagDaemon.restart');
      await untilReady();
      assert.match((await ask(LATHE)).text, /Anselm Brandt/);
    },
  ],
  [
    'life: a worker that is killed comes back; that is said once, however often it happens',
    async () => {
      const program = path.join(os.homedir(), '.local', 'bin', 'cag-daemon');
      const worker = () => {
        const told = JSON.parse(childProcess.execFileSync(program, ['status', '--json'], { encoding: 'utf8' })) as {
          models: { pid: number }[];
        };
        return told.models[0]?.pid;
      };
      const said = await popups(async () => {
        for (let death = 1; death <= 2; death++) {
          await untilReady();
          process.kill(Number(worker()), 'SIGKILL');
          await untilStatus('its end is seen', ({ state }) => state !== 'ready');
        }
        await untilReady();
      });
      assert.deepEqual(
        said.map(({ kind, items }) => [kind, items]),
        [['warning', ['Show Log']]],
      );
      assert.match(said[0]?.message ?? '', /signal 9 .*it is being started again\.$/);
      assert.match((await ask(LATHE)).text, /Anselm Brandt/);
    },
  ],
  [
    'life: another file is the document from now on, with its unsaved changes, and without a restart',
    async () => {
      const { pid } = api().daemon;
      await write('# Minutes\n\nThe kettle was repaired by Berta Quist on Monday.\n', 'minutes.md');
      const editor = await open('minutes.md');
      await edit(editor, (builder) => builder.replace(new vscode.Range(2, 0, 2, 99), 'The kettle was repaired by Carla Nuss on Monday.'));
      await vscode.commands.executeCommand('cagDaemon.useAsDocument', editor.document.uri);
      const written = JSON.parse(fs.readFileSync(file('.vscode/settings.json'), 'utf8')) as Record<string, unknown>;
      assert.equal(written['cag.document'], 'minutes.md');
      await untilStatus(
        'it is the document',
        ({ documents }) => documents[0]?.uri.endsWith('minutes.md') && documents[0].source === 'buffer',
      );
      assert.match((await ask('Who repaired the kettle?')).text, /Carla Nuss/);
      assert.equal(api().daemon.pid, pid);
      await vscode.commands.executeCommand('workbench.action.files.revert');
      const old = await ask('Who repaired the kettle?');
      await vscode.workspace.getConfiguration('cag').update('document', undefined, vscode.ConfigurationTarget.Workspace);
      await untilStatus('the first one again', ({ documents, state }) => state === 'ready' && documents[0]?.uri.endsWith('document.txt'));
      assert.match((await ask(LATHE)).text, /Anselm Brandt/);
      // An answer of the other one is told apart.
      assert.ok(old.changed);
      await write('# Minutes\n\nNothing of it is left.\n', 'minutes.md');
      const said = await popups(() => vscode.commands.executeCommand('cagDaemon.cite', old.id, 0) as Promise<unknown>);
      assert.match(said[0]?.message ?? '', /^minutes\.md is no longer the document/);
    },
  ],
  [
    'life: a document that is gone is said to be missing, with a file to choose',
    async () => {
      fs.rmSync(file('document.txt'));
      await untilStatus('no document', ({ state }) => state === 'noDocument');
      assert.equal(api().items.entry.text, '$(book) no document');
      assert.deepEqual(menuItems(api().daemon)[0], { command: 'chooseDocument', label: '$(lightbulb) Choose a File' });
      const answer = await ask(LATHE);
      assert.equal(answer.problem?.reason, 'documentNotFound');
      const said = await popups(() => vscode.commands.executeCommand('cagDaemon.openDocument') as Promise<unknown>);
      assert.deepEqual(said[0]?.items, ['Choose a File']);
      const empty = await popups(async () => {
        await write('');
        await untilStatus('it is empty', ({ reason }) => reason === 'documentEmpty');
        await sleep(200);
      });
      assert.deepEqual(empty, []); // it is being begun
      await write(EXAMPLE());
      await untilReady();
    },
  ],
  [
    'life: debug information has versions, status and what the doctor finds',
    async () => {
      await vscode.commands.executeCommand('cagDaemon.debugInformation');
      const text = vscode.window.activeTextEditor?.document.getText() ?? '';
      for (const part of [
        /^# cag-daemon: debug information/,
        /- program: .*cag-daemon/,
        /"state": "ready"/,
        /transformers +\d/,
        /protocol 1/,
      ]) {
        assert.match(text, part);
      }
      await vscode.commands.executeCommand('workbench.action.revertAndCloseActiveEditor');
    },
  ],
  [
    'life: a daemon that is not installed: one message that says where it was looked for, on which host, and the next step',
    async () => {
      await withoutDaemon('/nowhere/cag-daemon', async (said) => {
        assert.match(said.message, /^The setting cag\.executable names \/nowhere\/cag-daemon, which is no program on .+: correct it/);
        const answer = await ask(LATHE);
        assert.equal(answer.problem?.message, said.message);
      });
      const home = env('HOME');
      fs.renameSync(`${home}/.local/bin/cag-daemon`, `${home}/.local/bin/hidden`);
      try {
        await withoutDaemon('', (said) => {
          assert.match(
            said.message,
            /^cag-daemon was not found on .+; looked in PATH, ~\/\.local\/bin, uv's folders, pipx's folders.*\. Install it with: /,
          );
          assert.deepEqual(said.items, ['Copy Command', 'How to Install', 'Settings']);
          return Promise.resolve();
        });
      } finally {
        fs.renameSync(`${home}/.local/bin/hidden`, `${home}/.local/bin/cag-daemon`);
      }
      await vscode.commands.executeCommand('cagDaemon.restart');
      await untilReady();
    },
  ],
  [
    'life: a daemon of another protocol, of none, or that ends at once: one sentence with the next step',
    async () => {
      const upgrade = / install --upgrade cag-daemon$/;
      for (const [kind, words] of [
        ['older', /speaks no version of the protocol that is known here.* upgrade it with: /],
        ['newer', /speaks version 99 of the protocol.* update the extension, with: cag-daemon client vscode --install$/],
        ['poorer', /is older than this extension; upgrade it with: /],
        ['broken', /could not be started .* See the log\.$/],
      ] as const) {
        await withoutDaemon(env('TEST_FAKE_DAEMON').replace('KIND', kind), (said) => {
          assert.match(said.message, words);
          assert.equal(upgrade.test(said.message), kind === 'older' || kind === 'poorer');
          return Promise.resolve();
        });
      }
      const { daemon } = api();
      await set('executable', 'bin/cag-daemon');
      await until('it is refused', () => /must be an absolute path, and is bin\/cag-daemon/.test(daemon.problem?.message ?? ''));
      await set('executable', undefined);
      await untilReady();
    },
  ],
  [
    'life: a daemon that hangs while it starts is seen to start, can be stopped, and makes way for another',
    async () => {
      const { daemon, items, answers } = api();
      await set('executable', env('TEST_FAKE_DAEMON').replace('KIND', 'hung'));
      const hung = await until('it hangs', () => (daemon.starting ? daemon.pid : undefined));
      assert.equal(items.entry.text, '$(loading~spin) starting');
      const asked = ask(LATHE);
      await until('a question waits for it', () => answers.last?.state === 'waiting');
      answers.stop();
      assert.equal((await asked).state, 'stopped');
      const other = ask(LATHE);
      const said = await popups(async () => {
        await set('executable', undefined);
        assert.match((await other).text, /Anselm Brandt/); // what waited goes on with the daemon that does start
      });
      assert.deepEqual(said, []);
      assert.throws(() => process.kill(hung, 0));
      await untilReady();
    },
  ],
  [
    'the rest: the menu by the daemon’s state, the walkthrough and the document',
    async () => {
      const offered = menuItems(api().daemon).map(({ command }) => command);
      assert.deepEqual(offered.slice(0, 5), ['ask', 'openDocument', 'chooseDocument', 'refresh', 'unload']);
      const there = await vscode.commands.getCommands(true);
      assert.deepEqual(
        offered.filter((command) => !there.includes(`cagDaemon.${command}`)),
        [],
      );
      await vscode.commands.executeCommand('cagDaemon.walkthrough');
      const tabs = () => vscode.window.tabGroups.all.flatMap((group) => group.tabs.map(({ label }) => label));
      await until('the walkthrough is open', () => tabs().some((label) => /Walkthrough|Welcome|Ask your document/.test(label)));
      await vscode.commands.executeCommand('cagDaemon.openDocument');
      assert.ok(vscode.window.activeTextEditor?.document.fileName.endsWith('document.txt'));
    },
  ],
];

/** Leave an answer under way: the editor is killed from outside next. */
export async function leaveAnswering(): Promise<void> {
  await set('model', env('TEST_SLOW_MODEL'));
  await set('dtype', 'float32');
  await set('maxNewTokens', 4096);
  await write('The cat sleeps in a copper kettle.\n');
  void ask('What?');
  await until('it comes', () => api().answers.last?.state === 'answering', 60);
}

/** Start with that executable, which fails; there is exactly one message about it, also after a second try. */
async function withoutDaemon(executable: string, check: (said: Popup) => Promise<void>): Promise<void> {
  const said = await popups(async () => {
    await set('executable', executable || undefined);
    await until('it does not run', () => !api().daemon.running && api().daemon.problem);
    await ask(LATHE);
    await sleep(200);
  });
  const [only, ...more] = said;
  assert.ok(only, 'nothing was said');
  assert.deepEqual(more, []);
  assert.equal(api().items.entry.text, '$(error) not running');
  await check(only);
}
