/** The extension sleeps until the configured document is found, or a command is used. */

import * as assert from 'node:assert/strict';
import * as vscode from 'vscode';
import type { Status } from '../src/protocol';
import { EXAMPLE, api, extension, sleep, untilReady, write, type Case } from './help';

interface Contributed {
  commands: { command: string; title: string }[];
  configuration: { properties: Record<string, { default: unknown }> };
}

export const cases: Case[] = [
  [
    'asleep: in a folder without the document nothing is started',
    async () => {
      await sleep(1500);
      const { daemon, items } = api();
      assert.equal(daemon.running, false);
      assert.equal(daemon.problem, undefined);
      assert.equal(items.language.text, 'cag-daemon is asleep');
    },
  ],
  [
    'every command that is contributed is there, and none has a name of the daemon’s',
    async () => {
      const { commands } = (extension().packageJSON as { contributes: Contributed }).contributes;
      const there = (await vscode.commands.getCommands(true)).filter((each) => each.startsWith('cagDaemon.'));
      assert.deepEqual(
        commands.map((each) => each.command).filter((each) => !there.includes(each)),
        [],
      );
      assert.ok(commands.every(({ command }) => command.startsWith('cagDaemon.')));
    },
  ],
  [
    'asleep: it wakes when the document comes, and tells its states on the way',
    async () => {
      const { daemon, items } = api();
      const told: Status[] = [];
      const seen: string[] = [];
      const listener = daemon.onStatus((status) => {
        seen.push(items.entry.text);
        if (status) {
          told.push(status);
        }
      });
      await write(EXAMPLE());
      const ready = await untilReady();
      listener.dispose();
      const states = told.map(({ state }) => state);
      assert.ok(states.includes('loading'), states.join());
      assert.equal(seen[0], '$(loading~spin) starting');
      assert.ok(
        seen.some((text) => /^\$\(loading~spin\) loading [1-9]\d? %$/.test(text)),
        seen.join(),
      );
      assert.match(ready.short, /^ready · \d+ of 3\.6k tokens$/);
      assert.equal(items.entry.text, `$(book) ${ready.short}`);
      assert.equal(items.language.text, `$(book) ${ready.short}`);
      assert.match((items.entry.tooltip as vscode.MarkdownString).value, /embedded on cpu, float32/);
    },
  ],
];
