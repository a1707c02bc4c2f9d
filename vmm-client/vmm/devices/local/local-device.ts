/**
 * A device that the VMM serves itself, on its main thread: what a `LocalModel` makes of it, behind the contract that a
 * transport knows. Here are the queues, their states, and what was written to guest memory; the model has the rest.
 */

import type { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
} from '../../../../protocol/virtio/reserved-features.ts';
import { VIRTQ_MAX_SIZE } from '../../../../protocol/virtio/split-ring.ts';
import { DirtyBitmap, type DirtyRange } from '../../../frontend/dirty-bitmap.ts';
import type { SharedRegion } from '../../../frontend/hand-over.ts';
import { VmError } from '../../errors.ts';
import { fieldsOf, integerOf, listOf } from '../../state/codec.ts';
import type { Activation, DeviceState, ReadyQueue, VirtioDevice, VirtioDeviceListener } from '../virtio-device.ts';
import { LocalQueue } from './local-queue.ts';

/** What a model can ask of its device. */
export interface LocalHost {
  /** `config` is another one now. Where it is the driver's doing (`byDriver`), the driver is not told. */
  configChanged(byDriver?: boolean): void;
  /** Fills a buffer of a queue of `bufferQueues`. False: there is none, or it is too small; it is not waited for. */
  send(queue: number, bytes: Uint8Array): boolean;
}

/** What a device is, and what it does. One method at a time is called and waited for, but for `serve`. */
export interface LocalModel {
  /** For messages. */
  readonly name: string;
  readonly deviceId: number;
  /** Entries that each queue can have at most; powers of two. */
  readonly queueSizes: readonly number[];
  /** The device's own; VERSION_1 and features of the rings are added. */
  readonly features: bigint;
  /** Those of them that the driver has to accept. */
  readonly required?: bigint;
  /** The configuration space as it is now; another array when it changes. */
  readonly config: Uint8Array;
  /** Queues whose chains are buffers for what the device has to say. */
  readonly bufferQueues: readonly number[];

  /** Called once, before anything else. */
  plug(host: LocalHost): void;
  /**
   * Answers a request, of which at most MAX_REQUEST_BYTES are there: with what is to be written at the start of its writable
   * part, at most `writable` bytes. Requests of one queue come one after the other. Never throws.
   */
  serve(queue: number, request: Uint8Array, writable: number): Uint8Array | Promise<Uint8Array>;
  /** The driver is ready, or was and goes on here. */
  activated(features: bigint): void;
  /** The driver is gone; no request is under way. Never throws. */
  reset(): void | Promise<void>;
  /** The driver writes to the configuration space, inside its bounds. Never throws. */
  writeConfig(offset: number, bytes: Uint8Array, features: bigint): void | Promise<void>;
  /** What it takes along to another host: plain data. No request is under way. */
  save(): unknown;
  /** Goes on where another was, before `activated`. @throws VmError - the state is none */
  restore(state: unknown): void | Promise<void>;
  /** RAM came or went. Never throw. */
  memoryAdded(region: SharedRegion): void | Promise<void>;
  memoryRemoved(region: SharedRegion): void | Promise<void>;
  counters(): Record<string, number>;
  close(): void;
}

export interface LocalDeviceOptions {
  readonly ram: { readonly memory: GuestMemory };
}

const RING_FEATURES = featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX);
const LAST_INDEX = 0xffff;

export class LocalDevice implements VirtioDevice {
  readonly features: bigint;
  readonly #model: LocalModel;
  readonly #memory: GuestMemory;
  #listener: VirtioDeviceListener | undefined;
  #queues: LocalQueue[] = [];
  #suspended = false;
  #needsReset = false;
  #log: DirtyBitmap | undefined;
  /** What was noted before the log had to become larger. */
  #dirty: DirtyRange[] = [];
  #chainFaults = 0;

  constructor(model: LocalModel, { ram }: LocalDeviceOptions) {
    this.#model = model;
    this.#memory = ram.memory;
    this.features = model.features | RING_FEATURES;
    model.plug({
      configChanged: (byDriver) => this.#listener?.configChanged(byDriver),
      send: (queue, bytes) => this.#queues.find(({ index }) => index === queue)?.send(bytes) ?? false,
    });
  }

  get name(): string {
    return this.#model.name;
  }

  get deviceId(): number {
    return this.#model.deviceId;
  }

  get queueSizes(): readonly number[] {
    return this.#model.queueSizes;
  }

  get required(): bigint {
    return this.#model.required ?? 0n;
  }

  get config(): Uint8Array {
    return this.#model.config;
  }

  listen(listener: VirtioDeviceListener): void {
    this.#listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    this.#start(activation, () => 0);
  }

  /** @throws MemoryError, RingError - a ring is not there */
  #start(activation: Activation, baseOf: (queue: ReadyQueue) => number): void {
    for (const queue of activation.queues) this.#queues.push(this.#open(queue, activation, baseOf(queue)));
    this.#model.activated(activation.features);
    for (const queue of this.#queues) queue.run();
  }

