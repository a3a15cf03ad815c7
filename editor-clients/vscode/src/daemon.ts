/** The daemon's life: found, started, watched, started again within a budget, stopped. What it says goes out as events. */

import * as readline from 'node:readline';
import * as vscode from 'vscode';
import {
  CloseAction,
  ErrorAction,
  LanguageClient,
  ResponseError,
  RevealOutputChannelOn,
  ShowMessageNotification,
  TransportKind,
  type Middleware,
  type ServerOptions,
} from 'vscode-languageclient/node';
import { NoDaemon, remedy, type NoDaemonReason, type Remedy } from './errors';
import { upgradeCommand, type Found } from './find';
import { look, notFound } from './host';
import type { PopUps } from './popups';
import { CONNECTION_ERRORS, FEATURES, METHOD, PROTOCOL_VERSION, type Experimental, type Partial, type Status } from './protocol';
import { SECTION, section } from './settings';
import { syncAgain, syncDocuments, syncMiddleware } from './sync';

const RESTARTS = 3;
const RESTART_MS = 5 * 60_000;
/** A daemon answers `initialize` before it loads anything. */
const INITIALIZE_MS = 60_000;
/** Other ways on, beside the first, where there is no daemon. */
const FURTHER: Record<NoDaemonReason, Remedy[]> = {
  daemonNotFound: [
    { command: 'walkthrough', title: 'How to Install' },
    { command: 'executableSetting', title: 'Settings' },
  ],
  daemonUnfit: [{ command: 'showLog', title: 'Show Log' }],
  daemonNotStarted: [{ command: 'executableSetting', title: 'Settings' }],
  daemonGivenUp: [{ command: 'showLog', title: 'Show Log' }],
  daemonEnded: [],
  daemonStopped: [],
};

type Introduction = Experimental & { version?: string };

export class Daemon implements vscode.Disposable {
  /** What the daemon said last of its state; undefined: it does not run, or has not said anything yet. */
  status: Status | undefined;
  /** The program that runs, or ran last. */
  found: Found | undefined;
  /** Why it does not run, if something is wrong. */
  problem: NoDaemon | undefined;
  /** What it listed of itself when it started. */
  said: Introduction = {};

  private readonly statusEmitter = new vscode.EventEmitter<Status | undefined>();
  private readonly partialEmitter = new vscode.EventEmitter<Partial>();
  /** The state has changed, also to or from one in which there is no daemon. */
  readonly onStatus = this.statusEmitter.event;
  readonly onPartial = this.partialEmitter.event;

  private client: LanguageClient | undefined;
  /** One that was started and has not introduced itself yet. */
  private launched: LanguageClient | undefined;
  private launching: Promise<LanguageClient> | undefined;
  /** Counts up with each stop: what was begun before one is not wanted any more. */
  private stops = 0;
  private restarting: Promise<void> | undefined;
  private restartsWanted = 0;
  private sent: Record<string, unknown> = {};
  private readonly deaths: number[] = [];
  private readonly listeners: vscode.Disposable[];

  constructor(
    readonly log: vscode.LogOutputChannel,
    private readonly popUps: PopUps,
  ) {
    this.listeners = [
      vscode.workspace.onDidChangeConfiguration((event) => {
        if (!event.affectsConfiguration(SECTION)) {
          return;
        }
        // What fails under other settings is news.
        this.popUps.forget();
        if (event.affectsConfiguration(`${SECTION}.executable`) && (this.client ?? this.launching ?? this.problem) !== undefined) {
          void this.restart();
        } else {
          this.configure(event.affectsConfiguration(`${SECTION}.document`));
        }
      }),
      vscode.workspace.onDidGrantWorkspaceTrust(() => {
        if (this.problem) {
          void this.restart(); // the interpreter of the workspace may have it
        }
      }),
    ];
  }

  get running(): boolean {
    return this.client !== undefined;
  }

  get starting(): boolean {
    return this.launching !== undefined;
  }

  /** The process, while one runs. */
  get pid(): number | undefined {
    return (this.client ?? this.launched)?.serverProcess?.pid;
  }

  // ── requests ──

