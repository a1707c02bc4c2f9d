/** A stand-in for the machine behind the API. */

import { Readable } from 'node:stream';

/** What tests look at in a configuration. */
interface Config {
  readonly payload: { readonly kernel: string };
}

export const PING = { build_version: 'ringside 1.2.3', version: '1.2.3', pid: 77, features: ['a'] };
export const INFO = { config: { payload: { kernel: '/k' } }, state: 'Running' as const, memory_actual_size: 1 << 29 };
export const PROGRESS = {
  operation: 'send-migration' as const,
  phase: 'memory',
  round: 2,
  bytes_done: 1 << 20,
  bytes_total: 1 << 22,
  dirty_bytes: 4096,
  bytes_per_second: 1 << 20,
  elapsed_ms: 1000,
};
export const QUEUES = {
  at_ms: 1000,
  window_ms: 1000,
  devices: [],
  vcpus: [{ index: 0, cpu_ms: 10 }],
  watch: { period_ms: 10, looks: 100, look_us: 5 },
};
export const COUNTERS = { _disk0: { kicks: 5 } };

/**
 * Notes what it was asked; `fail` says what an operation is to do instead of succeeding. `added` is what it answers to one
 * that adds a device: nothing where the machine is only created.
 */
export class FakeControl {
  readonly calls: string[] = [];
  readonly configs: Config[] = [];
  /** Operation and what it was given. */
  readonly requests: (readonly [name: string, request: unknown])[] = [];
  added: { readonly id: string; readonly slot: number } | undefined = { id: '_disk0', slot: 3 };
  shown: typeof PROGRESS = PROGRESS;
  consoleText: Iterable<Buffer> | AsyncIterable<Buffer> = [Buffer.from('login: ')];
  readonly fail = new Map<string, () => Promise<never> | Promise<void>>();

  async #run(name: string): Promise<void> {
    this.calls.push(name);
    await this.fail.get(name)?.();
  }

  async #take(name: string, request: unknown): Promise<void> {
    this.requests.push([name, request]);
    await this.#run(name);
  }

  async #add(name: string, device: unknown) {
    await this.#take(name, device);
    return this.added;
  }

  ping() {
    this.calls.push('ping');
    return PING;
  }
  async create(config: Config) {
    this.configs.push(config);
    await this.#run('create');
  }
  async info() {
    await this.#run('info');
    return INFO;
  }
  async counters() {
    await this.#run('counters');
    return COUNTERS;
  }
  async queues() {
    await this.#run('queues');
    return QUEUES;
  }
  /** What the console says, and then its end. */
  async console() {
    await this.#run('console');
    const stream = Readable.from(this.consoleText, { objectMode: false });
    return Object.assign(stream, { finish: () => stream.destroy() });
  }
  progress() {
    this.calls.push('progress');
    return this.shown;
  }
  addDisk = (disk: unknown) => this.#add('addDisk', disk);
  addNet = (net: unknown) => this.#add('addNet', net);
  addFs = (fs: unknown) => this.#add('addFs', fs);
  addVsock = (vsock: unknown) => this.#add('addVsock', vsock);
  removeDevice = (request: unknown) => this.#take('removeDevice', request);
  resize = (request: unknown) => this.#take('resize', request);
  resizeDisk = (request: unknown) => this.#take('resizeDisk', request);
  snapshot = (request: unknown) => this.#take('snapshot', request);
  restore = (request: unknown) => this.#take('restore', request);
  sendMigration = (request: unknown) => this.#take('sendMigration', request);
  receiveMigration = (request: unknown) => this.#take('receiveMigration', request);
  consoleInput = (request: unknown) => this.#take('consoleInput', request);
  cancelMigration = () => this.#run('cancelMigration');
  boot = () => this.#run('boot');
  pause = () => this.#run('pause');
  resume = () => this.#run('resume');
  shutdown = () => this.#run('shutdown');
  pressPowerButton = () => this.#run('pressPowerButton');
  reboot = () => this.#run('reboot');
  delete = () => this.#run('delete');
  shutdownVmm = () => this.#run('shutdownVmm');
}
