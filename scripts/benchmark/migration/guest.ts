/** What a guest with job=dirty shows of itself while it moves: that it runs, and what it has done. */
import type { ChildProcess } from 'node:child_process';
import { CommandError, collectOutput } from '../children.ts';
import { hasEnded } from '../daemons.ts';
import { guestCommandLine } from '../vm/guest.ts';
import type { Load } from './workloads.ts';

/** How often the guest shows that it runs. */
export const TICK_MS = 2;
const DEPTH = 16;
const REPORT_TIMEOUT_MS = 30_000;

/** What the guest has done when its clock was at `ticks`. */
export interface Work {
  ticks: number;
  pages: number;
  requests: number;
}

/** The guest's orders; `more` is what it cannot know of the machine. */
export function orders(load: Load, more: Readonly<Record<string, string | number>> = {}): string {
  const { processors, rangeMib, pagesPerSecond, reads } = load;
  const disk = reads ? { disk: 1, qd: DEPTH } : {};
  return guestCommandLine({
    job: 'dirty',
    cpus: processors,
    mb: rangeMib,
    rate: pagesPerSecond,
    tick_us: TICK_MS * 1000,
    ...disk,
    ...more,
  });
}

export function parseWork(line: string): Work | undefined {
  const [, ticks, pages, requests] = /^dirty=(\d+),(\d+),(\d+)\r?$/.exec(line) ?? [];
  return ticks === undefined ? undefined : { ticks: Number(ticks), pages: Number(pages), requests: Number(requests) };
}

/** Ticks of the guest's clock in a second: what its command line says. */
export const TICKS_PER_SECOND = Number(/tsc_mhz=(\d+)/.exec(guestCommandLine({}))?.[1]) * 1e6;

/** What was done a second. */
export function rateOf(from: Work, to: Work, what: 'pages' | 'requests'): number {
  return ((to[what] - from[what]) * TICKS_PER_SECOND) / (to.ticks - from.ticks);
}

/** The longest time without a sign of life between two moments; the signs are in order. */
export function longestSilence(signs: readonly number[], from: number, to: number): number {
  let last = from;
  let longest = 0;
  for (const sign of signs) {
    if (sign < from) continue;
    if (sign > to) break;
    longest = Math.max(longest, sign - last);
    last = sign;
  }
  return Math.max(longest, to - last);
}

/** The standard output of a monitor, which is the serial port of the guest while it is there. */
export class GuestSigns {
  private readonly child: ChildProcess;
  private readonly output: { stdout: string; stderr: string };
  /** By performance.now(), when something came. */
  readonly times: number[] = [];
  private partial = '';
  private latest: Work | undefined;
  private hasFailed = false;
  private wake: () => void = () => {};

  constructor(child: ChildProcess) {
    this.child = child;
    this.output = collectOutput(child);
    child.stdout?.on('data', (text: string) => {
      this.times.push(performance.now());
      const lines = `${this.partial}${text}`.split('\n');
      this.partial = lines.pop() ?? '';
      for (const line of lines) this.take(line);
    });
    child.once('close', () => this.wake());
  }

  private take(line: string): void {
    if (line.startsWith('dirty.failures=')) this.hasFailed = true;
    const work = parseWork(line);
    if (work === undefined) return;
    this.latest = work;
    this.wake();
  }

  /** What the monitor has said on its standard error. */
  get complaints(): string {
    return this.output.stderr;
  }

  /** What the guest reports next. @throws COMMAND_FAILED - the monitor ended, half a minute passed, or requests failed */
  async work(): Promise<Work> {
    const before = this.latest;
    const deadline = performance.now() + REPORT_TIMEOUT_MS;
    while (this.latest === undefined || this.latest === before) {
      const left = deadline - performance.now();
      if (hasEnded(this.child) || left <= 0) {
        throw new CommandError(`${this.child.spawnfile}: the guest says nothing\n${this.complaints}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    if (this.hasFailed) throw new CommandError('requests of the guest failed');
    return this.latest;
  }

  /** What the guest does within some time. */
  async workFor(seconds: number): Promise<readonly [from: Work, to: Work]> {
    const end = performance.now() + seconds * 1000;
    const from = await this.work();
    let to = await this.work();
    while (performance.now() < end) to = await this.work();
    return [from, to];
  }
}
