/** One process of a supervised daemon: its start, what it says, its end. */

import { type ChildProcess, spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { onLines } from './bounded-lines.ts';
import type { Log } from './log.ts';

/** Lines that are kept of what a process says outside of its log, and characters of each. */
const MAX_KEPT_LINES = 20;
const MAX_LINE = 2000;
/** pino's numbers. */
const LEVEL_WARN = 40;
const LEVEL_ERROR = 50;

export class DaemonProcess {
  /** Kept when it says that it serves; fails with the reason when it ends before. */
  readonly serving: Promise<void>;
  /** Kept when the process is gone and what it said has been read. */
  readonly ended: Promise<void>;
  readonly #child: ChildProcess;
  readonly #name: string;
  readonly #log: Log;
  readonly #lines: string[] = [];
  #isServing = false;
  #how = 'runs';

  /** Runs `node` with `args`; descriptor 3 of the process is `socket`, which stays the caller's. */
  constructor(args: readonly string[], socket: number, name: string, log: Log) {
    this.#name = name;
    this.#log = log;
    // A session of its own: Ctrl-C at the terminal is for the VMM, which ends its daemons when it has let go of them.
    this.#child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'pipe', socket], detached: true });
    this.#child.stdin?.on('error', () => undefined);
    this.#readLines(this.#child.stderr, (line) => this.#onLine(line));
    this.ended = new Promise((resolve) => {
      this.#child.once('error', (error) => {
        this.#how = error.message;
        // One that was never there has no other end.
        if (this.#child.pid === undefined) resolve();
      });
      this.#child.once('close', (code, signal) => {
        this.#how = signal === null ? `ended with status ${code}` : `was ended by ${signal}`;
        resolve();
      });
    });
    this.serving = new Promise((resolve, reject) => {
      this.#readLines(this.#child.stdout, (line) => {
        if (line !== 'ready') return;
        this.#isServing = true;
        resolve();
      });
      void this.ended.then(() => {
        if (!this.#isServing) reject(new Error(this.#reason()));
      });
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** How it ended, as a predicate: `was ended by SIGKILL`. */
  get how(): string {
    return this.#how;
  }

  /** Kills one that does not serve, for a reason that `serving` then fails with. */
  giveUp(reason: string): void {
    this.#lines.push(reason);
    this.#child.kill('SIGKILL');
  }

  /** Sends SIGHUP when it serves: before that it would be the end. One that does not get there is not told. */
  async reload(): Promise<void> {
    const isServing = await this.serving.then(
      () => true,
      () => false,
    );
    if (isServing) this.#child.kill('SIGHUP');
  }

  /** Asks it to end, makes it end after `deadlineMs`, and waits until it has. */
  async stop(deadlineMs: number): Promise<void> {
    this.serving.catch(() => undefined);
    this.#child.kill('SIGTERM');
    const timer = setTimeout(() => {
      this.#log.error(`${this.#name}: the daemon does not end within ${deadlineMs} ms: killing it`);
      this.#child.kill('SIGKILL');
    }, deadlineMs);
    await this.ended;
    clearTimeout(timer);
  }

  #readLines(stream: Readable | null, take: (line: string) => void): void {
    if (stream !== null && stream !== undefined) onLines(stream, take);
  }

  /** Lines of its log become lines of ours. What it says without its log is why it does not start, or a crash. */
  #onLine(line: string): void {
    const entry = parseEntry(line);
    if (entry === undefined) {
      if (this.#isServing) this.#log.error(`${this.#name}: ${shortened(line)}`);
      else if (this.#lines.length < MAX_KEPT_LINES && line.trim() !== '') this.#lines.push(shortened(line));
      return;
    }
    const message = `${this.#name}: ${entry.msg}`;
    if (entry.level >= LEVEL_ERROR) this.#log.error(message);
    else if (entry.level >= LEVEL_WARN) this.#log.warn(message);
    else this.#log.info(message);
  }

  /** The sentence that programs of the suite end with; of a crash, what was thrown. */
  #reason(): string {
    const sentence = this.#lines.findLast((line) => /^vhost-user-[a-z]+: /.test(line));
    const thrown = this.#lines.find((line) => /^(?:\w*Error\b|node: )/.test(line));
    const said = sentence?.replace(/^vhost-user-[a-z]+: /, '') ?? thrown ?? this.#lines.at(-1);
    return said === undefined ? `it ${this.#how}` : said;
  }
}

function shortened(line: string): string {
  return line.length <= MAX_LINE ? line : `${line.slice(0, MAX_LINE)} ...`;
}

function parseEntry(line: string): { readonly level: number; readonly msg: string } | undefined {
  if (!line.startsWith('{')) return undefined;
  try {
    const { level, msg } = JSON.parse(line) as { level?: unknown; msg?: unknown };
    return typeof level === 'number' && typeof msg === 'string' ? { level, msg } : undefined;
  } catch {
    return undefined;
  }
}
