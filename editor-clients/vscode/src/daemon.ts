/** The daemon's life: found, started, watched, started again within a budget, stopped. What it says goes out as events. */

import * as os from 'node:os';
import * as readline from 'node:readline';
import * as vscode from 'vscode';
import {
  CloseAction,
  ErrorAction,
  LanguageClient,
  RevealOutputChannelOn,
  ShowMessageNotification,
  TextDocumentSyncKind,
  TransportKind,
  type Middleware,
  type ServerOptions,
} from 'vscode-languageclient/node';
import { isDocument } from './document';
import { find, installCommand, isExecutable, places, upgradeCommand, type Found, type Host, type Place } from './find';
import { FEATURES, METHOD, PROTOCOL_VERSION, type Experimental, type Partial, type RefreshResult, type Status } from './protocol';
import { SECTION, executableSetting, openSettings, section } from './settings';

const RESTARTS = 3;
const RESTART_MS = 5 * 60_000;

/** There is no daemon to talk to; the message says why. */
export class NoDaemon extends Error {}

type Introduction = Experimental & { version?: string };

export class Daemon implements vscode.Disposable {
  /** What the daemon said last of its state; undefined: it does not run. */
  status: Status | undefined;
  /** The program that runs, or ran last. */
  found: Found | undefined;
  /** Why it does not run, if something is wrong. */
  problem: string | undefined;
  /** What it listed of itself when it started. */
  said: Introduction = {};

  private readonly statusEmitter = new vscode.EventEmitter<Status | undefined>();
  private readonly partialEmitter = new vscode.EventEmitter<Partial>();
  private readonly readEmitter = new vscode.EventEmitter<RefreshResult>();
  readonly onStatus = this.statusEmitter.event;
  readonly onPartial = this.partialEmitter.event;
  readonly onRead = this.readEmitter.event;

  private client: LanguageClient | undefined;
  private starting: Promise<LanguageClient> | undefined;
  private restarting: Promise<void> | undefined;
  private restartsWanted = 0;
  private sent: Record<string, unknown> = {};
  private readonly deaths: number[] = [];
  private readonly shown = new Set<string>();
  private readonly listener: vscode.Disposable;

  constructor(readonly log: vscode.LogOutputChannel) {
    this.listener = vscode.workspace.onDidChangeConfiguration((event) => {
      if (event.affectsConfiguration(`${SECTION}.executable`) && (this.client ?? this.problem) !== undefined) {
        void this.restart();
      } else if (event.affectsConfiguration(SECTION)) {
        this.configure(event.affectsConfiguration(`${SECTION}.document`));
      }
    });
  }

  get running(): boolean {
    return this.client !== undefined;
  }

  /** The process, while one runs. */
  get pid(): number | undefined {
    return this.client?.serverProcess?.pid;
  }

  // ── requests ──

  /**
   * Ask the daemon something; it is started where it does not run.
   *
   * @throws NoDaemon, or the daemon's own ResponseError.
   */
  async request<R>(method: string, params: object = {}, token?: vscode.CancellationToken): Promise<R> {
    const client = await this.start();
    // An argument that is undefined would be sent as a second parameter.
    return token ? client.sendRequest<R>(method, params, token) : client.sendRequest<R>(method, params);
  }

  // ── start and end ──

  /** The client of a running daemon: the one that there is, or a new one. */
  start(): Promise<LanguageClient> {
    if (this.client) {
      return Promise.resolve(this.client);
    }
    this.starting ??= this.launch().finally(() => (this.starting = undefined));
    return this.starting;
  }

  async stop(): Promise<void> {
    await this.starting?.catch(() => undefined);
    const { client } = this;
    this.client = undefined;
    this.tell(undefined);
    // It rejects where the daemon has gone already, or takes its time; then the process is killed.
    await client?.stop().catch((error: unknown) => this.log.warn(String(error)));
    await client?.dispose().catch(() => undefined);
  }

  /** End it and start it anew, also where it had given up. Who asks meanwhile gets one more start, not one each. */
  restart(): Promise<void> {
    this.restartsWanted++;
    this.restarting ??= this.restartNow().finally(() => (this.restarting = undefined));
    return this.restarting;
  }

