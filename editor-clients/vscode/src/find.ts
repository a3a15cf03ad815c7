/** Where the daemon is on this host. Nothing here knows VS Code, so that all of it can be tested as it is. */

import * as fs from 'node:fs';
import * as path from 'node:path';

export interface Host {
  platform: NodeJS.Platform;
  env: Record<string, string | undefined>;
  home: string;
  isExecutable: (file: string) => boolean;
}

export interface Place {
  /** As the user would say it. */
  name: string;
  /** The files that were looked for there. */
  files: string[];
}

export interface Found {
  command: string;
  where: string;
}

/**
 * The places where a daemon may be, the first choice first.
 *
 * @param setting the setting `cag.executable`; where it is set, nothing else counts.
 * @param interpreters Python interpreters that the user has selected.
 * @param exclude folders that must not choose a program: those of an untrusted workspace.
 */
export function places(host: Host, setting: string, interpreters: string[], exclude: string[]): Place[] {
  const { join, isAbsolute, dirname, delimiter } = pathsOf(host);
  const { env, home } = host;
  if (setting) {
    const file = setting.replace(/^~(?=[/\\])/, home);
    // A relative one would mean another program in each project.
    return [{ name: 'the setting cag.executable', files: isAbsolute(file) ? [file] : [] }];
  }
  const windows = host.platform === 'win32';
  const programs = windows ? ['cag-daemon.exe', 'cag-daemon.cmd', 'cag-daemon.bat'] : ['cag-daemon'];
  const inside = (folder: string) => exclude.some((each) => folder === each || folder.startsWith(each + (windows ? '\\' : '/')));
  const of = (name: string, folders: (string | undefined)[]): Place => ({
    name,
    // A relative entry of PATH means another folder in each project.
    files: folders
      .filter((folder): folder is string => folder !== undefined && isAbsolute(folder) && !inside(folder))
      .flatMap((folder) => programs.map((program) => join(folder, program))),
  });
  const scripts = windows ? 'Scripts' : 'bin';
  const venv = (folder: string | undefined) => folder && join(folder, 'cag-daemon', scripts);
  const below = (folder: string | undefined, ...parts: string[]) => folder && join(folder, ...parts);
  const data = env.XDG_DATA_HOME ?? join(home, '.local', 'share');
  return [
    of('PATH', (env.PATH ?? env.Path ?? '').split(delimiter)),
    of('~/.local/bin', [join(home, '.local', 'bin')]),
    of("uv's folders", [
      env.UV_TOOL_BIN_DIR,
      env.XDG_BIN_HOME,
      venv(env.UV_TOOL_DIR),
      venv(windows ? below(env.APPDATA, 'uv', 'data', 'tools') : join(data, 'uv', 'tools')),
    ]),
    of("pipx's folders", [
      env.PIPX_BIN_DIR,
      venv(below(env.PIPX_HOME, 'venvs')),
      venv(join(data, 'pipx', 'venvs')),
      venv(join(home, '.local', 'pipx', 'venvs')),
      venv(join(home, 'pipx', 'venvs')),
      venv(below(env.LOCALAPPDATA, 'pipx', 'pipx', 'venvs')),
    ]),
    of(
      'the selected Python interpreter',
      interpreters.map((each) => dirname(each)),
    ),
  ];
}

/** The first program that is there. */
export function find(host: Host, looked: Place[]): Found | undefined {
  for (const place of looked) {
    const command = place.files.find(host.isExecutable);
    if (command !== undefined) {
      return { command, where: place.name };
    }
  }
  return undefined;
}

/** The command that installs the daemon on this host, with what the host has. */
export function installCommand(host: Host): string {
  const { join, delimiter } = pathsOf(host);
  const folders = [
    ...(host.env.PATH ?? host.env.Path ?? '').split(delimiter),
    join(host.home, '.local', 'bin'),
    join(host.home, '.cargo', 'bin'),
  ];
  const has = (program: string) =>
    folders.some((folder) => folder !== '' && host.isExecutable(join(folder, host.platform === 'win32' ? `${program}.exe` : program)));
  if (has('uv')) {
    return 'uv tool install cag-daemon';
  }
  if (has('pipx') || host.platform === 'win32') {
    return 'pipx install cag-daemon';
  }
  // Not `pip install --user`: many systems refuse it.
  const folder = '~/.local/share/cag-daemon/venv';
  return [
    `python3 -m venv ${folder}`,
    `${folder}/bin/pip install cag-daemon`,
    'mkdir -p ~/.local/bin',
    `ln -sf ${folder}/bin/cag-daemon ~/.local/bin/`,
  ].join(' && ');
}

/** The command that brings an installed daemon up to date, by where it lies. */
export function upgradeCommand(command: string): string {
  const real = realpath(command);
  if (/[\\/]uv[\\/](data[\\/])?tools[\\/]/.test(real)) {
    return 'uv tool upgrade cag-daemon';
  }
  if (/[\\/]pipx[\\/](pipx[\\/])?venvs[\\/]/.test(real)) {
    return 'pipx upgrade cag-daemon';
  }
  return `${path.join(path.dirname(real), 'pip')} install --upgrade cag-daemon`;
}

/** Whether a file is there, and may be run. */
export function isExecutable(file: string): boolean {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

/** How paths are written on that host. */
function pathsOf({ platform }: Host): Paths {
  return platform === 'win32' ? path.win32 : path.posix;
}

interface Paths {
  join: (...parts: string[]) => string;
  isAbsolute: (name: string) => boolean;
  dirname: (name: string) => string;
  delimiter: string;
}

function realpath(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}
