/** The tests' freestanding guest (test/support/vm/guest) as a load, and what it says at its serial port. */
import type { ChildProcess } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { type Children, CommandError, collectOutput } from '../children.ts';
import { PROGRAM_FOLDER } from '../programs.ts';

const SOURCES = path.join('test', 'support', 'vm', 'guest');
const LINE_TIMEOUT_MS = 60_000;

/**
 * Compiles the guest, in the form with a PVH note, which both monitors start. This one writes a line feed to its serial port
 * as soon as it runs.
 * @returns the path of the kernel
 * @throws COMMAND_FAILED - gcc failed
 */
export async function buildGuest(children: Children): Promise<string> {
  mkdirSync(PROGRAM_FOLDER, { recursive: true });
  const kernel = path.join(PROGRAM_FOLDER, 'guest.pvh');
  const sources = readdirSync(SOURCES).filter((name) => name === 'boot.S' || name.endsWith('.c'));
  const flags = [
    // gcc looks for what a response file names in its own folder.
    `@${path.join(SOURCES, 'gcc.args')}`,
    ...['-T', path.join(SOURCES, 'guest.ld'), '-DPVH', '-DFIRST_BYTE', '-Wl,-e,pvh_start'],
  ];
  await children.run('gcc', [...flags, '-o', kernel, ...sources.map((name) => path.join(SOURCES, name))]);
  return kernel;
}

/** Orders for the guest: its command line. */
export function guestCommandLine(parameters: Readonly<Record<string, string | number>>): string {
  const megahertz = /^cpu MHz\s*:\s*(\d+)/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '2000';
  return Object.entries({ tsc_mhz: megahertz, ...parameters })
    .map(([name, value]) => `${name}=${value}`)
    .join(' ');
}

/** A line `name=value` of a guest, and when it came. */
export interface GuestLine {
  value: string;
  /** By performance.now(). */
  at: number;
}

/** The standard output of a monitor, which is its guest's serial port. */
export class SerialOutput {
  private readonly child: ChildProcess;
  private readonly lines = new Map<string, GuestLine>();
  private readonly output: { stdout: string; stderr: string };
  private partial = '';
  private ended = false;
  private wake: () => void = () => {};

  constructor(child: ChildProcess) {
    this.child = child;
    this.output = collectOutput(child);
    child.stdout?.on('data', (text: string) => this.take(text, performance.now()));
    const end = () => {
      this.ended = true;
      this.wake();
    };
    child.once('close', end);
    child.once('error', end);
  }

  private take(text: string, at: number): void {
    const lines = `${this.partial}${text}`.split('\n');
    this.partial = lines.pop() ?? '';
    for (const line of lines) {
      const [, name = '', value = ''] = /^([\w.]+)=(.*?)\r?$/.exec(line) ?? [];
      this.lines.set(name, { value, at });
    }
    this.wake();
  }

  /**
   * Resolves when the guest has reported `name`.
   * @throws COMMAND_FAILED - the monitor ended before, or a minute passed
   */
  async line(name: string): Promise<GuestLine> {
    const deadline = performance.now() + LINE_TIMEOUT_MS;
    for (;;) {
      const found = this.lines.get(name);
      if (found !== undefined) return found;
      const left = deadline - performance.now();
      if (this.ended || left <= 0) {
        const { stdout, stderr } = this.output;
        throw new CommandError(`${this.child.spawnfile}: no line ${name} from the guest\n${stderr}${stdout}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}
