/**
 * The main thread's side of a worker thread that serves rings: a RingServer whose calls are messages. The other side is
 * `ring-worker.ts`. Calls of one front end are done in the order they were made.
 */

import { Worker } from 'node:worker_threads';
import type { SharedRegion } from '../../protocol/memory/guest-memory.ts';
import { SysError } from '../../protocol/sys/errors.ts';
import type { SharedExtent } from '../../protocol/sys/mapping.ts';
import type { RingAddresses } from '../../protocol/virtqueue/virtqueue.ts';
import type { DataPathWorker } from './device.ts';
import { type Logger, writeLogLine } from './logging.ts';
import { UsageError } from './options.ts';
import type { PumpOptions } from './pump.ts';
import { Refused } from './refused.ts';
import type {
  InBand,
  RingDescription,
  RingEvents,
  RingFeatures,
  RingServer,
  SignalTarget,
  Translation,
} from './ring-server.ts';

/** Methods of a RingServer, by name. */
export type RingMethod = keyof RingServer;

/** What the main thread tells a worker. */
export type ToWorker =
  | {
      readonly kind: 'open';
      readonly server: number;
      readonly shared: unknown;
      readonly rings: number;
      readonly bindings: Record<string, unknown>;
    }
  | {
      readonly kind: 'call';
      readonly call: number;
      readonly server: number;
      readonly method: RingMethod;
      readonly args: unknown[];
    }
  | { readonly kind: 'end' };

/** Why a worker cannot open its data path: the user's mistake, or a call that failed. */
export type UnusableReason =
  | { readonly usage: string }
  | { readonly syscall: string; readonly errno: number; readonly what: string | undefined };

/** What a worker tells the main thread. */
export type FromWorker =
  | { readonly kind: 'ready' }
  | { readonly kind: 'unusable'; readonly reason: UnusableReason }
  | { readonly kind: 'done'; readonly call: number; readonly value: unknown }
  | { readonly kind: 'refused'; readonly call: number; readonly message: string }
  | { readonly kind: 'event'; readonly server: number; readonly event: keyof RingEvents; readonly args: unknown[] }
  | { readonly kind: 'log'; readonly line: string };

/** What a worker thread is started with. */
export interface RingWorkerData {
  readonly module: string;
  readonly data: unknown;
  readonly thread: number;
  readonly pump: PumpOptions;
  /** What its log lines begin with: those of the main thread's logger. */
  readonly bindings: Record<string, unknown>;
  readonly logLevel: string;
}

interface Call {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class RingThread {
  readonly #worker: Worker;
  readonly #log: Logger;
  readonly #calls = new Map<number, Call>();
  readonly #events = new Map<number, RingEvents>();
  #lastCall = 0;
  #lastServer = 0;
  #ending = false;

  private constructor(worker: Worker, log: Logger) {
    this.#worker = worker;
    this.#log = log;
  }

  /** @throws UsageError, SysError - the thread cannot open its data path */
  static async start(
    { module, data }: DataPathWorker,
    thread: number,
    pump: PumpOptions,
    log: Logger,
  ): Promise<RingThread> {
    const workerData: RingWorkerData = { module, data, thread, pump, bindings: log.bindings(), logLevel: log.level };
    const worker = new Worker(new URL('./ring-worker.js', import.meta.url), { workerData });
    const self = new RingThread(worker, log);
    await new Promise<void>((resolve, reject) => {
      worker.on('message', (message: FromWorker) => {
        if (message.kind === 'ready') resolve();
        else if (message.kind === 'unusable') {
          self.#ending = true;
          reject(unusable(message.reason));
        } else self.#onMessage(message);
      });
      // One that fails tells by 'error', which nobody handles: it ends the process. None may go without a word.
      worker.once('exit', (code) => {
        if (!self.#ending) throw new Error(`thread ${thread} ended by itself, with status ${code}`);
      });
    });
    return self;
  }

  #onMessage(message: FromWorker): void {
    switch (message.kind) {
      case 'done':
        this.#take(message.call)?.resolve(message.value);
        return;
      case 'refused':
        this.#take(message.call)?.reject(new Refused(message.message));
        return;
      case 'event': {
        const events = this.#events.get(message.server);
        if (events === undefined) return;
        // Both ends have the types of RingEvents.
        (events[message.event] as (...args: unknown[]) => void).apply(events, message.args);
        return;
      }
      case 'log':
        writeLogLine(this.#log, message.line);
        return;
    }
  }

  #take(id: number): Call | undefined {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    return call;
  }