  /**
   * Ask the daemon something; it is started where it does not run.
   *
   * @throws NoDaemon, CancellationError, or the daemon's own ResponseError.
   */
  async request<R>(method: string, params: object = {}, token?: vscode.CancellationToken): Promise<R> {
    const client = await this.started(token);
    try {
      // An argument that is undefined would be sent as a second parameter.
      return await (token ? client.sendRequest<R>(method, params, token) : client.sendRequest<R>(method, params));
    } catch (error) {
      if (error instanceof vscode.CancellationError || (error instanceof ResponseError && !CONNECTION_ERRORS.includes(error.code))) {
        throw error;
      }
      this.log.warn(String(error));
      throw new NoDaemon('The daemon ended before it had answered; try again.', 'daemonEnded');
    }
  }

  /** Tell a daemon that runs something that it need not answer; one that does not know the feature hears nothing. */
  hint(feature: string, method: string, params: object): void {
    if (this.client && this.said.features?.includes(feature)) {
      void this.client.sendNotification(method, params).catch(() => undefined);
    }
  }

  // ── start and end ──

  /** The client of a running daemon: the one that there is, or a new one. */
  start(): Promise<LanguageClient> {
    if (this.client) {
      return Promise.resolve(this.client);
    }
    if (!this.launching) {
      const stops = this.stops;
      const launching = this.launch(stops).finally(() => {
        if (this.launching === launching) {
          this.launching = undefined;
        }
        this.tell(this.status);
      });
      this.launching = launching;
      this.tell(undefined);
    }
    return this.launching;
  }

  /** As `start`, over restarts that happen meanwhile. */
  private async started(token: vscode.CancellationToken | undefined): Promise<LanguageClient> {
    for (;;) {
      try {
        return await orCancelled(this.start(), token);
      } catch (error) {
        if (!(error instanceof NoDaemon && error.reason === 'daemonStopped' && this.restarting)) {
          throw error;
        }
        await orCancelled(this.restarting, token);
      }
    }
  }

  async stop(): Promise<void> {
    this.stops++;
    const { client, launched, launching } = this;
    this.client = this.launched = this.launching = undefined;
    this.tell(undefined);
    // What has not introduced itself yet cannot be asked to end.
    launched?.serverProcess?.kill('SIGKILL');
    await launching?.catch(() => undefined);
    // It rejects where the daemon has gone already, or takes its time; then the process is killed.
    await client?.stop().catch((error: unknown) => this.log.warn(String(error)));
    await client?.dispose().catch(() => undefined);
  }

  /** End it and start it anew, also where it had given up. Who asks meanwhile gets one more start, not one each. */
  restart(): Promise<void> {
    this.restartsWanted++;
    if (this.restarting) {
      void this.stop(); // it may hang in a start
    }
    this.restarting ??= this.restartNow().finally(() => (this.restarting = undefined));
    return this.restarting;
  }

  private async restartNow(): Promise<void> {
    this.deaths.length = 0;
    for (let seen = 0; seen !== this.restartsWanted;) {
      seen = this.restartsWanted;
      await this.stop();
      await this.start().catch(() => undefined); // said already
    }
  }

  dispose(): void {
    for (const each of this.listeners) {
      each.dispose();
    }
    void this.stop();
  }

  /** @param stops as many as there were when this was begun. */
  private async launch(stops: number): Promise<LanguageClient> {
    const unwanted = () => {
      if (stops !== this.stops) {
        throw new NoDaemon('The daemon was stopped while it started.', 'daemonStopped');
      }
    };
    const { found, looked } = await look();
    unwanted();
    if (!found) {
      for (const { name, files } of looked) {
        this.log.info(`Looked for the daemon in ${name}:${files.map((file) => `\n  ${file}`).join('') || ' nothing to look for'}`);
      }
      throw this.fail(notFound(looked), 'daemonNotFound');
    }
    this.found = found;
    this.log.info(`Starting ${found.command} (${found.where}).`);
    const client = this.newClient(found.command);
    this.launched = client;
    try {
      await this.introduced(client);
      unwanted();
      this.said = introduction(client);
      if (!isFit(this.said)) {
        throw this.fail(mismatch(found, this.said), 'daemonUnfit');
      }
      const status = await client.sendRequest<Status>(METHOD.status);
      unwanted();
      this.client = client;
      this.problem = undefined;
      this.popUps.forget('daemon');
      syncDocuments(client);
      this.tell(status);
    } catch (error) {
      await client.stop().catch(() => client.serverProcess?.kill('SIGKILL'));
      await client.dispose().catch(() => undefined);
      unwanted();
      if (error instanceof NoDaemon) {
        throw error;
      }
      const why = error instanceof Error ? error.message : String(error);
      throw this.fail(`${found.command} could not be started (${why}). See the log.`, 'daemonNotStarted');
    } finally {
      if (this.launched === client) {
        this.launched = undefined;
      }
    }
    if (JSON.stringify(section()) !== JSON.stringify(this.sent)) {
      this.configure(true); // the settings changed while it started
    }
    return client;
  }

