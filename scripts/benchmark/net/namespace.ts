/**
 * A network namespace without a name: it exists as long as a process is in it, so that interfaces and addresses are gone when the
 * benchmark's processes are, however it ends. What is started in it dies with this process (PR_SET_PDEATHSIG).
 */
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Children, CommandError, collectOutput, type Finished } from '../children.ts';
import { hasEnded, stopChild } from '../daemons.ts';

/** The interface that every participant makes or is given. */
export const INTERFACE = 'bench0';

const DIE_WITH_US = ['setpriv', '--pdeathsig', 'KILL', '--'];
/** IPv6 would send frames of its own on each new interface. */
const HOLDER = `for scope in all default; do echo 1 >/proc/sys/net/ipv6/conf/$scope/disable_ipv6; done
ip link set lo up
echo ready
exec sleep infinity`;
const POLL_MS = 20;
const DEADLINE_MS = 20_000;

/** Counters of an interface, from the kernel's side: received is what was written to the TAP, sent what was read from it. */
export interface Counters {
  atMs: number;
  receivedBytes: number;
  received: number;
  sentBytes: number;
  sent: number;
  sentDropped: number;
}

export interface Started {
  name: string;
  child: ChildProcess;
  output: Finished;
  ends: boolean;
}

export interface StartOptions {
  cpu?: number;
  /** It ends by itself; else its end is a failure. */
  ends?: boolean;
}

export class Namespace {
  private readonly children: Children;
  private readonly holder: ChildProcess;
  private readonly started: Started[] = [];

  private constructor(children: Children, holder: ChildProcess) {
    this.children = children;
    this.holder = holder;
  }

  /** @throws COMMAND_FAILED - it cannot be made */
  static async open(children: Children): Promise<Namespace> {
    const [command = '', ...args] = [...DIE_WITH_US, 'unshare', '--net', 'sh', '-ec', HOLDER];
    const holder = children.start(command, args);
    const output = collectOutput(holder);
    const namespace = new Namespace(children, holder);
    await waitUntil('a network namespace', () => {
      if (hasEnded(holder)) throw new CommandError(`no network namespace: ${output.stderr}`);
      return output.stdout.includes('ready');
    });
    return namespace;
  }

  get procNet(): string {
    return `/proc/${this.holder.pid}/net`;
  }

  /** A command line that runs in here, on one core or on any; it stays one process. */
  line(command: readonly string[], cpu?: number): string[] {
    const pinned = cpu === undefined ? [] : ['taskset', '-c', String(cpu)];
    return [...DIE_WITH_US, 'nsenter', `--net=/proc/${this.holder.pid}/ns/net`, ...pinned, ...command];
  }

  /** Starts what is to run until the namespace is closed. */
  start(commandLine: readonly string[], options: StartOptions = {}): Started {
    const { cpu, ends = false } = options;
    const [command = '', ...args] = this.line(commandLine, cpu);
    const child = this.children.start(command, args);
    const started = { name: path.basename(commandLine[0] ?? ''), child, output: collectOutput(child), ends };
    this.started.push(started);
    return started;
  }

  /**
   * Waits until `condition` is true.
   * @throws COMMAND_FAILED - it is not within 20 s, or what was started in here has ended
   */
  waitUntil(what: string, condition: () => boolean): Promise<void> {
    return waitUntil(what, () => {
      for (const { name, child, output, ends } of this.started) {
        if (ends || !hasEnded(child)) continue;
        throw new CommandError(`${name} ended: ${output.stderr.trim() || output.stdout.slice(-1000)}`);
      }
      return condition();
    });
  }

  run(commandLine: readonly string[], cpu?: number): Promise<Finished> {
    const [command = '', ...args] = this.line(commandLine, cpu);
    return this.children.run(command, args);
  }

  hasInterface(): boolean {
    return readFileSync(`${this.procNet}/dev`, 'utf8').includes(`${INTERFACE}:`);
  }

  counters(): Counters {
    const text = readFileSync(`${this.procNet}/dev`, 'utf8');
    const fields = new RegExp(`^ *${INTERFACE}:(.*)$`, 'm').exec(text)?.[1]?.trim().split(/\s+/).map(Number);
    if (fields === undefined) throw new CommandError(`no interface ${INTERFACE}`);
    const [receivedBytes = 0, received = 0, , , , , , , sentBytes = 0, sent = 0, , sentDropped = 0] = fields;
    return { atMs: performance.now(), receivedBytes, received, sentBytes, sent, sentDropped };
  }

  /** Ends everything that was started in here, the last one first, and with it the namespace. */
  async close(): Promise<void> {
    for (const { child } of this.started.reverse()) await stopChild(child, 'SIGINT');
    await stopChild(this.holder);
  }
}

async function waitUntil(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new CommandError(`${what}: not there after ${DEADLINE_MS / 1000} s`);
    await sleep(POLL_MS);
  }
}

/** Runs `use` in a new namespace and ends all that it started. */
export async function inNamespace<T>(children: Children, use: (namespace: Namespace) => Promise<T>): Promise<T> {
  const namespace = await Namespace.open(children);
  try {
    return await use(namespace);
  } finally {
    await namespace.close();
  }
}
