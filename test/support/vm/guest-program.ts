/**
 * The freestanding test guest: a program without an operating system that drives virtio-mmio itself, tells what it finds by
 * lines `name=value` on a 16550, and takes its orders from the kernel command line. Compiled on first use from the C and
 * assembly beside this file, in three forms that differ in how a loader enters it, and kept in .cache/guests under a hash
 * of what went into it. guest/main.c lists its jobs.
 */

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Child } from '../child.ts';
import { cacheDirectory, type PeerName, peerPath } from '../peers.ts';

/** What a test needs to build the guest. */
export const guestProgramPeers: readonly PeerName[] = ['gcc'];

/** `pvh`: ELF with the PVH note; `linux64`: ELF without, entered in long mode with a zero page; `bzImage`. */
export type GuestForm = 'pvh' | 'linux64' | 'bzImage';

const SOURCES = fileURLToPath(new URL('guest/', import.meta.url));

/**
 * Arguments of gcc, which scripts/bench reads too: nothing that an instruction emulator might not know, that is, no vector
 * registers and no endbr64.
 */
const ARGUMENTS = '@gcc.args';

/** Compiles the guest, or finds it compiled. Returns its path. @throws Error - with what gcc says */
export const buildGuest = (form: GuestForm): string => {
  const names = readdirSync(SOURCES).sort();
  const hash = createHash('sha256');
  for (const name of names) hash.update(name).update(readFileSync(join(SOURCES, name)));
  const directory = join(cacheDirectory, 'guests');
  const path = join(directory, `${hash.digest('hex').slice(0, 20)}.${form}`);
  if (existsSync(path)) return path;

  mkdirSync(directory, { recursive: true });
  // Whole or not at all: two test processes may build the same one.
  const work = mkdtempSync(join(directory, 'build-'));
  try {
    const compile = (output: string, ...args: readonly string[]): void => {
      execFileSync(peerPath('gcc'), [ARGUMENTS, '-o', join(work, output), ...args], { cwd: SOURCES, stdio: 'pipe' });
    };
    const program = ['-T', 'guest.ld', 'boot.S', ...names.filter((name) => name.endsWith('.c'))];
    if (form === 'pvh') {
      compile('guest', ...program, '-DPVH', '-Wl,-e,pvh_start');
    } else if (form === 'linux64') {
      compile('guest', ...program, '-Wl,-e,linux64_start');
    } else {
      compile('flat', ...program, '-Wl,-e,linux64_start', '-Wl,--oformat=binary');
      const flat = `-DKERNEL="${join(work, 'flat')}"`;
      compile('guest', flat, '-Wl,-Ttext=0', '-Wl,-e,0', '-Wl,--oformat=binary', 'setup.S');
    }
    renameSync(join(work, 'guest'), path);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return path;
};

/** Parameters of the guest's command line. */
export type GuestParameters = Readonly<Record<string, string | number>>;

/** The command line that gives the guest its orders, and the speed of its clock. */
export const guestCommandLine = (parameters: GuestParameters): string => {
  const megahertz = /^cpu MHz\s*:\s*(\d+)/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '2000';
  const all: GuestParameters = { tsc_mhz: megahertz, ...parameters };
  return Object.entries(all)
    .map(([name, value]) => `${name}=${value}`)
    .join(' ');
};

/** What a guest says. Its serial port is the output of `child`, which is to print little else: that breaks lines. */
export class GuestOutput {
  readonly child: Child;

  constructor(child: Child) {
    this.child = child;
  }

  /** The values that were reported under a name, in order, as text. A line that is not yet whole says nothing. */
  all(name: string): string[] {
    const lines = this.child.output().split(/\r?\n/).slice(0, -1);
    return lines.filter((line) => line.startsWith(`${name}=`)).map((line) => line.slice(name.length + 1));
  }

  /** The last value reported under a name. @throws Error - there is none */
  text(name: string): string {
    const value = this.all(name).at(-1);
    if (value === undefined) throw new Error(`the guest did not report ${name}:\n${this.child.tail()}`);
    return value;
  }

  number(name: string): number {
    return Number(this.text(name));
  }

  /** All numbers reported as `prefix.name`, by name: what a job found, for one comparison. */
  numbers(prefix: string): Record<string, number> {
    const pattern = new RegExp(`^${prefix}\\.(\\w+)=(\\d+|0x[0-9a-f]+)\\r?\\n`, 'gm');
    return Object.fromEntries([...this.child.output().matchAll(pattern)].map((m) => [m[1] ?? '', Number(m[2])]));
  }

  /** Resolves when the guest reports `name`, with the value. @throws Error - after deadlineMs, or when it ends first */
  async waitFor(name: string, deadlineMs = 30_000, from = 0): Promise<string> {
    const pattern = new RegExp(`^${name.replaceAll('.', '\\.')}=([^\\r\\n]*)\\r?\\n`, 'm');
    const match = await this.child.waitFor(pattern, deadlineMs, from);
    return match[1] ?? '';
  }

  /** Resolves when a job is done. */
  async waitUntilDone(job: string, deadlineMs = 60_000, from = 0): Promise<void> {
    await this.child.waitFor(new RegExp(`^done=${job}\\r?\\n`, 'm'), deadlineMs, from);
  }
}