  private async restartNow(): Promise<void> {
    this.deaths.length = 0;
    this.shown.clear();
    for (let seen = 0; seen !== this.restartsWanted;) {
      seen = this.restartsWanted;
      await this.stop();
      await this.start().catch(() => undefined); // said already
    }
  }

  dispose(): void {
    this.listener.dispose();
    void this.stop();
  }

  private async launch(): Promise<LanguageClient> {
    const looked = await this.places();
    const found = find(host(), looked);
    if (!found) {
      throw this.fail(this.notFound(looked), 'install');
    }
    this.found = found;
    this.log.info(`Starting ${found.command} (${found.where}).`);
    const client = this.newClient(found.command);
    let status: Status;
    try {
      await client.start();
      this.said = introduction(client);
      if (!isFit(this.said)) {
        await client.stop().catch(() => undefined);
        throw this.fail(this.mismatch(found, this.said), 'upgrade');
      }
      this.follow(client);
      status = await client.sendRequest<Status>(METHOD.status);
    } catch (error) {
      await client.dispose().catch(() => undefined);
      if (error instanceof NoDaemon) {
        throw error;
      }
      const why = error instanceof Error ? error.message : String(error);
      throw this.fail(`${found.command} could not be started (${why}). See the log.`, 'log');
    }
    this.client = client;
    this.problem = undefined;
    this.tell(status);
    if (JSON.stringify(section()) !== JSON.stringify(this.sent)) {
      this.configure(true); // the settings changed while it started
    }
    return client;
  }

  private newClient(command: string): LanguageClient {
    const server: ServerOptions = { command, args: ['serve'], transport: TransportKind.stdio };
    const client: LanguageClient = new LanguageClient(SECTION, 'cag-daemon', server, {
      outputChannel: this.log,
      revealOutputChannelOn: RevealOutputChannelOn.Never,
      initializationOptions: () => {
        this.sent = section();
        return { ...given(this.sent), showAnswers: false };
      },
      middleware: middleware(),
      stdioOptions: { stdout: logLines, stderr: logLines },
      errorHandler: {
        error: () => ({ action: ErrorAction.Continue, handled: true }),
        // Never started again by the library: the program is looked for, and its version checked, each time.
        closed: () => {
          this.died(client);
          return { action: CloseAction.DoNotRestart, handled: true, message: 'The daemon has ended.' };
        },
      },
      initializationFailedHandler: () => false,
    });
    // The library would say in a message of its own, which no option turns off, what `fail` says with the next step.
    (client as unknown as { showNotificationMessage: () => void }).showNotificationMessage = () => undefined;
    return client;
  }

  private follow(client: LanguageClient): void {
    client.onNotification(METHOD.partial, (partial: Partial) => this.partialEmitter.fire(partial));
    client.onNotification(METHOD.statusChanged, (status: Status) => {
      if (client === this.client) {
        this.tell(status);
      }
    });
    client.onNotification(METHOD.documentChanged, (read: RefreshResult) => this.readEmitter.fire(read));
    // In place of the library's own handler, which shows the same sentence again and again.
    client.onNotification(ShowMessageNotification.type, ({ message }) => this.warn(message));
    this.syncDocument(client);
  }

  /** Only the document is shared with the daemon, and no other file that is open. */
  private syncDocument(client: LanguageClient): void {
    const selector = { documentSelector: [{ scheme: 'file' }] };
    const id = 'cag-document';
    client.getFeature('textDocument/didOpen').register({ id, registerOptions: selector });
    client
      .getFeature('textDocument/didChange')
      .register({ id, registerOptions: { ...selector, syncKind: TextDocumentSyncKind.Incremental } });
    client.getFeature('textDocument/didSave').register({ id, registerOptions: selector });
    client.getFeature('textDocument/didClose').register({ id, registerOptions: selector });
  }

