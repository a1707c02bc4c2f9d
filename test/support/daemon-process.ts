/** A back end as a child process that listens at a Unix socket: what tests do to one, whatever device it serves. */

import type { Child, ChildExit } from './child.ts';

export abstract class DaemonProcess {
  readonly socket: string;
  readonly #spawn: () => Child;
  #child: Child;

  protected constructor(socket: string, spawn: () => Child) {
    this.socket = socket;
    this.#spawn = spawn;
    this.#child = spawn();
  }

  /** The present process. */
  protected get child(): Child {
    return this.#child;
  }

  /** Resolves when it listens. @throws Error - it does not in time, with the log */
  abstract waitUntilListening(): Promise<void>;

  get pid(): number {
    return this.#child.pid;
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

  rssBytes(): number {
    return this.#child.rssBytes();
  }

  /** Sends a signal, SIGHUP for instance. */
  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Kills the daemon where it stands; the socket file stays behind. */
  async kill9(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#child.waitForClose(5_000);
  }

  /** Asks the daemon to stop and waits until it has; log() is whole then. */
  async sigterm(deadlineMs = 10_000): Promise<ChildExit> {
    this.#child.kill('SIGTERM');
    return this.#child.waitForClose(deadlineMs);
  }

  /** Starts the daemon anew with the same arguments, after its end. */
  async restart(): Promise<void> {
    if (this.#child.running) throw new Error('the daemon runs');
    this.#child = this.#spawn();
    await this.waitUntilListening();
  }
}
