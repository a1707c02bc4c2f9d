/**
 * `ringside vm run` and `ringside vm serve` from dist as child processes: the guest's serial port is their standard
 * output, their API is asked over its socket, and what they leave behind is looked for.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { whileItIsThere } from '../frontend/process-probe.ts';
import type { NetworkNamespace } from '../net/namespace.ts';
import { type PeerName, projectDirectory } from '../peers.ts';
import {
  buildGuest,
  type GuestForm,
  GuestOutput,
  type GuestParameters,
  guestCommandLine,
  guestProgramPeers,
} from './guest-program.ts';

/** What a test needs for VmmProcess with the test guest. */
export const vmGuestPeers: readonly PeerName[] = ['KVM', ...guestProgramPeers];

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');

export interface VmOptions {
  readonly form?: GuestForm;
  readonly parameters: GuestParameters;
  readonly cpus?: number;
  /** As on the command line: `128M`. */
  readonly memory?: string;
  /** Values of --disk, `socket=S` for instance; --net and --fs likewise. */
  readonly disks?: readonly string[];
  readonly networks?: readonly string[];
  readonly fileSystems?: readonly string[];
  readonly extra?: readonly string[];
  /** Where its TAPs are. */
  readonly namespace?: NetworkNamespace;
}

export interface ApiAnswer {
  readonly status: number;
  /** Parsed JSON, or undefined where there is no body. */
  readonly body: unknown;
}

/** Counters by device, then by name. */
export type Counters = Readonly<Record<string, Readonly<Record<string, number>>>>;

export class VmmProcess {
  readonly child: Child;
  readonly guest: GuestOutput;
  readonly apiSocket: string;
  readonly #logFile: string;

  private constructor(child: Child, apiSocket: string, logFile: string) {
    this.child = child;
    this.guest = new GuestOutput(child);
    this.apiSocket = apiSocket;
    this.#logFile = logFile;
  }

