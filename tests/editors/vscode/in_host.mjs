// Runs the extension's own tests inside VS Code's real extension host; then kills the editor in mid-answer.
// env: see code.mjs; EXTENSION (its folder, built), FOLDER, and what the tests themselves want.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { until, withCode } from './code.mjs';

const { env } = process;

/** [pid, parent, command] of every process. */
function processes() {
  return execFileSync('ps', ['-eww', '-o', 'pid=,ppid=,args='], { encoding: 'utf8' })
    .split('\n')
    .filter(Boolean)
    .map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line).slice(1))
    .map(([pid, parent, command]) => [Number(pid), Number(parent), command]);
}

/** Whether it is a process of the daemon's, and of this test's. */
function isOurs([pid, , command]) {
  try {
    return command.includes('cag_daemon') && readFileSync(`/proc/${pid}/environ`, 'utf8').includes(`HOME=${env.HOME}\0`);
  } catch {
    return false; // it has ended just now
  }
}

function below(ancestor) {
  const all = processes();
  const found = [];
  for (let parents = [ancestor]; parents.length > 0; ) {
    const children = all.filter(([, parent]) => parents.includes(parent));
    found.push(...children);
    parents = children.map(([pid]) => pid);
  }
  return found;
}

const payload = [
  ['extensionDevelopmentPath', env.EXTENSION],
  ['extensionTestsPath', path.join(env.EXTENSION, 'dist/test/index.js')],
  ['skipWelcome', 'true'],
];
let verdict = 1;
await withCode({ entry: 'tests', folder: env.FOLDER, payload }, async ({ page, open, server }) => {
  const ended = new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error('the tests did not end in time')), 300_000).unref();
    page.exposeFunction('codeAutomationLog', (type, words) => {
      console.log(words.join(' '));
      if (words[0] === 'kill me') {
        resolve(0);
      }
    });
    page.exposeFunction('codeAutomationExit', resolve);
  });
  await open();
  verdict = await ended;
  if (verdict) {
    return;
  }

  const family = below(server.pid);
  const ours = processes().filter(isOurs);
  if (ours.length < 3) {
    throw new Error(`a forwarder, a front and its worker should be at an answer: ${JSON.stringify(ours)}`);
  }
  const editor = [server.pid, ...family.map(([pid]) => pid).filter((pid) => !ours.some(([each]) => each === pid))];
  for (const pid of editor) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // it ended with its parent
    }
  }
  const killed = Date.now();
  const alive = () => processes().filter(([pid]) => ours.some(([each]) => each === pid));
  await until('the daemon and its worker are gone', () => alive().length === 0, 10);
  const seconds = (Date.now() - killed) / 1000;
  console.log(`${seconds < 4 ? 'ok' : 'not ok'} - the editor was killed in mid-answer: nothing was left after ${seconds.toFixed(1)} s`);
  verdict ||= seconds < 4 ? 0 : 1;
});
process.exitCode = verdict;