  /** Start, and end what does not say in time what it is. */
  private async introduced(client: LanguageClient): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        reject(new Error(`it said nothing for ${INITIALIZE_MS / 1000} s`));
        client.serverProcess?.kill('SIGKILL');
      }, INITIALIZE_MS);
    });
    try {
      await Promise.race([client.start(), late]);
    } finally {
      clearTimeout(timer);
    }
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
      middleware: this.middleware(() => client),
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
    client.onNotification(METHOD.partial, (partial: Partial) => this.partialEmitter.fire(partial));
    client.onNotification(METHOD.statusChanged, (status: Status) => {
      if (client === this.client) {
        this.tell(status);
      }
    });
    // In place of the library's own handler, which shows the same sentence again and again.
    client.onNotification(ShowMessageNotification.type, ({ message }) => {
      this.log.warn(message);
      this.popUps.once('warning', `said ${message}`, message, [{ command: 'showLog', title: 'Show Log' }]);
    });
    return client;
  }

  private middleware(client: () => LanguageClient): Middleware {
    return {
      ...syncMiddleware(),
      // The status bar entry says it already. The end is passed on: the library frees what it holds.
      handleWorkDoneProgress: (_token, params, next) => {
        if (params.kind === 'end') {
          next(_token, params);
        }
      },
      workspace: {
        configuration: (params, token, next) =>
          params.items.every((item) => item.section === SECTION) ? params.items.map(() => section()) : next(params, token),
        didChangeWorkspaceFolders: async (event, next) => {
          await next(event);
          syncAgain(client());
        },
      },
    };
  }

  private configure(otherDocument: boolean): void {
    const { client } = this;
    if (!client) {
      return;
    }
    this.sent = section();
    void client.sendNotification('workspace/didChangeConfiguration', { settings: { [SECTION]: this.sent } });
    if (otherDocument) {
      syncAgain(client);
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
      this.fail(
        `The daemon ended ${recent} times within five minutes and is left alone now. See the log, then restart it.`,
        'daemonGivenUp',
      );
      return;
    }
    this.log.warn(`The daemon has ended; it is started again (${recent} of ${RESTARTS}).`);
    this.start().catch(() => undefined); // said already
  }

  private tell(status: Status | undefined): void {
    this.status = status;
    this.statusEmitter.fire(status);
  }

  private fail(message: string, reason: NoDaemonReason): NoDaemon {
    const problem = new NoDaemon(message, reason);
    this.problem = problem;
    this.log.error(message);
    this.tell(undefined);
    const first = remedy(reason);
    this.popUps.once('error', reason, message, [...(first ? [first] : []), ...FURTHER[reason]]);
    return problem;
  }
}

/** What a promise gives, but no longer than until it is cancelled. */
function orCancelled<T>(promise: Promise<T>, token: vscode.CancellationToken | undefined): Promise<T> {
  if (!token) {
    return promise;
  }
  return new Promise((resolve, reject) => {
    const cancel = () => reject(new vscode.CancellationError());
    if (token.isCancellationRequested) {
      cancel();
    }
    const listener = token.onCancellationRequested(cancel);
    const done = () => {
      listener.dispose();
    };
    promise.finally(done).then(resolve, reject);
  });
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

function mismatch({ command }: Found, { protocolVersion }: Introduction): string {
  const speaks =
    protocolVersion === undefined ? 'no version of the protocol that is known here' : `version ${protocolVersion} of the protocol`;
  const has =
    protocolVersion === PROTOCOL_VERSION
      ? 'is older than this extension'
      : `speaks ${speaks}, and this extension speaks version ${PROTOCOL_VERSION}`;
  return `${command} ${has}; ${isNewer(protocolVersion) ? `update the extension, with: ${UPDATE}` : `upgrade it with: ${upgradeCommand(command)}`}`;
}

const UPDATE = 'cag-daemon client vscode --install';

function isNewer(protocolVersion: number | undefined): boolean {
  return protocolVersion !== undefined && protocolVersion > PROTOCOL_VERSION;
}

/** The command that has daemon and extension fit each other. */
export function fittingCommand({ found, said }: Daemon): string {
  return isNewer(said.protocolVersion) || !found ? UPDATE : upgradeCommand(found.command);
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
