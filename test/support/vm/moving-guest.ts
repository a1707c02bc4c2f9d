/**
 * A test guest that two VMMs send each other, or that goes to a directory and comes back: guest/pattern.c, which can tell
 * whether it was moved whole.
 */

import { setTimeout as delay } from 'node:timers/promises';
import type { Cleanup } from '../cleanup.ts';
import { buildGuest, type GuestParameters, guestCommandLine } from './guest-program.ts';
import { type ApiAnswer, VmmProcess } from './vmm-process.ts';

export interface MovingOptions {
  readonly parameters?: GuestParameters;
  readonly cpus?: number;
  readonly memoryMiB?: number;
  /** More fields of the configuration's memory. */
  readonly memory?: Readonly<Record<string, unknown>>;
  /** Fields of the configuration: disks, net, vsock. */
  readonly devices?: Readonly<Record<string, unknown>>;
}

/** What a VMM says of a long operation. */
export interface Progress {
  readonly operation: string;
  readonly phase: string;
  readonly round: number;
  readonly bytes_done: number;
  readonly bytes_total: number;
  readonly elapsed_ms: number;
  readonly downtime_ms?: number;
  readonly throttle_percent?: number;
  readonly error?: string;
}

/** A device of the destination in the place of the source's: `{ id, socket }` and so on. */
export type DeviceOverride = Readonly<Record<string, string>>;

const DEADLINE_MS = 30_000;
const MiB = 1 << 20;

export class MovingGuest {
  vmms: readonly [VmmProcess, VmmProcess];
  /** Where the guest is. */
  #at = 0;
  /** Of the VMM where it is, output from before it came. */
  #mark = 0;
  #arrival = 0;
  #steps = 0;

  private constructor(vmms: readonly [VmmProcess, VmmProcess]) {
    this.vmms = vmms;
  }

  /** Boots the guest in the first of two VMMs, and waits until it is at work. */
  static async start(cleanup: Cleanup, options: MovingOptions = {}): Promise<MovingGuest> {
    const guest = new MovingGuest([VmmProcess.serve(cleanup), VmmProcess.serve(cleanup)]);
    const { parameters = {}, cpus = 1, memoryMiB = 48, memory = {}, devices = {} } = options;
    const all = { job: 'pattern', kb: 1024, every: 50, ...parameters };
    await guest.source.put('vm.create', {
      payload: { kernel: buildGuest('pvh'), cmdline: guestCommandLine(all) },
      cpus: { boot_vcpus: cpus, max_vcpus: cpus },
      memory: { size: memoryMiB * MiB, ...memory },
      serial: { mode: 'Tty' },
      ...devices,
    });
    await guest.source.put('vm.boot');
    await guest.works(2);
    return guest;
  }

  /** Where the guest is, and where it would go. */
  get source(): VmmProcess {
    return this.vmms[this.#at] as VmmProcess;
  }
  get destination(): VmmProcess {
    return this.vmms[1 - this.#at] as VmmProcess;
  }

  /**
   * Waits until the guest, where it is, has reported so many times more, and looks at what it found.
   * @throws Error - it found something wrong, or has gone back in time
   */
  async works(reports = 1): Promise<void> {
    const { child, guest } = this.source;
    const report = /^pattern\.progress=(\d+)\r?\n/gm;
    const steps = (): number[] =>
      [...child.output().slice(this.#mark).matchAll(report)].map((match) => Number(match[1]));
    const wanted = steps().length + reports;
    const end = performance.now() + DEADLINE_MS;
    while (steps().length < wanted) {
      if (!child.running || performance.now() > end) throw new Error(`the guest does not work:\n${child.tail()}`);
      await delay(2);
    }
    const last = steps().at(-1) ?? 0;
    if (last <= this.#steps) throw new Error(`the guest is at step ${last}, and was at ${this.#steps}`);
    this.#steps = last;
    const wrong = [...guest.all('pattern.wrong'), ...guest.all('pattern.failed_request')];
    if (wrong.length > 0) throw new Error(`the guest found: ${wrong.join(' ')}`);
  }

  /** What the guest has reported last under a name, in the VMM where it is. */
  number(name: string): number {
    const lines = this.source.child.output().slice(this.#mark).split(/\r?\n/).slice(0, -1);
    return Number(lines.findLast((line) => line.startsWith(`${name}=`))?.slice(name.length + 1));
  }

  /** The guest is to be restored from a snapshot: it will be where it was then, in the other VMM if it `moves`. */
  goesBack(moves: boolean): void {
    if (moves) this.#at = 1 - this.#at;
    this.#mark = this.source.child.output().length;
    this.#steps = 0;
  }

  async progress(vmm: VmmProcess): Promise<Progress> {
    return (await vmm.request('GET', 'vm.progress')).body as Progress;
  }

  /** Lets the destination wait at `url`. `answer` comes when the guest is there, or does not come. */
  async receive(
    url: string,
    devices: readonly DeviceOverride[] = [],
  ): Promise<{ readonly answer: Promise<ApiAnswer> }> {
    const vmm = this.destination;
    this.#arrival = vmm.child.output().length;
    const answer = vmm.request('PUT', 'vm.receive-migration', { receiver_url: url, devices }, 2 * DEADLINE_MS);
    let isOver = false;
    const noteEnd = (): void => {
      isOver = true;
    };
    answer.then(noteEnd, noteEnd);
    const end = performance.now() + DEADLINE_MS;
    for (;;) {
      const { status, body } = await vmm.request('GET', 'vm.progress');
      const progress = body as Progress;
      const waits = status === 200 && progress.operation === 'receive-migration' && progress.phase === 'waiting';
      if (isOver || waits) return { answer };
      if (performance.now() > end) throw new Error(`the destination does not wait: ${JSON.stringify(body)}`);
      await delay(2);
    }
  }

  /** Sends the guest to where somebody waits. */
  send(url: string, options: Readonly<Record<string, unknown>> = {}): Promise<ApiAnswer> {
    return this.source.request('PUT', 'vm.send-migration', { destination_url: url, ...options }, 2 * DEADLINE_MS);
  }

  /** Another VMM in the place of one that is dead. */
  replaceDestination(cleanup: Cleanup): void {
    const vmms: [VmmProcess, VmmProcess] = [...this.vmms];
    vmms[1 - this.#at] = VmmProcess.serve(cleanup);
    this.vmms = vmms;
  }

  /** The guest is at the other VMM from now on. */
  arrived(): void {
    this.#at = 1 - this.#at;
    this.#mark = this.#arrival;
  }

  /** Sends the guest to the other VMM. Returns what the source says of it. @throws Error - it is not there */
  async migrate(
    url: string,
    devices: readonly DeviceOverride[] = [],
    options: Readonly<Record<string, unknown>> = {},
  ): Promise<Progress> {
    const { source, destination } = this;
    const { answer } = await this.receive(url, devices);
    const [sent, received] = await Promise.all([this.send(url, options), answer]);
    if (sent.status !== 204 || received.status !== 204) {
      const log = `${source.log()}\n${destination.log()}`;
      throw new Error(`${JSON.stringify(sent)} ${JSON.stringify(received)}\n${log.slice(-4000)}`);
    }
    this.arrived();
    return this.progress(source);
  }
}