  #post(message: ToWorker): void {
    this.#worker.postMessage(message);
  }

  /** Makes a server there for the rings of a front end. */
  openServer(shared: unknown, rings: number, events: RingEvents, log: Logger): RingServer {
    this.#lastServer += 1;
    const server = this.#lastServer;
    this.#events.set(server, events);
    const common = this.#log.bindings();
    const bindings = Object.fromEntries(Object.entries(log.bindings()).filter(([key]) => !(key in common)));
    this.#post({ kind: 'open', server, shared, rings, bindings });
    return new RemoteRingServer(
      (method, ...args) => this.#call(server, method, args),
      () => this.#events.delete(server),
    );
  }

  #call(server: number, method: RingMethod, args: unknown[]): Promise<unknown> {
    this.#lastCall += 1;
    const call = this.#lastCall;
    return new Promise((resolve, reject) => {
      this.#calls.set(call, { resolve, reject });
      this.#post({ kind: 'call', call, server, method, args });
    });
  }

  /** Ends the thread. No request is in flight. */
  async end(): Promise<void> {
    this.#ending = true;
    const ended = new Promise<void>((resolve) => {
      this.#worker.once('exit', () => resolve());
    });
    this.#post({ kind: 'end' });
    await ended;
  }
}

function unusable(reason: UnusableReason): Error {
  return 'usage' in reason ? new UsageError(reason.usage) : new SysError(reason.syscall, reason.errno, reason.what);
}

class RemoteRingServer implements RingServer {
  readonly #ask: (method: RingMethod, ...args: unknown[]) => Promise<unknown>;
  readonly #onClosed: () => void;

  constructor(ask: (method: RingMethod, ...args: unknown[]) => Promise<unknown>, onClosed: () => void) {
    this.#ask = ask;
    this.#onClosed = onClosed;
  }

  async setFeatures(features: RingFeatures): Promise<void> {
    await this.#ask('setFeatures', features);
  }

  async setMemory(regions: readonly SharedRegion[]): Promise<void> {
    await this.#ask('setMemory', regions);
  }

  async displaceAll(): Promise<void> {
    await this.#ask('displaceAll');
  }

  async placeAll(): Promise<void> {
    await this.#ask('placeAll');
  }

  async setLog(log: SharedExtent | 'awaited' | undefined): Promise<void> {
    await this.#ask('setLog', log);
  }

  async translate(change: Translation): Promise<void> {
    await this.#ask('translate', change);
  }

  async start(index: number, ring: RingDescription, kick: number | undefined, polled: boolean): Promise<void> {
    await this.#ask('start', index, ring, kick, polled);
  }

  async setKick(index: number, kick: number | undefined, polled: boolean): Promise<void> {
    await this.#ask('setKick', index, kick, polled);
  }

  async relocate(index: number, addresses: RingAddresses, usedLog: number | undefined): Promise<void> {
    await this.#ask('relocate', index, addresses, usedLog);
  }

  async stop(index: number): Promise<number> {
    return (await this.#ask('stop', index)) as number;
  }

  async enable(index: number, enabled: boolean): Promise<void> {
    await this.#ask('enable', index, enabled);
  }

  async setSignal(index: number, kind: InBand, target: SignalTarget): Promise<void> {
    await this.#ask('setSignal', index, kind, target);
  }

  async kick(index: number): Promise<void> {
    await this.#ask('kick', index);
  }

  async breakAll(): Promise<void> {
    await this.#ask('breakAll');
  }

  async close(): Promise<void> {
    await this.#ask('close');
    this.#onClosed();
  }
}
