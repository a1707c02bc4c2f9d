/** Our monitor: `ringside vm serve` processes, their API, and a guest that goes from one to the other. */
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VmProgress } from '../../../vmm-client/api/vmm-control.ts';
import { type Children, CommandError } from '../children.ts';
import { hasEnded, stopChild } from '../daemons.ts';
import { awaitApi } from '../vm/api.ts';
import { OUR_MONITOR } from '../vm/monitors.ts';
import { GuestSigns, orders } from './guest.ts';
import { type GuestOptions, MEGA, type Moved, type Pair, type Place } from './moves.ts';

const ANSWER_TIMEOUT_MS = 120_000;
const WAITING_TIMEOUT_MS = 10_000;
const MIB = 2 ** 20;

interface Answer {
  status: number;
  text: string;
}

function ask(socketPath: string, method: 'GET' | 'PUT', route: string, body?: object): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? '' : JSON.stringify(body);
    const headers = text === '' ? {} : { 'Content-Type': 'application/json', 'Content-Length': text.length };
    const options = { socketPath, method, path: `/api/v1/${route}`, headers, timeout: ANSWER_TIMEOUT_MS };
    const sent = request(options, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() }));
    });
    sent.on('timeout', () => sent.destroy(new Error(`no answer within ${ANSWER_TIMEOUT_MS} ms`)));
    sent.on('error', (error) => reject(new CommandError(`${route}: ${error.message}`)));
    sent.end(text);
  });
}

/** Bytes that a process has written so far, to whatever. */
function writtenBytes(pid: number): number {
  return Number(/^wchar: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]);
}

export function serveLine(api: string): string[] {
  return [process.execPath, OUR_MONITOR, 'vm', 'serve', '--api-socket', api];
}

/** The configuration of a guest, for vm.create. */
export function configOf({ kernel, load, data, image }: GuestOptions): object {
  return {
    payload: { kernel, cmdline: orders(load), ...(data === undefined ? {} : { initramfs: data }) },
    cpus: { boot_vcpus: load.processors, max_vcpus: load.processors },
    memory: { size: load.memoryMib * MIB },
    serial: { mode: 'Tty' },
    ...(load.reads ? { disks: [{ id: 'disk', path: image }] } : {}),
  };
}

export class OurMonitor {
  readonly signs: GuestSigns;
  readonly pid: number;
  private readonly child: ChildProcess;
  private readonly api: string;

  private constructor(child: ChildProcess, pid: number, api: string) {
    this.child = child;
    this.pid = pid;
    this.api = api;
    this.signs = new GuestSigns(child);
  }

  /** Starts one without a guest. @throws COMMAND_FAILED */
  static async start(children: Children): Promise<OurMonitor> {
    const api = children.newSocketPath();
    const [command = '', ...args] = serveLine(api);
    const child = children.start(command, args);
    if (child.pid === undefined) throw new CommandError(`${command}: cannot be started`);
    const monitor = new OurMonitor(child, child.pid, api);
    await awaitApi(api);
    return monitor;
  }

  put(route: string, body?: object): Promise<Answer> {
    return ask(this.api, 'PUT', route, body);
  }

  /** @throws COMMAND_FAILED - it was not done */
  async order(route: string, body?: object): Promise<void> {
    const { status, text } = await this.put(route, body);
    if (status !== 204) throw new CommandError(`${route}: ${status} ${text}\n${this.signs.complaints}`);
  }

  /** Of the last long operation; undefined where there was none. */
  async progress(): Promise<VmProgress | undefined> {
    const { status, text } = await ask(this.api, 'GET', 'vm.progress');
    return status === 200 ? JSON.parse(text) : undefined;
  }

  /** Starts a guest and waits until it is at work. */
  async boot(options: GuestOptions): Promise<void> {
    await this.order('vm.create', configOf(options));
    await this.order('vm.boot');
    await this.signs.work();
  }

  /** Waits for a guest at `url`; resolves when it listens. `done` is whether the guest came. */
  async receive(url: string): Promise<{ done: Promise<boolean> }> {
    const done = this.put('vm.receive-migration', { receiver_url: url }).then(({ status }) => status === 204);
    const deadline = performance.now() + WAITING_TIMEOUT_MS;
    while ((await this.progress())?.phase !== 'waiting') {
      if (hasEnded(this.child) || performance.now() > deadline) {
        throw new CommandError(`nobody listens at ${url}\n${this.signs.complaints}`);
      }
      await sleep(2);
    }
    return { done };
  }

  stop(): Promise<void> {
    return stopChild(this.child);
  }
}

async function move(
  [source, destination]: readonly [OurMonitor, OurMonitor],
  { url, isLocal }: Place,
  downtimeMs: number,
  giveUpMs: number,
): Promise<Moved> {
  const { done } = await destination.receive(url);
  const written = writtenBytes(source.pid);
  const timeout_s = Math.max(1, Math.ceil(giveUpMs / 1000));
  const order = { destination_url: url, downtime_ms: downtimeMs, timeout_s, local: isLocal };
  const sent = await source.put('vm.send-migration', order);
  const wireMegabytes = (writtenBytes(source.pid) - written) / MEGA;
  const isMoved = await done;
  const progress = await source.progress();
  if (progress === undefined || (sent.status === 204) !== isMoved) {
    throw new CommandError(`source and destination do not agree: ${sent.status} ${sent.text}`);
  }
  if (!isMoved && !/faster|not done within/.test(sent.text)) throw new CommandError(`vm.send-migration: ${sent.text}`);
  const { elapsed_ms: totalMs, downtime_ms, round: rounds, bytes_per_second } = progress;
  return {
    ...{ isMoved, totalMs, rounds, wireMegabytes, downtimeMs: downtime_ms },
    megabytesPerSecond: bytes_per_second / MEGA,
  };
}

/** Runs `use` with a guest in the first of two monitors. */
export async function withOurPair<T>(
  children: Children,
  options: GuestOptions,
  use: (pair: Pair, monitors: readonly [OurMonitor, OurMonitor]) => Promise<T>,
): Promise<T> {
  const monitors = [await OurMonitor.start(children), await OurMonitor.start(children)] as const;
  const [source, destination] = monitors;
  try {
    await source.boot(options);
    const pair: Pair = {
      source: source.signs,
      destination: destination.signs,
      move: (to, downtimeMs, giveUpMs) => move(monitors, to, downtimeMs, giveUpMs),
    };
    return await use(pair, monitors);
  } finally {
    await Promise.all(monitors.map((monitor) => monitor.stop()));
  }
}
