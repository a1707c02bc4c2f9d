/** One packet on its way between a ring and the TAP: the guest's buffers as the kernel wants to see them. */

import { allocatePinned, type PinnedMemory } from '../../protocol/sys/pinned.ts';
import type { Vring } from '../core/vring.ts';
import { MAX_BUFFERS } from './limits.ts';

const IOVEC_BYTES = 16;

/** From the ring to the TAP. */
export const TRANSMIT = 0;
/** From the TAP to the ring. */
export const RECEIVE = 1;

/** Made once and used again and again. Its iovecs are read by the kernel between `submit` and the end of the operation. */
export class Packet {
  /** Index in the engine's table. */
  readonly id: number;
  readonly direction: typeof TRANSMIT | typeof RECEIVE;
  /** Index of the queue pair it belongs to. */
  readonly pair: number;
  /** Index of the TAP's queue. */
  queue: number;
  vring: Vring | undefined;
  /** Head of the chain that is transmitted. */
  head = 0;
  /** Host address and length in bytes of the first buffer: the whole packet when `buffers` is 1. */
  address = 0;
  length = 0;
  buffers = 0;
  /** Bytes of all buffers. */
  bytes = 0;
  /** Bytes transferred, or a negative errno. */
  result = 0;
  readonly #iovecs: PinnedMemory;

  constructor(id: number, direction: typeof TRANSMIT | typeof RECEIVE, pair: number) {
    this.id = id;
    this.direction = direction;
    this.pair = pair;
    this.queue = pair;
    // One more than the guest's buffers: the place for what does not fit into them.
    this.#iovecs = allocatePinned((MAX_BUFFERS + 1) * IOVEC_BYTES);
  }

  /** Where the iovecs of all buffers are. */
  get iovecAddress(): number {
    if (this.buffers === 1) this.#store(0, this.address, this.length);
    return this.#iovecs.address;
  }

  clear(): void {
    this.buffers = 0;
    this.bytes = 0;
  }

  /** Appends a buffer. The caller has checked that `buffers` is at most MAX_BUFFERS. */
  append(address: number, length: number): void {
    if (this.buffers === 0) {
      this.address = address;
      this.length = length;
    } else {
      // A single buffer needs no iovec as a rule.
      if (this.buffers === 1) this.#store(0, this.address, this.length);
      this.#store(this.buffers, address, length);
    }
    this.buffers += 1;
    this.bytes += length;
  }

  #store(index: number, address: number, length: number): void {
    this.#iovecs.setU64(index * IOVEC_BYTES, address);
    this.#iovecs.setU64(index * IOVEC_BYTES + 8, length);
  }
}
