// A real VS Code (code-server's) with a real browser, both headless, in folders of their own, offline.
// env: CAG_EDITORS (the folder that .ci/editors fills), HOME and XDG folders of the test, PICTURES (a folder)
import { spawn, execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';

const { env } = process;
const EDITORS = env.CAG_EDITORS;
const VSCODE = path.join(EDITORS, 'code-server/node_modules/code-server');
const CHROMIUM = [
  ...['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'],
  ...['--disable-component-update', '--disable-sync'],
];
const { chromium } = createRequire(path.join(EDITORS, 'playwright/package.json'))('playwright-core');

export const settings = {
  'workbench.startupEditor': 'none',
  'telemetry.telemetryLevel': 'off',
  'extensions.autoCheckUpdates': false,
  'extensions.autoUpdate': false,
  'extensions.ignoreRecommendations': true,
  'chat.disableAIFeatures': true,
  'workbench.enableExperiments': false,
  'workbench.secondarySideBar.defaultVisibility': 'hidden',
  'workbench.tips.enabled': false,
  'update.mode': 'none',
  'git.enabled': false,
  'files.autoSave': 'off',
};

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/**
 * Start VS Code on a folder and hand its page to `use`; whatever happens, nothing of it is left.
 *
 * @param options.entry: `window`: as a user has it, with options.vsix installed; `tests`: the server that takes tests.
 * @param options.payload: of the page, as [key, value] pairs.
 */
export async function withCode({ entry, folder, vsix, payload = [], trustAll = true }, use) {
  const data = path.join(env.HOME, 'code');
  const places = { user: path.join(data, 'user'), extensions: path.join(data, 'extensions'), browser: path.join(data, 'browser') };
  fs.mkdirSync(path.join(places.user, 'User'), { recursive: true });
  // Where a remote window has the settings of its host: the extension's own are of that scope.
  const machineFile = path.join(entry === 'tests' ? path.join(data, 'server/data') : places.user, 'Machine/settings.json');
  fs.mkdirSync(path.dirname(machineFile), { recursive: true });
  const machine = (values) => fs.writeFileSync(machineFile, JSON.stringify(values, null, 2));
  machine({});
  fs.writeFileSync(path.join(places.user, 'User/settings.json'), JSON.stringify(settings, null, 2));
  // A gallery at a closed port of our own, so that the editor asks no foreign host for anything.
  const gallery = JSON.stringify({ serviceUrl: 'http://127.0.0.1:9/none', itemUrl: '', resourceUrlTemplate: '' });
  const own = { ...env, EXTENSIONS_GALLERY: gallery };
  const folders = ['--user-data-dir', places.user, '--extensions-dir', places.extensions];
  const port = await freePort();
  const common = ['--disable-telemetry', '--disable-getting-started-override', ...(trustAll ? ['--disable-workspace-trust'] : [])];
  const command = {
    window: [path.join(VSCODE, 'out/node/entry.js'), '--bind-addr', `127.0.0.1:${port}`, '--auth', 'none', '--disable-update-check'],
    // VS Code's own entry, not code-server's: only it takes the driver, without which tests silently never start.
    tests: [
      ...[path.join(VSCODE, 'lib/vscode/out/server-main.js'), '--host', '127.0.0.1', '--port', String(port)],
      ...['--without-connection-token', '--accept-server-license-terms', '--enable-smoke-test-driver'],
      ...['--server-data-dir', path.join(data, 'server')],
    ],
  }[entry];
  if (vsix) {
    execFileSync(process.execPath, [command[0], ...folders, '--install-extension', vsix], { env: own, stdio: ['ignore', 'ignore', 'inherit'] });
  }
  const log = fs.openSync(path.join(env.PICTURES, 'code-server.log'), 'w');
  const server = spawn(process.execPath, [...command, ...common, ...folders], { env: own, stdio: ['ignore', log, log], detached: true });
  const foreign = new Set();
  let browser;
  try {
    await until('VS Code answers', () => fetch(`http://127.0.0.1:${port}/${entry === 'tests' ? 'version' : 'healthz'}`).then((each) => each.ok, () => false));
    browser = await chromium.launchPersistentContext(places.browser, {
      executablePath: env.CHROMIUM || '/usr/bin/chromium',
      headless: true,
      viewport: { width: 1280, height: 800 },
      deviceScaleFactor: 1,
      permissions: ['clipboard-read', 'clipboard-write'],
      args: CHROMIUM,
    });
    await browser.route(
      (url) => url.hostname !== '127.0.0.1',
      (route) => {
        foreign.add(new URL(route.request().url()).host);
        return route.abort();
      },
    );
    const page = browser.pages()[0] ?? (await browser.newPage());
    const remote = (file) => `vscode-remote://127.0.0.1:${port}${file}`;
    const query = payload.length ? `&payload=${encodeURIComponent(JSON.stringify(payload.map(([key, value]) => [key, value.startsWith('/') ? remote(value) : value])))}` : '';
    const open = () => page.goto(`http://127.0.0.1:${port}/?folder=${encodeURIComponent(folder)}${query}`);
    await use({ page, open, server, foreign, machine });
  } catch (error) {
    await browser?.pages()[0]?.screenshot({ path: path.join(env.PICTURES, 'failure.png') }).catch(() => {});
    throw error;
  } finally {
    await browser?.close().catch(() => {});
    const gone = new Promise((resolve) => {
      server.once('exit', resolve);
      setTimeout(resolve, 5000);
    });
    server.kill('SIGTERM');
    await gone;
    try {
      process.kill(-server.pid, 'SIGKILL');
    } catch {
      // the whole group is gone: extension host, watcher, language servers
    }
  }
}

/** Wait for what a condition gives, at most a minute; fail with what was waited for. */
export async function until(what, condition, seconds = 60) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const value = await condition();
    if (value) {
      return value;
    }
    if (Date.now() > deadline) {
      throw new Error(`not within ${seconds} s: ${what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
