/**
 * A child process as tests use it: in a process group of its own, the end of its output in a string, waited for
 * by pattern and deadline instead of by sleeping, and certainly dead after stop().
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { forgetGroup, watchGroup } from './watchdog.ts';

/** How a child ended. */
export interface ChildExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

interface Waiter {
  readonly pattern: RegExp;
  readonly from: number;
  readonly resolve: (match: RegExpExecArray) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** Characters of output that are kept at least: a guest that spins must not fill our memory. */
const OUTPUT_LIMIT = 1 << 20;
/** Characters of output in an error message. */
const TAIL_LENGTH = 3000;

export class Child {
  readonly name: string;
  readonly #process: ChildProcess;
  readonly #waiters = new Set<Waiter>();
  readonly #exited: Promise<ChildExit>;
  #output = '';
  #dropped = 0;
  #closed = false;
  #exit: ChildExit | undefined;

  /** Starts `command`. One that cannot be started fails every later wait with the reason. */
  constructor(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.name = command.split('/').pop() ?? command;
    this.#process = spawn(command, args, {
      env,
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const group = this.#process.pid;
    if (group !== undefined) watchGroup(group);
    this.#collect(this.#process.stdout);
    this.#collect(this.#process.stderr);
    this.#process.stdin?.on('error', () => {});
    this.#exited = new Promise((resolve) => {
      const end = (exit: ChildExit): void => {
        if (this.#exit !== undefined) return;
        this.#exit = exit;
        if (group !== undefined) {
          killGroup(group);
          forgetGroup(group);
        }
        resolve(exit);
      };
      this.#process.once('error', (error) => {
        this.#append(`${error.message}\n`);
        end({ code: null, signal: null });
        this.#closed = true;
        this.#failWaiters();
      });
      // 'exit' and not 'close': a grandchild that holds the pipes must not hide that the child is gone.
      this.#process.once('exit', (code, signal) => end({ code, signal }));
      // What it wrote last comes before 'close'.
      this.#process.once('close', () => {
        this.#closed = true;
        this.#failWaiters();
      });
    });
  }

  /** @throws Error - when the child could not be started. */
  get pid(): number {
    if (this.#process.pid === undefined) throw new Error(`${this.name} did not start: ${this.tail()}`);
    return this.#process.pid;
  }

  get running(): boolean {
    return this.#exit === undefined && this.#process.pid !== undefined;
  }

  get stdin(): Writable {
    if (this.#process.stdin === null) throw new Error(`${this.name} has no stdin`);
    return this.#process.stdin;
  }

  /** For tests that do not read it for a while, or any more. */
  get stdout(): Readable {
    if (this.#process.stdout === null) throw new Error(`${this.name} has no stdout`);
    return this.#process.stdout;
  }

  /** What it printed, both streams in order of arrival. */
  output(): string {
    return this.#output;
  }

  /** The end of the output, for error messages. */
  tail(): string {
    return this.#output.slice(-TAIL_LENGTH);
  }

  /** A position in the output, for waitFor to look behind. */
  mark(): number {
    return this.#dropped + this.#output.length;
  }

  /**
   * Resolves with the first match of `pattern` in the output behind `from`.
   * @throws Error - after deadlineMs, or when the child ends without printing it; the message ends with its output.
   */
  waitFor(pattern: RegExp, deadlineMs: number, from = 0): Promise<RegExpExecArray> {
    const match = this.#search(pattern, from);
    if (match !== null) return Promise.resolve(match);
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        pattern,
        from,
        resolve,
        reject,
        timer: setTimeout(() => {
          this.#waiters.delete(waiter);
          reject(new Error(`${this.name} did not print ${pattern} within ${deadlineMs} ms:\n${this.tail()}`));
        }, deadlineMs),
      };
      this.#waiters.add(waiter);
      if (!this.running && this.#closed) this.#failWaiters();
    });
  }

  /**
   * Resolves when the child has ended.
   * @throws Error - after deadlineMs.
   */
  async waitForExit(deadlineMs: number): Promise<ChildExit> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`${this.name} did not end within ${deadlineMs} ms:\n${this.tail()}`)),
        deadlineMs,
      );
    });
    try {
      return await Promise.race([this.#exited, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * The same, and all that the child wrote is in output(): what it wrote last may arrive after its end.
   * @throws Error - after deadlineMs, which a grandchild that holds the pipes can bring about.
   */
  async waitForClose(deadlineMs: number): Promise<ChildExit> {
    const end = performance.now() + deadlineMs;
    const exit = await this.waitForExit(deadlineMs);
    if (this.#closed) return exit;
    const signal = AbortSignal.timeout(Math.max(1, Math.ceil(end - performance.now())));
    await once(this.#process, 'close', { signal }).catch(() => {
      throw new Error(`${this.name} ended, and its output did not within ${deadlineMs} ms:\n${this.tail()}`);
    });
    return exit;
  }

  /** Sends a signal to the child alone. */
  kill(signal: NodeJS.Signals): void {
    if (this.running) this.#process.kill(signal);
  }

  /** Kills the whole process group and waits for the child's end. Safe to call at any time, also twice. */
  async stop(): Promise<void> {
    if (this.running) killGroup(this.pid);
    await this.#exited;
    this.#process.stdin?.destroy();
    this.#process.stdout?.destroy();
    this.#process.stderr?.destroy();
  }

  /** Number of open file descriptors. */
  fdCount(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  /** Resident memory in bytes. */
  rssBytes(): number {
    const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, 'utf8'));
    if (match?.[1] === undefined) throw new Error(`${this.name} has no VmRSS`);
    return Number(match[1]) * 1024;
  }

  #collect(stream: Readable | null): void {
    stream?.setEncoding('utf8');
    stream?.on('data', (text: string) => this.#append(text));
    stream?.on('error', () => {});
  }

  #append(text: string): void {
    this.#output += text;
    if (this.#output.length > 2 * OUTPUT_LIMIT) {
      const excess = this.#output.length - OUTPUT_LIMIT;
      this.#output = this.#output.slice(excess);
      this.#dropped += excess;
    }
    for (const waiter of this.#waiters) {
      const match = this.#search(waiter.pattern, waiter.from);
      if (match !== null) this.#settle(waiter).resolve(match);
    }
  }

  #search(pattern: RegExp, from: number): RegExpExecArray | null {
    return pattern.exec(this.#output.slice(Math.max(0, from - this.#dropped)));
  }

  #settle(waiter: Waiter): Waiter {
    clearTimeout(waiter.timer);
    this.#waiters.delete(waiter);
    return waiter;
  }

  #failWaiters(): void {
    for (const waiter of this.#waiters) {
      const how = this.#exit?.signal ?? `code ${this.#exit?.code}`;
      this.#settle(waiter).reject(
        new Error(`${this.name} ended (${how}) without printing ${waiter.pattern}:\n${this.tail()}`),
      );
    }
  }
}

const killGroup = (group: number): void => {
  try {
    process.kill(-group, 'SIGKILL');
  } catch (error) {
    // ESRCH is the aim.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
};