  /** What it has logged, as JSON lines. */
  log(): string {
    return existsSync(this.#logFile) ? readFileSync(this.#logFile, 'utf8') : '';
  }

  /** Starts `ringside vm run` with the test guest. `cleanup` kills it at the latest. */
  static run(cleanup: Cleanup, options: VmOptions): VmmProcess {
    const each = (name: string, values: readonly string[] = []): string[] => values.flatMap((value) => [name, value]);
    return VmmProcess.#start(cleanup, options.namespace, [
      ...['run', '--kernel', buildGuest(options.form ?? 'pvh'), '--cmdline', guestCommandLine(options.parameters)],
      ...['--cpus', String(options.cpus ?? 1), '--memory', options.memory ?? 'size=128M', '--serial', 'tty'],
      ...each('--disk', options.disks),
      ...each('--net', options.networks),
      ...each('--fs', options.fileSystems),
      ...(options.extra ?? []),
    ]);
  }

  /** Starts `ringside vm serve`. */
  static serve(cleanup: Cleanup, extra: readonly string[] = []): VmmProcess {
    return VmmProcess.#start(cleanup, undefined, ['serve', ...extra]);
  }

  static #start(cleanup: Cleanup, namespace: NetworkNamespace | undefined, args: readonly string[]): VmmProcess {
    if (!existsSync(MAIN)) throw new Error(`${MAIN} is not built: run scripts/build`);
    const apiSocket = join(cleanup.directory(), 'api');
    const logFile = join(cleanup.directory(), 'log');
    // What the VMM says while the guest does would come between the guest's words.
    const all = [MAIN, 'vm', ...args, '--api-socket', apiSocket, '--log-file', logFile];
    const child = namespace?.spawn(process.execPath, all) ?? new Child(process.execPath, all);
    cleanup.add(() => child.stop());
    return new VmmProcess(child, apiSocket, logFile);
  }

  /** One request; waits for the API's socket if need be. @throws Error - no answer within deadlineMs */
  async request(method: 'GET' | 'PUT', route: string, body?: unknown, deadlineMs = 20_000): Promise<ApiAnswer> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      if (existsSync(this.apiSocket)) {
        try {
          return await this.#ask(method, route, body, deadlineMs);
        } catch (error) {
          // It has a name a moment before it listens.
          if ((error as NodeJS.ErrnoException).code !== 'ECONNREFUSED') throw error;
        }
      }
      if (!this.child.running || performance.now() > end) throw new Error(`there is no API:\n${this.child.tail()}`);
      await delay(5);
    }
  }

  #ask(method: 'GET' | 'PUT', route: string, body: unknown, deadlineMs: number): Promise<ApiAnswer> {
    return new Promise((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const headers =
        text === undefined ? {} : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) };
      const path = `/api/v1/${route}`;
      const sent = request({ socketPath: this.apiSocket, method, path, headers, timeout: deadlineMs }, (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        // It ended in the middle of the answer.
        response.on('error', reject);
        response.on('end', () => {
          const answer = Buffer.concat(chunks).toString();
          resolve({ status: response.statusCode ?? 0, body: answer === '' ? undefined : JSON.parse(answer) });
        });
      });
      sent.on('timeout', () => sent.destroy(new Error(`no answer to ${route} within ${deadlineMs} ms`)));
      // A connection that was kept for another request, and that the server had enough of at the same moment: it has not
      // seen this request. Asked again, a VMM that is gone says so.
      sent.on('error', (error: NodeJS.ErrnoException) => {
        if (sent.reusedSocket && error.code === 'ECONNRESET') resolve(this.#ask(method, route, body, deadlineMs));
        else reject(error);
      });
      sent.end(text);
    });
  }

  /** A PUT that has to succeed. @throws Error - with the answer, when its status is not 204 */
  async put(route: string, body?: unknown): Promise<void> {
    const answer = await this.request('PUT', route, body);
    if (answer.status !== 204) throw new Error(`${route}: ${answer.status} ${JSON.stringify(answer.body)}`);
  }

  async counters(): Promise<Counters> {
    const { status, body } = await this.request('GET', 'vm.counters');
    if (status !== 200) throw new Error(`vm.counters: ${status} ${JSON.stringify(body)}`);
    return body as Counters;
  }

  async state(): Promise<string> {
    const { body } = await this.request('GET', 'vm.info');
    return (body as { state: string }).state;
  }

  /** Exits of all vCPUs to the VMM for writes to and reads from devices. */
  async deviceExits(): Promise<number> {
    let sum = 0;
    for (const [name, values] of Object.entries(await this.counters())) {
      if (/^vcpu\d+$/.test(name)) sum += values.exits_mmio ?? Number.NaN;
    }
    return sum;
  }

  /** Mappings of memfds: guest memory that it holds. */
  memfds(): number {
    const lines = readFileSync(`/proc/${this.child.pid}/maps`, 'utf8').split('\n');
    return lines.filter((line) => line.includes('/memfd:')).length;
  }

  /** Process ids of the daemons that it has started. */
  daemons(): number[] {
    return childrenOf(this.child.pid);
  }

  /** Kills the daemon that it has started. Returns its process id. @throws Error - there is none, or more than one */
  killDaemon(): number {
    const [daemon, ...more] = this.daemons();
    if (daemon === undefined || more.length > 0) {
      throw new Error(`the VMM has ${daemon === undefined ? 'no daemon' : 'several daemons'}:\n${this.child.tail()}`);
    }
    process.kill(daemon, 'SIGKILL');
    return daemon;
  }
}

/** Children of a process, of all its threads. */
export const childrenOf = (pid: number): number[] => {
  const threads = `/proc/${pid}/task`;
  const names = whileItIsThere(() => readdirSync(threads)) ?? [];
  return names.flatMap((thread) => {
    const text = whileItIsThere(() => readFileSync(join(threads, thread, 'children'), 'utf8')) ?? '';
    return text.split(' ').filter(Boolean).map(Number);
  });
};

/** Whether a process runs; one that nobody has waited for does not. */
export const isRunning = (pid: number): boolean => {
  const stat = whileItIsThere(() => readFileSync(`/proc/${pid}/stat`, 'utf8'));
  return stat !== undefined && !/^\d+ \(.*\) [ZX]/.test(stat);
};
