/**
 * A network daemon in a network namespace of its own, going to be treated badly, with the proof after each treatment
 * that it took no harm: it runs, a correct client's packets go both ways, it holds no descriptor or guest memory more
 * than before.
 */

import { join } from 'node:path';
import { afterAll, afterEach, beforeAll } from 'vitest';
import type { Child, ChildExit } from '../child.ts';
import { Cleanup } from '../cleanup.ts';
import { NetworkNamespace } from '../net/namespace.ts';
import { projectDirectory } from '../peers.ts';
import { NetDriver, type NetDriverOptions } from './net-driver.ts';
import { connectGoodNet } from './net-good-client.ts';
import { HostSide, type HostSideOptions } from './net-host.ts';
import { eventually, fdCount, sharedMappings } from './process-probe.ts';

export const NET_MAIN = join(projectDirectory, 'dist/backends/net/main.js');
export const TAP = 'tap0';

/** Without addresses and their chatter: what is seen on the interface is what the tests send. */
const QUIET = 'for which in all default; do echo 1 >/proc/sys/net/ipv6/conf/$which/disable_ipv6; done';

export const quietNamespace = async (cleanup: Cleanup): Promise<NetworkNamespace> => {
  const namespace = await NetworkNamespace.create(cleanup);
  await namespace.run(QUIET);
  return namespace;
};

/** A process in a namespace. */
export const holderOf = (namespace: NetworkNamespace): number => {
  const target = namespace.command('true', []).find((argument) => argument.startsWith('--target='));
  return Number(target?.slice('--target='.length));
};

export interface NetDaemonOptions {
  /** Arguments besides socket, TAP and log format. */
  readonly extra?: readonly string[];
  /** In place of --tap=tap0. */
  readonly tap?: readonly string[];
  /** Where it runs; by default a new namespace. */
  readonly namespace?: NetworkNamespace;
  /** Done in the namespace before the daemon starts: a shell script. */
  readonly before?: string;
}

export class NetDaemon {
  readonly socket: string;
  readonly namespace: NetworkNamespace;
  readonly #arguments: readonly string[];
  readonly #hasTap: boolean;
  readonly #open: { close(): void }[] = [];
  #child: Child;
  #host: HostSide | undefined;
  #fds = 0;

  private constructor(socket: string, namespace: NetworkNamespace, hasTap: boolean, args: readonly string[]) {
    this.socket = socket;
    this.namespace = namespace;
    this.#hasTap = hasTap;
    this.#arguments = args;
    this.#child = this.#spawn();
  }

  /** Starts a daemon and waits until it listens. `cleanup` kills it at the latest. */
  static async start(cleanup: Cleanup, options: NetDaemonOptions = {}): Promise<NetDaemon> {
    const namespace = options.namespace ?? (await quietNamespace(cleanup));
    if (options.before !== undefined) await namespace.run(options.before);
    const socket = join(cleanup.directory(), 'net.sock');
    const tap = options.tap ?? [`--tap=${TAP}`];
    const daemon = new NetDaemon(socket, namespace, !tap.includes('--null'), [
      `--socket-path=${socket}`,
      ...tap,
      '--log-format=json',
      ...(options.extra ?? []),
    ]);
    cleanup.add(() => daemon.closeAll());
    await daemon.#ready();
    return daemon;
  }

  #spawn(): Child {
    return this.namespace.spawn(process.execPath, [NET_MAIN, ...this.#arguments]);
  }

  async #ready(): Promise<void> {
    await this.waitForLog(/"listening on /);
    this.#fds = fdCount(this.pid);
    // What comes before somebody looks is lost.
    if (this.#hasTap) this.#host ??= new HostSide(this.pid, TAP);
  }

  get pid(): number {
    return this.#child.pid;
  }

  get running(): boolean {
    return this.#child.running;
  }

  log(): string {
    return this.#child.output();
  }

  /** A position in the log, for waitForLog to look behind. */
  mark(): number {
    return this.#child.mark();
  }

  waitForLog(pattern: RegExp, from = 0): Promise<RegExpExecArray> {
    return this.#child.waitFor(pattern, 15_000, from);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Waits until it has ended; log() is whole then. */
  waitForExit(): Promise<ChildExit> {
    return this.#child.waitForClose(10_000);
  }

  rssBytes(): number {
    return this.#child.rssBytes();
  }

  /** Kills it where it stands. */
  async kill9(): Promise<void> {
    this.signal('SIGKILL');
    await this.waitForExit();
  }

  /** Starts it anew with the same arguments, after its end. */
  async restart(): Promise<void> {
    this.#child = this.#spawn();
    await this.#ready();
  }

  /** The host's side of the TAP, which lives as long as the TAP. */
  get host(): HostSide {
    this.#host ??= new HostSide(this.pid, TAP);
    return this.#host;
  }

  /** The TAP was made again, or somebody else made it. */
  forgetHost(): void {
    this.#host?.close();
    this.#host = undefined;
  }

  /** Another view of the host's side; closed at the latest by `expectUnharmed`. */
  openHost(options: HostSideOptions): HostSide {
    return this.keep(new HostSide(this.pid, TAP, options));
  }

  /** A driver with every ring up; closed at the latest by `expectUnharmed`. */
  async start(options: NetDriverOptions = {}): Promise<NetDriver> {
    return this.keep(await NetDriver.start(this.socket, options));
  }

  /** A driver that has only connected. */
  connect(options: NetDriverOptions = {}): NetDriver {
    return this.keep(NetDriver.connect(this.socket, options));
  }

  /** A driver that has connected, negotiated and shared its memory; no ring is started. */
  async prepare(options: NetDriverOptions = {}): Promise<NetDriver> {
    const driver = this.connect(options);
    await driver.frontend.negotiate();
    await driver.frontend.shareMemory();
    return driver;
  }

  /** Something to close at the end of the test, in any case. */
  keep<T extends { close(): void }>(closable: T): T {
    this.#open.push(closable);
    return closable;
  }

  closeAll(): void {
    for (const closable of this.#open.splice(0)) closable.close();
    this.forgetHost();
  }

  /** Everybody leaves; then nothing may have changed. @throws Error - something has */
  async expectUnharmed(): Promise<void> {
    for (const closable of this.#open.splice(0)) closable.close();
    if (!this.running) throw new Error(`the daemon ended:\n${this.log().slice(-2000)}`);
    await connectGoodNet(this.socket, this.host).catch((error: unknown) => {
      throw new Error(`a good client is not served any more; the log ends:\n${this.log().slice(-2000)}`, {
        cause: error,
      });
    });
    const { pid } = this;
    await eventually(
      'open descriptors',
      () => fdCount(pid),
      (count) => count === this.#fds,
    );
    await eventually(
      'mappings of guest memory',
      () => sharedMappings(pid),
      (count) => count === 0,
    );
  }
}

/** One daemon for all tests of the surrounding describe, checked after each of them. */
export const hostileNetDaemon = (options: NetDaemonOptions = {}): (() => NetDaemon) => {
  const cleanup = new Cleanup();
  let daemon: NetDaemon | undefined;
  const get = (): NetDaemon => {
    if (daemon === undefined) throw new Error('the daemon did not start');
    return daemon;
  };
  beforeAll(async () => {
    daemon = await NetDaemon.start(cleanup, options);
  });
  afterEach(() => get().expectUnharmed());
  afterAll(() => cleanup.run());
  return get;
};
