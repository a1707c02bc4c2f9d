/** The peer: QEMU's microvm with the same guest on the same KVM, told what to do by QMP. */
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Children, CommandError } from '../children.ts';
import { hasEnded, stopChild } from '../daemons.ts';
import { GuestSigns, orders } from './guest.ts';
import { type GuestOptions, MEGA, type Moved, type Pair } from './moves.ts';

/** The one that scripts/setup --peers unpacks, or else the system's. */
const UNPACKED = path.join('.cache', 'peers', 'qemu', 'usr');
const ANSWER_TIMEOUT_MS = 60_000;
/** Bytes a second: no limit. */
const MAX_BANDWIDTH = 1e12;

/** PC devices that the guest has no use for are left out; its transports are filled from the last one down. */
const MICROVM =
  'microvm,acpi=on,auto-kernel-cmdline=off,isa-serial=on,rtc=off,pic=off,pit=off,ioapic2=off,memory-backend=m';
/** Where the guest finds microvm's transports, which it cannot know. */
const MICROVM_PARAMETERS = { mmio: '0xfeb00000,0x200,8', last: 1, gsi: 16 };

const PROGRAM = path.join(UNPACKED, 'bin', 'qemu-system-x86_64');

/** The program, and where it finds its firmware. */
export function qemuProgram(): string[] {
  const folders = ['qemu', 'seabios'].flatMap((name) => ['-L', path.join(UNPACKED, 'share', name)]);
  return existsSync(PROGRAM) ? [PROGRAM, ...folders] : ['qemu-system-x86_64'];
}

/** Whether the program, from 8.2 on, writes a migration to a file: the system's may be older. */
export function writesFiles(): boolean {
  return existsSync(PROGRAM);
}

export function qemuLine({ kernel, load, data }: Omit<GuestOptions, 'image'>, qmp: string): string[] {
  const size = `${load.memoryMib}M`;
  return [
    ...qemuProgram(),
    ...[
      '-machine',
      MICROVM,
      '-object',
      `memory-backend-memfd,id=m,size=${size},share=on`,
      '-m',
      size,
      '-smp',
      String(load.processors),
    ],
    // Without that feature: its register cannot be set on every host that says it has it.
    ...['-accel', 'kvm', '-cpu', 'host,-arch-capabilities', '-nodefaults', '-no-user-config', '-display', 'none'],
    ...['-serial', 'stdio', '-kernel', kernel, ...(data === undefined ? [] : ['-initrd', data])],
    ...['-append', orders(load, MICROVM_PARAMETERS), '-qmp', `unix:${qmp},server=on,wait=off`],
  ];
}

interface MigrationInfo {
  status: string;
  'total-time'?: number;
  downtime?: number;
  ram?: { transferred: number; mbps: number; 'dirty-sync-count': number };
  'error-desc'?: string;
}

type Message = {
  return?: unknown;
  error?: { desc: string };
  event?: string;
  data?: { status?: string };
};

/** Connects; undefined: nobody listens there. */
function dial(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = createConnection(path, () => {
      socket.removeAllListeners();
      resolve(socket);
    });
    socket.once('error', () => resolve(undefined));
  });
}

export class Qemu {
  readonly signs: GuestSigns;
  private readonly child: ChildProcess;
  private socket: Socket | undefined;
  private partial = '';
  private readonly answers: Message[] = [];
  /** The last state of a migration that was announced. */
  private migration = 'none';
  private wake: () => void = () => {};

  private constructor(child: ChildProcess) {
    this.child = child;
    this.signs = new GuestSigns(child);
  }

