/**
 * One vCPU as the main thread sees it: starts its thread, answers its accesses on the buses, holds and ends it.
 *
 *     STARTING --> HELD <--> RUNNING --> FAULTED      any --stop--> (gone)
 */

import { SysError } from '../../protocol/sys/errors.ts';
import {
  exitName,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SYSTEM_EVENT,
  kickThread,
  mapVcpu,
  unmapVcpu,
  type VcpuLocation,
  VcpuRun,
} from '../../protocol/sys/kvm-vcpu.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { watchReadable } from '../../protocol/sys/readiness.ts';
import type { Bus } from './bus.ts';
import { VmError } from './errors.ts';
import {
  ADDRESS_HIGH,
  ADDRESS_LOW,
  CHANNEL_BYTES,
  CONTROL,
  COUNT,
  DATA_BYTES,
  DATA_OFFSET,
  EXIT_REASONS,
  EXITS,
  FAULT,
  FAULT_DETAIL,
  FAULTED,
  HELD,
  HOLD,
  IS_MEMORY,
  IS_WRITE,
  KIND,
  REQUEST,
  RUN,
  RUNNING,
  SIZE,
  STARTING,
  STATE,
  STOP,
  THREAD,
} from './vcpu-channel.ts';
import { runVcpu } from './vcpu-worker.ts';

export interface Buses {
  readonly ports: Bus;
  readonly memory: Bus;
}

/** Why a vCPU cannot go on: the guest wants (or, by a triple fault, gets) a reset or an end, or something went wrong. */
export type VcpuEnd = 'reset' | 'shutdown' | Error;

/** struct kvm_run: system_event.type. */
const KVM_SYSTEM_EVENT_SHUTDOWN = 1;
const KVM_SYSTEM_EVENT_RESET = 2;

export class Vcpu {
  readonly index: number;
  readonly #words: Int32Array;
  readonly #data: DataView;
  readonly #buses: Buses;
  readonly #onEnd: (end: VcpuEnd) => void;
  readonly #vcpuFd: OwnedFd;
  readonly #location: VcpuLocation;
  readonly #run: VcpuRun;
  readonly #doorbell: Notifier;
  /** Kept when the thread has nothing to do with this vCPU any more. */
  readonly #thread: Promise<void>;
  /** What gives back what the constructor took, the last first. */
  readonly #release: (() => void)[] = [];
  #answering = false;
  #stopping = false;
  #ended = false;
  #waiting: (() => void)[] = [];
  #failure: Error | undefined;

