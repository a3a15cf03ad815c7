/** Where the daemon is looked for, in which order, and what is said where it is not. */

import * as assert from 'node:assert/strict';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { find, installCommand, isExecutable, places, upgradeCommand, type Host } from '../src/find';
import type { Case } from './help';

function host(files: string[], more: Partial<Host> = {}): Host {
  const here = new Set(files);
  return {
    platform: 'linux',
    env: { PATH: '/usr/bin:relative:/opt/bin' },
    home: '/home/me',
    isExecutable: (each) => here.has(each),
    ...more,
  };
}

function found(files: string[], { setting = '', interpreters = [] as string[], exclude = [] as string[] } = {}): string | undefined {
  const on = host(files);
  return find(on, places(on, setting, interpreters, exclude))?.command;
}

const [ONPATH, LOCAL] = ['/opt/bin/cag-daemon', '/home/me/.local/bin/cag-daemon'];
const UV = '/home/me/.local/share/uv/tools/cag-daemon/bin/cag-daemon';
const PIPX = '/home/me/.local/share/pipx/venvs/cag-daemon/bin/cag-daemon';
const VENV = '/home/me/project/.venv/bin/cag-daemon';
const python = { interpreters: ['/home/me/project/.venv/bin/python'] };

export const cases: Case[] = [
  [
    'find: PATH, then ~/.local/bin, uv, pipx, and at last the selected interpreter',
    () => {
      const order = [ONPATH, LOCAL, UV, PIPX, VENV];
      for (const [index, first] of order.entries()) {
        assert.equal(found(order.slice(index), python), first);
      }
      assert.equal(found([], python), undefined);
      return Promise.resolve();
    },
  ],
  [
    'find: where the setting is set, nothing else counts',
    () => {
      assert.equal(found([ONPATH, '/home/me/own/cag'], { setting: '~/own/cag' }), '/home/me/own/cag');
      assert.equal(found([ONPATH], { setting: '/nowhere' }), undefined);
      return Promise.resolve();
    },
  ],
  [
    'find: a relative entry of PATH, and a folder of an untrusted workspace, choose no program',
    () => {
      assert.equal(found(['relative/cag-daemon']), undefined);
      const on = host(['/home/me/project/bin/cag-daemon'], { env: { PATH: '/home/me/project/bin' } });
      assert.equal(find(on, places(on, '', [], [])) === undefined, false);
      assert.equal(find(on, places(on, '', [], ['/home/me/project'])), undefined);
      return Promise.resolve();
    },
  ],
  [
    'find: on Windows, by the names that programs have there',
    () => {
      const on = host(['D:\\home\\me\\AppData\\Roaming\\uv\\data\\tools\\cag-daemon\\Scripts\\cag-daemon.exe'], {
        platform: 'win32',
        env: { Path: 'C:\\Windows;relative', APPDATA: 'D:\\home\\me\\AppData\\Roaming' },
        home: 'D:\\home\\me',
      });
      assert.match(find(on, places(on, '', [], []))?.where ?? '', /^uv/);
      return Promise.resolve();
    },
  ],
  [
    'find: the command that installs it is made for what the host has',
    () => {
      assert.equal(installCommand(host(['/usr/bin/uv', '/usr/bin/pipx'])), 'uv tool install cag-daemon');
      assert.equal(installCommand(host(['/usr/bin/pipx'])), 'pipx install cag-daemon');
      assert.match(installCommand(host([])), /^python3 -m venv .* && ln -sf .* ~\/\.local\/bin\/$/);
      return Promise.resolve();
    },
  ],
  [
    'find: the command that upgrades it is that of who installed it',
    async () => {
      const scratch = await fs.promises.mkdtemp(path.join(os.tmpdir(), 'cag-'));
      const upgrade = async (...parts: string[]) => {
        const program = path.join(scratch, ...parts, 'cag-daemon');
        await fs.promises.mkdir(path.dirname(program), { recursive: true });
        await fs.promises.writeFile(program, '', { mode: 0o755 });
        const link = path.join(scratch, 'linked');
        await fs.promises.rm(link, { force: true });
        await fs.promises.symlink(program, link);
        assert.ok(isExecutable(link));
        return upgradeCommand(link);
      };
      assert.equal(await upgrade('uv', 'tools', 'cag-daemon', 'bin'), 'uv tool upgrade cag-daemon');
      assert.equal(await upgrade('pipx', 'venvs', 'cag-daemon', 'bin'), 'pipx upgrade cag-daemon');
      assert.match(await upgrade('.venv', 'bin'), /\.venv\/bin\/pip install --upgrade cag-daemon$/);
      assert.equal(isExecutable(scratch), false);
      await fs.promises.rm(scratch, { recursive: true });
    },
  ],
];