  private configure(otherDocument: boolean): void {
    const { client } = this;
    if (!client) {
      return;
    }
    this.sent = section();
    void client.sendNotification('workspace/didChangeConfiguration', { settings: { [SECTION]: this.sent } });
    if (otherDocument) {
      // What is open by now may be the document: have the library look through all open files again.
      for (const method of ['textDocument/didClose', 'textDocument/didOpen', 'textDocument/didChange', 'textDocument/didSave'] as const) {
        client.getFeature(method as 'textDocument/didOpen').unregister('cag-document');
      }
      this.syncDocument(client);
    }
  }

  private died(client: LanguageClient): void {
    if (client !== this.client) {
      return;
    }
    this.client = undefined;
    this.tell(undefined);
    const now = Date.now();
    this.deaths.push(now);
    const recent = this.deaths.filter((each) => now - each < RESTART_MS).length;
    if (recent > RESTARTS) {
      this.fail(`The daemon ended ${recent} times within five minutes and is left alone now. See the log, then restart it.`, 'restart');
      return;
    }
    this.log.warn(`The daemon has ended; it is started again (${recent} of ${RESTARTS}).`);
    this.start().catch(() => undefined); // said already
  }

  private tell(status: Status | undefined): void {
    this.status = status;
    this.statusEmitter.fire(status);
  }

  // ── words ──

  /** Show a warning, once for as long as the daemon is not restarted by hand. */
  private warn(message: string): void {
    this.log.warn(message);
    if (!this.shown.has(message)) {
      this.shown.add(message);
      void vscode.window.showWarningMessage(message, 'Show Log').then((chosen) => {
        if (chosen) {
          this.log.show();
        }
      });
    }
  }

  private fail(message: string, remedy: 'install' | 'upgrade' | 'log' | 'restart'): NoDaemon {
    this.problem = message;
    this.log.error(message);
    this.tell(undefined);
    if (!this.shown.has(message)) {
      this.shown.add(message);
      void this.offer(message, remedy);
    }
    return new NoDaemon(message);
  }

  private async offer(message: string, remedy: 'install' | 'upgrade' | 'log' | 'restart'): Promise<void> {
    const command = remedy === 'upgrade' && this.found ? upgradeCommand(this.found.command) : installCommand(host());
    const actions = {
      install: ['Copy Command', 'How to Install', 'Settings'],
      upgrade: ['Copy Command', 'Show Log'],
      log: ['Show Log', 'Settings'],
      restart: ['Restart', 'Show Log'],
    }[remedy];
    switch (await vscode.window.showErrorMessage(message, ...actions)) {
      case 'Copy Command':
        await vscode.env.clipboard.writeText(command);
        break;
      case 'How to Install':
        await vscode.commands.executeCommand('cagDaemon.walkthrough');
        break;
      case 'Settings':
        await openSettings('cag.executable');
        break;
      case 'Show Log':
        this.log.show();
        break;
      case 'Restart':
        await this.restart();
        break;
    }
  }

  private notFound(looked: Place[]): string {
    const where = `on ${vscode.env.remoteName ? `the remote host ${os.hostname()}` : os.hostname()}`;
    const [first] = looked;
    if (executableSetting() && first) {
      return `The setting cag.executable names ${first.files.join(', ')}, which is no program ${where}: correct it, or empty it to have cag-daemon looked for.`;
    }
    const names = looked.filter((place) => place.files.length > 0).map((place) => place.name);
    for (const place of looked) {
      this.log.info(
        `Looked for the daemon in ${place.name}:${place.files.map((file) => `\n  ${file}`).join('') || ' nothing to look for'}`,
      );
    }
    return `cag-daemon was not found ${where}; looked in ${names.join(', ')}. Install it with: ${installCommand(host())}`;
  }

  private mismatch(found: Found, said: Experimental): string {
    const speaks =
      said.protocolVersion === undefined
        ? 'no version of the protocol that is known here'
        : `version ${said.protocolVersion} of the protocol`;
    const has =
      said.protocolVersion === PROTOCOL_VERSION
        ? 'is older than this extension'
        : `speaks ${speaks}, and this extension speaks version ${PROTOCOL_VERSION}`;
    const newer = said.protocolVersion !== undefined && said.protocolVersion > PROTOCOL_VERSION;
    const step = newer
      ? 'update the extension, with: cag-daemon client vscode --install'
      : `upgrade it with: ${upgradeCommand(found.command)}`;
    return `${found.command} ${has}; ${step}`;
  }