  /**
   * Starts the thread, held. Owns `vcpuFd`. `mappingBytes` is what KVM_GET_VCPU_MMAP_SIZE said.
   * @throws SysError - no memory or descriptors left
   */
  constructor(index: number, vcpuFd: OwnedFd, mappingBytes: number, buses: Buses, onEnd: (end: VcpuEnd) => void) {
    this.index = index;
    this.#buses = buses;
    this.#onEnd = onEnd;
    this.#vcpuFd = vcpuFd;
    const channel = new SharedArrayBuffer(CHANNEL_BYTES);
    this.#words = new Int32Array(channel);
    this.#data = new DataView(channel, DATA_OFFSET, DATA_BYTES);
    this.#release.push(() => vcpuFd.close());
    try {
      this.#location = mapVcpu(vcpuFd.fd, mappingBytes);
      this.#release.push(() => unmapVcpu(this.#location));
      this.#run = new VcpuRun(this.#location);
      this.#doorbell = new Notifier(createEventFd());
      this.#release.push(() => this.#doorbell.close());
      const watch = watchReadable(this.#doorbell.fd, () => this.#onDoorbell());
      this.#release.push(() => watch.close());
      this.#thread = runVcpu({ channel, location: this.#location, doorbell: this.#doorbell.fd });
    } catch (error) {
      this.#giveBack();
      throw error;
    }
    this.#thread = this.#thread.catch((error: Error) => this.#fail(error));
  }

  /** The descriptor for ioctls while the vCPU is not in the guest. */
  get fd(): number {
    return this.#vcpuFd.fd;
  }

  /** The thread's id. 0 before it has begun. */
  get thread(): number {
    return this.#words[THREAD] as number;
  }

  /** How often the guest left KVM_RUN, by KVM's exit reason. */
  exits(reason: number): number {
    return reason < EXIT_REASONS ? (this.#words[EXITS + reason] as number) >>> 0 : 0;
  }

  /** Runs the guest, from now on or again. Where it is run from is set before the first time. */
  run(): void {
    if (!this.#stopping) this.#control(RUN);
  }

  /**
   * Resolves when the guest is out of KVM_RUN and stays out until `run`. One that waits for a device is, and may wait as
   * long as somebody does not read its serial port. @throws VmError - the thread is gone
   */
  async hold(): Promise<void> {
    if (this.#stopping) return;
    this.#control(HOLD);
    const isOut = () => this.#state() === HELD || this.#state() === FAULTED || this.#answering || this.#stopping;
    await this.#until(isOut);
  }

  /**
   * Resolves when the guest is held and the vCPU's state is whole: its last access is answered, and the instruction
   * finished, which may write guest memory. It stays so until `run`.
   * @throws VmError - the vCPU has ended, or ends meanwhile
   */
  async quiesce(): Promise<void> {
    if (!this.#stopping) this.#control(HOLD);
    await this.#until(() => this.#state() === HELD || this.#state() === FAULTED || this.#stopping);
    if (this.#stopping || this.#state() !== HELD) throw new VmError(`vCPU ${this.index} has ended`);
  }

  /** Stops the thread and gives everything back. Resolves when nothing of the vCPU touches guest memory. Idempotent. */
  async stop(): Promise<void> {
    this.abandon();
    await this.#thread;
    this.#giveBack();
  }

  /**
   * Makes the thread stop, and waits for nothing: for a process that ends, which would wait for a thread in KVM_RUN for
   * ever. Idempotent.
   */
  abandon(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#control(STOP);
    // An answer that is still being looked for is not waited for.
    this.#answer();
    this.#tell();
  }

  #giveBack(): void {
    for (const release of this.#release.splice(0).reverse()) release();
  }

  #state(): number {
    return Atomics.load(this.#words, STATE);
  }

  #control(value: number): void {
    if (this.#failure !== undefined) return;
    Atomics.store(this.#words, CONTROL, value);
    Atomics.notify(this.#words, CONTROL);
    if (value === RUN) return;
    this.#run.setImmediateExit(true);
    // Before the thread said so it has not been in the guest.
    if (this.#state() === RUNNING) kickThread(this.#words[THREAD] as number);
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#failure !== undefined) throw this.#failure;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  #tell(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#onEnd(error);
    this.#tell();
  }

  #onDoorbell(): void {
    this.#doorbell.drain();
    if (Atomics.load(this.#words, REQUEST) === 1 && !this.#answering) {
      // Who is to end gets nothing done any more: a device may take its time, and nobody would wait for it.
      if (this.#stopping) this.#answer();
      else this.#serve();
    }
    const state = this.#state();
    if (state === FAULTED && !this.#stopping && !this.#ended) {
      this.#ended = true;
      this.#onEnd(this.#whyEnded(this.#words[FAULT] as number, (this.#words[FAULT_DETAIL] as number) >>> 0));
    }
    if (state !== RUNNING && state !== STARTING) this.#tell();
  }

  #whyEnded(reason: number, detail: number): VcpuEnd {
    if (reason < 0) return new SysError('ioctl', -reason, `KVM_RUN of vCPU ${this.index}`);
    if (reason === KVM_EXIT_SHUTDOWN) return 'reset';
    if (reason === KVM_EXIT_SYSTEM_EVENT && detail === KVM_SYSTEM_EVENT_SHUTDOWN) return 'shutdown';
    if (reason === KVM_EXIT_SYSTEM_EVENT && detail === KVM_SYSTEM_EVENT_RESET) return 'reset';
    const what = `${exitName(reason)}, 0x${detail.toString(16)}`;
    return new VmError(`vCPU ${this.index} cannot go on (exit reason ${what})`);
  }

  /** Answers the access that the vCPU waits for: at once where the device can, or when its promise is kept. */
  #serve(): void {
    const words = this.#words;
    const kind = words[KIND] as number;
    const bus = (kind & IS_MEMORY) !== 0 ? this.#buses.memory : this.#buses.ports;
    const address = (words[ADDRESS_HIGH] as number) * 0x1_0000_0000 + ((words[ADDRESS_LOW] as number) >>> 0);
    // Devices know accesses of 1, 2 and 4 bytes. One of 8 is two of those, and KVM cuts what crosses a page anywhere.
    const bytes = words[SIZE] as number;
    const size = bytes % 4 === 0 ? 4 : bytes % 2 === 0 ? 2 : 1;
    const parts = bytes / size;
    const pending = this.#access(bus, address, size, parts, (words[COUNT] as number) * parts, kind, 0);
    if (pending === undefined) {
      this.#answer();
      return;
    }
    this.#answering = true;
    this.#tell();
    void pending.then(() => {
      this.#answering = false;
      this.#answer();
    });
  }

  /** Values `from` to `count` of an access, unless `stop` comes. Returns a promise where a device takes its time. */
  #access(
    bus: Bus,
    address: number,
    size: number,
    parts: number,
    count: number,
    kind: number,
    from: number,
  ): Promise<void> | undefined {
    for (let i = from; i < count && !this.#stopping; i += 1) {
      const at = address + (i % parts) * size;
      const offset = i * size;
      if ((kind & IS_WRITE) !== 0) {
        const done = bus.write(at, size, this.#value(offset, size));
        if (done !== undefined) return done.then(() => this.#access(bus, address, size, parts, count, kind, i + 1));
        continue;
      }
      const value = bus.read(at, size);
      if (typeof value !== 'number') {
        return value.then((later) => {
          this.#setValue(offset, size, later);
          return this.#access(bus, address, size, parts, count, kind, i + 1);
        });
      }
      this.#setValue(offset, size, value);
    }
    return undefined;
  }

  #value(offset: number, size: number): number {
    if (size === 1) return this.#data.getUint8(offset);
    if (size === 2) return this.#data.getUint16(offset, true);
    return this.#data.getUint32(offset, true);
  }

  #setValue(offset: number, size: number, value: number): void {
    if (size === 1) this.#data.setUint8(offset, value);
    else if (size === 2) this.#data.setUint16(offset, value, true);
    else this.#data.setUint32(offset, value, true);
  }

  #answer(): void {
    Atomics.store(this.#words, REQUEST, 0);
    Atomics.notify(this.#words, REQUEST);
  }
}