  /** Starts one; with `-incoming` in `more` it waits for a guest. @throws COMMAND_FAILED */
  static async start(children: Children, options: GuestOptions, more: readonly string[] = []): Promise<Qemu> {
    const qmp = children.newSocketPath();
    const [command = '', ...args] = qemuLine(options, qmp);
    const qemu = new Qemu(children.start(command, [...args, ...more]));
    await qemu.connect(qmp);
    await qemu.command('qmp_capabilities');
    await qemu.command('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
    return qemu;
  }

  private async connect(qmp: string): Promise<void> {
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    // It has a name a moment before it listens.
    for (;;) {
      this.socket = await dial(qmp);
      if (this.socket !== undefined) break;
      if (hasEnded(this.child) || performance.now() > deadline) {
        throw new CommandError(`${this.child.spawnfile}: ${this.signs.complaints || 'does not answer'}`);
      }
      await sleep(5);
    }
    this.socket.setEncoding('utf8').on('error', () => this.wake());
    this.socket.on('data', (text: string) => {
      const lines = `${this.partial}${text}`.split('\n');
      this.partial = lines.pop() ?? '';
      for (const line of lines) this.take(JSON.parse(line));
      this.wake();
    });
  }

  private take(message: Message): void {
    if (message.event === 'MIGRATION') this.migration = message.data?.status ?? 'none';
    if (message.return !== undefined || message.error !== undefined) this.answers.push(message);
  }

  /** Waits until `found` finds something. */
  private async until<T>(what: string, found: () => T | undefined, timeoutMs = ANSWER_TIMEOUT_MS): Promise<T> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const result = found();
      if (result !== undefined) return result;
      const left = deadline - performance.now();
      if (hasEnded(this.child) || left <= 0) {
        throw new CommandError(`${this.child.spawnfile}: no ${what}\n${this.signs.complaints}`);
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

  /** One command and what it returns. @throws COMMAND_FAILED - it is refused */
  async command(execute: string, args: object = {}): Promise<unknown> {
    this.socket?.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    const answer = await this.until(`answer to ${execute}`, () => this.answers.shift());
    if (answer.error !== undefined) throw new CommandError(`QEMU: ${execute}: ${answer.error.desc}`);
    return answer.return;
  }

  /** Sends the guest to `uri` and tells what came of it; after `giveUpMs` it is cancelled. @throws COMMAND_FAILED */
  async migrate(uri: string, downtimeMs: number, giveUpMs: number): Promise<Moved> {
    await this.command('migrate-set-parameters', { 'max-bandwidth': MAX_BANDWIDTH, 'downtime-limit': downtimeMs });
    const begin = performance.now();
    await this.command('migrate', { uri });
    const ended = this.ended(giveUpMs).catch(() => 'given up');
    const status = await ended;
    const info = (await this.command('query-migrate')) as MigrationInfo;
    const totalMs = info['total-time'] ?? performance.now() - begin;
    if (status === 'given up') {
      await this.command('migrate_cancel');
      await this.ended(ANSWER_TIMEOUT_MS);
    } else if (status !== 'completed') {
      throw new CommandError(`QEMU: migrate: ${info['error-desc'] ?? status}`);
    }
    const { transferred = 0, mbps = 0, 'dirty-sync-count': rounds = 0 } = info.ram ?? {};
    return {
      ...{ isMoved: status === 'completed', totalMs, rounds, wireMegabytes: transferred / MEGA },
      ...{ downtimeMs: info.downtime, megabytesPerSecond: mbps / 8 },
    };
  }

  /** Waits for the end of a migration, in either direction. */
  ended(timeoutMs = ANSWER_TIMEOUT_MS): Promise<string> {
    const ends = ['completed', 'failed', 'cancelled'];
    return this.until('end of a migration', () => ends.find((end) => end === this.migration), timeoutMs);
  }

  async stop(): Promise<void> {
    this.socket?.destroy();
    await stopChild(this.child);
  }
}

/** Runs `use` with a guest in the first of two; the second waits for it at `url`. */
export async function withQemuPair<T>(
  children: Children,
  options: GuestOptions,
  url: string,
  use: (pair: Pair) => Promise<T>,
): Promise<T> {
  const monitors: Qemu[] = [];
  try {
    const source = await Qemu.start(children, options);
    monitors.push(source);
    await source.signs.work();
    const destination = await Qemu.start(children, options, ['-incoming', url]);
    monitors.push(destination);
    const { signs } = destination;
    return await use({
      source: source.signs,
      destination: signs,
      move: ({ url: to }, ...limits) => source.migrate(to, ...limits),
    });
  } finally {
    await Promise.all(monitors.map((monitor) => monitor.stop()));
  }
}