  private async places(): Promise<Place[]> {
    const trusted = vscode.workspace.isTrusted;
    const inWorkspace = trusted ? [] : (vscode.workspace.workspaceFolders ?? []).map((folder) => folder.uri.fsPath);
    return places(host(), executableSetting(), trusted ? await interpreters() : [], inWorkspace);
  }
}

/** What a daemon says of itself when it starts. */
function introduction(client: LanguageClient): Introduction {
  const { capabilities, serverInfo } = client.initializeResult ?? {};
  const said = (capabilities?.experimental as { cag?: Experimental } | undefined)?.cag;
  return { ...said, ...(serverInfo?.version && { version: serverInfo.version }) };
}

/** Whether this extension can get on with it. */
function isFit({ protocolVersion, features }: Introduction): boolean {
  return protocolVersion === PROTOCOL_VERSION && FEATURES.every((feature) => features?.includes(feature));
}

/** This host, as `find` wants to know it. */
export function host(): Host {
  return { platform: process.platform, env: process.env, home: os.homedir(), isExecutable };
}

/** Python interpreters that are selected: by the Python extension, else by its setting. */
async function interpreters(): Promise<string[]> {
  const paths: string[] = [];
  const python = vscode.extensions.getExtension<PythonApi>('ms-python.python');
  try {
    const api = python && (python.isActive ? python.exports : await python.activate());
    const active = api?.environments?.getActiveEnvironmentPath(vscode.workspace.workspaceFolders?.[0]?.uri);
    const resolved = active && (await api?.environments?.resolveEnvironment(active));
    paths.push(...[resolved?.executable?.uri?.fsPath, active?.path].filter((each) => each !== undefined));
  } catch {
    // another extension's trouble
  }
  const setting = vscode.workspace.getConfiguration('python').get<string>('defaultInterpreterPath', '');
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath ?? '';
  paths.push(setting.replace('${workspaceFolder}', folder).replace(/^~(?=[/\\])/, os.homedir()));
  return paths.filter((each) => each !== '');
}

interface PythonApi {
  environments?: {
    getActiveEnvironmentPath(resource?: vscode.Uri): { path: string };
    resolveEnvironment(environment: { path: string }): Promise<{ executable?: { uri?: vscode.Uri } } | undefined>;
  };
}

function middleware(): Middleware {
  /** What the daemon was told is open: it also hears of the end of that, whatever is set by then. */
  const shared = new Set<string>();
  const isShared = (uri: vscode.Uri) => shared.has(uri.toString());
  return {
    didOpen: (document, next) => {
      if (!isDocument(document.uri)) {
        return Promise.resolve();
      }
      shared.add(document.uri.toString());
      return next(document);
    },
    didChange: (event, next) => (isShared(event.document.uri) ? next(event) : Promise.resolve()),
    didSave: (document, next) => (isShared(document.uri) ? next(document) : Promise.resolve()),
    didClose: (document, next) => (shared.delete(document.uri.toString()) ? next(document) : Promise.resolve()),
    // The status bar entry says it already.
    handleWorkDoneProgress: () => undefined,
    workspace: {
      configuration: (params, token, next) =>
        params.items.every((item) => item.section === SECTION) ? params.items.map(() => section()) : next(params, token),
    },
  };
}

function given(settings: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null));
}

/** The daemon's stderr, line by line, each at its own level. */
function logLines(input: NodeJS.ReadableStream, channel: vscode.LogOutputChannel): void {
  readline.createInterface({ input, crlfDelay: Infinity, terminal: false }).on('line', (line) => {
    const level = /^(?:[\d-]+ [\d:,.]+ )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b/.exec(line)?.[1];
    if (level === 'ERROR' || level === 'CRITICAL') {
      channel.error(line);
    } else if (level === 'WARNING') {
      channel.warn(line);
    } else {
      channel.info(line);
    }
  });
}
