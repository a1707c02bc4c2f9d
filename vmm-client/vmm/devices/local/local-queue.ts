/**
 * One virtqueue of a device that the VMM serves itself: takes chains when the driver kicks, has each answered, in order,
 * and gives it back. Nothing that the driver writes keeps the event loop for longer than a turn: 32 chains, then others
 * have theirs. Source: VIRTIO 1.3, 2.7 Split Virtqueues.
 */

import type { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import { MemoryError } from '../../../../protocol/memory/memory-error.ts';
import { Notifier } from '../../../../protocol/sys/notifier.ts';
import { type Watch, watchReadable } from '../../../../protocol/sys/readiness.ts';
import { usedRingBytes } from '../../../../protocol/virtio/split-ring.ts';
import { DescriptorChain } from '../../../../protocol/virtqueue/chain.ts';
import { describeFault, NO_FAULT } from '../../../../protocol/virtqueue/faults.ts';
import { SplitQueue } from '../../../../protocol/virtqueue/split-queue.ts';
import type { VirtqueueFeatures } from '../../../../protocol/virtqueue/virtqueue.ts';
import type { ReadyQueue } from '../virtio-device.ts';

/** Bytes of a request that are copied and looked at; what is behind them is not. */
export const MAX_REQUEST_BYTES = 4096;

const CHAINS_A_TURN = 32;

/** What a queue needs of its device. */
export interface LocalQueueOwner {
  readonly memory: GuestMemory;
  /**
   * Answers a request with what is to be written at the start of its writable part, at most `writable` bytes. The request
   * is valid until then. Undefined: the queue has no requests, its chains are buffers for `send`.
   */
  readonly serve: ((request: Uint8Array, writable: number) => Uint8Array | Promise<Uint8Array>) | undefined;
  /** So many bytes of guest memory were written. */
  wrote(guestAddress: number, length: number): void;
  /** The driver wants to know of used buffers. */
  signal(): void;
  /** The driver broke the ring, which is not looked at any more. */
  broke(error: Error): void;
}

export class LocalQueue {
  readonly index: number;
  /** Chains returned unserved because their descriptors are wrong. */
  chainFaults = 0;
  readonly #ready: ReadyQueue;
  readonly #owner: LocalQueueOwner;
  readonly #queue: SplitQueue;
  readonly #chain: DescriptorChain;
  readonly #request = new Uint8Array(MAX_REQUEST_BYTES);
  readonly #kick: Notifier;
  #watch: Watch | undefined;
  /** A request is being answered, or the next turn is under way. */
  #busy = false;
  #broken = false;
  #running = false;
  #closed = false;
  /** Chains taken in this turn of the event loop: answers that come at once do not end it. */
  #taken = 0;
  #onRest: (() => void)[] = [];

  /**
   * Finds the ring in guest memory, to go on at `base`. It stands still until `run`.
   * @throws MemoryError, RingError - it is not there
   * @throws SysError - no descriptors left
   */
  constructor(ready: ReadyQueue, features: VirtqueueFeatures, base: number, owner: LocalQueueOwner) {
    this.index = ready.index;
    this.#ready = ready;
    this.#owner = owner;
    const { size, descriptorTable: descriptor, availRing: available, usedRing: used } = ready;
    this.#queue = new SplitQueue((address, length, _align, what) => this.#place(address, length, what), {
      ...features,
      size,
      addresses: { descriptor, available, used },
    });
    this.#queue.seek(base);
    this.#chain = new DescriptorChain(owner.memory, size);
    this.#kick = new Notifier(ready.kick.duplicate());
  }

  /** The transport has checked alignments; a region begins with a page. */
  #place(address: number, length: number, what: string): ArrayBuffer {
    const region = this.#owner.memory.find(address);
    if (region !== undefined && length <= region.end - address) return region.view(address, length);
    throw new MemoryError(
      `queue ${this.index}: ${what} (${length} bytes at 0x${address.toString(16)}) is not in one region of RAM`,
    );
  }

  /** Where the ring stands; nothing is in flight while it stands still. */
  get base(): number {
    return this.#queue.base;
  }

  /** Serves the ring. */
  run(): void {
    if (this.#running) return;
    this.#running = true;
    if (this.#owner.serve === undefined) {
      this.#queue.disableKicks();
      this.#noteRing();
      return;
    }
    this.#watch = watchReadable(this.#kick.fd, () => {
      this.#kick.drain();
      this.#wake();
    });
    this.#wake();
  }

  /** Resolves when the ring stands still and nothing of it is in flight. */
  async rest(): Promise<void> {
    this.#running = false;
    this.#watch?.close();
    this.#watch = undefined;
    if (this.#busy) await new Promise<void>((resolve) => this.#onRest.push(resolve));
  }

  #wake(): void {
    if (this.#busy || this.#broken) return;
    this.#busy = true;
    this.#taken = 0;
    this.#go();
  }

  #go(): void {
    for (; this.#taken < CHAINS_A_TURN; this.#taken += 1) if (!this.#step()) return;
    setImmediate(() => {
      this.#taken = 0;
      this.#go();
    });
  }

  /** Serves one chain. False: there is none, or its answer takes time and whoever brings it goes on. */
  #step(): boolean {
    const queue = this.#queue;
    const result = this.#running && !this.#broken ? queue.pop(this.#chain) : 0;
    if (result < 0) this.#break(result);
    if (result <= 0) return this.#lookAgain();
    const answer = this.#answer();
    if (!(answer instanceof Promise)) {
      this.#finish(answer);
      return true;
    }
    void answer.then((bytes) => {
      if (this.#closed) return;
      this.#taken += 1;
      this.#finish(bytes);
      this.#go();
    });
    return false;
  }

  /** Before sleeping: whether chains came after all. */
  #lookAgain(): boolean {
    const mayGoOn = this.#running && !this.#broken;
    const more = mayGoOn && this.#queue.enableKicks();
    if (mayGoOn) this.#noteRing();
    if (!more) this.#idle();
    return more;
  }

  #idle(): void {
    this.#busy = false;
    for (const resolve of this.#onRest.splice(0)) resolve();
  }

  #break(fault: number): void {
    this.#broken = true;
    this.#owner.broke(new Error(`queue ${this.index} is broken: ${describeFault(fault)}`));
  }

  /** Of the chain that was just taken. */
  #answer(): Uint8Array | Promise<Uint8Array> {
    const chain = this.#chain;
    const { memory, serve } = this.#owner;
    const length = Math.min(chain.readableBytes, MAX_REQUEST_BYTES);
    if (serve === undefined) throw new Error(`queue ${this.index} has no requests`);
    if (chain.fault !== NO_FAULT) {
      this.chainFaults += 1;
      return NOTHING;
    }
    for (let i = 0, done = 0; done < length; i += 1) {
      const part = Math.min(chain.length[i] as number, length - done);
      memory.copyOut(chain.guest[i] as number, this.#request.subarray(done, done + part));
      done += part;
    }
    return serve(this.#request.subarray(0, length), chain.writableBytes);
  }

  /** Writes the answer and gives the chain back. */
  #finish(answer: Uint8Array): void {
    const chain = this.#chain;
    const queue = this.#queue;
    if (answer.length > 0 && answer.length > chain.writableBytes) throw new Error('an answer is longer than its chain');
    for (let i = chain.readableSegments, done = 0; done < answer.length; i += 1) {
      const part = Math.min(chain.length[i] as number, answer.length - done);
      const guest = chain.guest[i] as number;
      this.#owner.memory.copyIn(guest, answer.subarray(done, done + part));
      this.#owner.wrote(guest, part);
      done += part;
    }
    queue.push(chain.head, answer.length);
    queue.publish();
    this.#noteRing();
    if (queue.needsNotification()) this.#owner.signal();
  }

  /** Fills the driver's next buffer. Returns false when there is none that is large enough; it is not waited for. */
  send(bytes: Uint8Array): boolean {
    if (!this.#running || this.#broken) return false;
    const result = this.#queue.pop(this.#chain);
    if (result < 0) this.#break(result);
    if (result <= 0) return false;
    const fits = this.#chain.fault === NO_FAULT && this.#chain.writableBytes >= bytes.length;
    if (this.#chain.fault !== NO_FAULT) this.chainFaults += 1;
    this.#finish(fits ? bytes : NOTHING);
    return fits;
  }

  #noteRing(): void {
    this.#owner.wrote(this.#ready.usedRing, usedRingBytes(this.#ready.size));
  }

  /** Lets go of the descriptors. An answer that comes still is dropped. */
  close(): void {
    this.#closed = true;
    this.#running = false;
    this.#watch?.close();
    this.#watch = undefined;
    this.#kick.close();
  }
}

const NOTHING = new Uint8Array(0);