  #open(queue: ReadyQueue, { features, signalInterrupt }: Activation, base: number): LocalQueue {
    const model = this.#model;
    const isBuffers = model.bufferQueues.includes(queue.index);
    const ring = {
      packed: false,
      inOrder: false,
      indirect: hasFeature(features, VIRTIO_F_INDIRECT_DESC),
      eventIdx: hasFeature(features, VIRTIO_F_EVENT_IDX),
    };
    return new LocalQueue(queue, ring, base, {
      memory: this.#memory,
      serve: isBuffers ? undefined : (request, writable) => model.serve(queue.index, request, writable),
      wrote: (guestAddress, length) => this.#mark({ guestAddress, length }),
      signal: signalInterrupt,
      broke: (error) => this.#fail(error),
    });
  }

  #fail(error: Error): void {
    if (this.#needsReset) return;
    this.#needsReset = true;
    this.#listener?.needsReset(error);
  }

  async stopQueue(index: number): Promise<void> {
    const queue = this.#queues.find((each) => each.index === index);
    if (queue === undefined) return;
    await queue.rest();
    this.#queues = this.#queues.filter((each) => each !== queue);
    this.#forget(queue);
  }

  #forget(queue: LocalQueue): void {
    this.#chainFaults += queue.chainFaults;
    queue.close();
  }

  async reset(): Promise<void> {
    await Promise.all(this.#queues.map((queue) => queue.rest()));
    for (const queue of this.#queues.splice(0)) this.#forget(queue);
    this.#suspended = false;
    this.#needsReset = false;
    await this.#model.reset();
  }

  async writeConfig(offset: number, bytes: Uint8Array, features: bigint): Promise<void> {
    await this.#model.writeConfig(offset, bytes, features);
  }

  async suspend(): Promise<DeviceState> {
    this.#suspended = true;
    await Promise.all(this.#queues.map((queue) => queue.rest()));
    const queues = this.#queues.map(({ index, base }) => ({ index, base }));
    return { queues, model: this.#model.save() };
  }

  async resume(): Promise<void> {
    if (!this.#suspended) return;
    this.#suspended = false;
    for (const queue of this.#queues) queue.run();
  }

  async restore(state: DeviceState, activation: Activation | undefined): Promise<void> {
    const { queues, model } = fieldsOf(state, this.name);
    const bases = new Map(
      listOf(queues, `${this.name}: queues`, this.queueSizes.length).map((each) => {
        const { index, base } = fieldsOf(each, `${this.name}: queue`);
        const at = integerOf(index, `${this.name}: index of a queue`, { maximum: this.queueSizes.length - 1 });
        return [at, integerOf(base, `${this.name}: base of queue ${at}`, { maximum: LAST_INDEX })];
      }),
    );
    await this.#model.restore(model);
    if (activation === undefined) return;
    try {
      // A queue that its driver gave up, or that broke at the start, has no base.
      const going = activation.queues.filter(({ index, size }) => bases.has(index) && size <= VIRTQ_MAX_SIZE);
      this.#start({ ...activation, queues: going }, ({ index }) => bases.get(index) ?? 0);
    } catch (error) {
      throw new VmError(`${this.name}: its rings cannot go on: ${(error as Error).message}`, { cause: error });
    }
  }

  async startDirtyLog(): Promise<void> {
    this.#log ??= new DirtyBitmap(this.#memory.end);
  }

  takeDirty(): readonly DirtyRange[] {
    return [...this.#dirty.splice(0), ...(this.#log?.take() ?? [])];
  }

  async stopDirtyLog(): Promise<void> {
    this.#log?.close();
    this.#log = undefined;
    this.#dirty = [];
  }

  #mark(range: DirtyRange): void {
    // A ring or a buffer may be in memory that is gone: what is written there nobody sees.
    if (this.#log === undefined || this.#memory.find(range.guestAddress) === undefined) return;
    // RAM may have come since it was made.
    if (range.guestAddress + range.length > this.#log.coveredBytes) {
      this.#dirty.push(...this.#log.take());
      this.#log.close();
      this.#log = new DirtyBitmap(this.#memory.end);
    }
    this.#log.mark(range);
  }

  async addMemory(region: SharedRegion): Promise<void> {
    await this.#model.memoryAdded(region);
  }

  async removeMemory(region: SharedRegion): Promise<void> {
    await this.#model.memoryRemoved(region);
  }

  counters(): Record<string, number> {
    const chainFaults = this.#queues.reduce((sum, queue) => sum + queue.chainFaults, this.#chainFaults);
    return { chain_faults: chainFaults, ...this.#model.counters() };
  }

  close(): void {
    this.#listener = undefined;
    for (const queue of this.#queues.splice(0)) queue.close();
    this.#log?.close();
    this.#log = undefined;
    this.#model.close();
  }
}
