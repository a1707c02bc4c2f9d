/**
 * vhost-user-net as a child process in a network namespace. Its socket has a path, and paths know no network
 * namespaces: front ends reach it from outside.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Child, ChildExit } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { projectDirectory } from '../peers.ts';
import type { NetworkNamespace } from './namespace.ts';

export interface NetBackendOptions {
  readonly namespace: NetworkNamespace;
  /** The TAP interface; tap0 by default. */
  readonly tap?: string;
  readonly queuePairs?: number;
  readonly ctrlVq?: boolean;
  /** More arguments, `--mtu=9000` for instance. */
  readonly extra?: readonly string[];
}

const MAIN = join(projectDirectory, 'dist/backends/net/main.js');

export class NetBackend {
  readonly socket: string;
  /** Name of the TAP interface. */
  readonly tap: string;
  readonly #namespace: NetworkNamespace;
  readonly #arguments: string[];
  #child: Child;

  private constructor(socket: string, options: NetBackendOptions) {
    this.socket = socket;
    this.tap = options.tap ?? 'tap0';
    this.#namespace = options.namespace;
    this.#arguments = [
      MAIN,
      `--socket-path=${socket}`,
      `--tap=${this.tap}`,
      '--log-format=json',
      ...(options.queuePairs === undefined ? [] : [`--num-queue-pairs=${options.queuePairs}`]),
      ...(options.ctrlVq === true ? ['--ctrl-vq'] : []),
      ...(options.extra ?? []),
    ];
    this.#child = this.#spawn();
  }

  /** Starts a daemon and waits until it listens. `cleanup` kills it at the latest. */
  static async start(cleanup: Cleanup, options: NetBackendOptions): Promise<NetBackend> {
    if (!existsSync(MAIN)) throw new Error(`${MAIN} is not built: run scripts/build`);
    const backend = new NetBackend(join(cleanup.directory(), 'net.sock'), options);
    await backend.#waitUntilListening();
    return backend;
  }

  get running(): boolean {
    return this.#child.running;
  }

  /** What the present process has logged. */
  log(): string {
    return this.#child.output();
  }

  /** Resolves when the log matches. @throws Error - after deadlineMs or when the daemon ends first. */
  waitForLog(pattern: RegExp, deadlineMs = 10_000): Promise<RegExpExecArray> {
    return this.#child.waitFor(pattern, deadlineMs);
  }

  fdCount(): number {
    return this.#child.fdCount();
  }

  /** Sends a signal, SIGHUP for instance. */
  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Kills the daemon where it stands; the socket file stays behind. */
  async kill9(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#child.waitForExit(5_000);
  }

  /** Asks the daemon to stop and waits until it has. */
  async sigterm(deadlineMs = 10_000): Promise<ChildExit> {
    this.#child.kill('SIGTERM');
    return this.#child.waitForExit(deadlineMs);
  }

  /** Starts the daemon anew with the same arguments, after its end. */
  async restart(): Promise<void> {
    if (this.#child.running) throw new Error('the daemon runs');
    this.#child = this.#spawn();
    await this.#waitUntilListening();
  }

  async #waitUntilListening(): Promise<void> {
    await this.waitForLog(/"listening on /, 15_000);
  }

  #spawn(): Child {
    return this.#namespace.spawn(process.execPath, this.#arguments);
  }
}
