/**
 * Tells the dirty log what the device wrote, while the front end migrates the guest: a page is marked after it was
 * written and before the driver hears of it. What the chains in flight may write is noted when they are taken, because
 * their descriptors may change until they are done. Source: vhost-user, Migration.
 */

import type { DirtyLog } from '../../protocol/memory/dirty-log.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';

/** Part of guest memory. */
export interface GuestRange {
  readonly address: number;
  readonly length: number;
}

export class WriteLog {
  readonly #log: DirtyLog;
  readonly #ring: readonly GuestRange[];
  /** Of each chain in flight: guest address and length of its writable buffers, one after the other. */
  readonly #buffers: number[][];

  /** @param ring where the device writes in the ring itself; empty when the front end does not want to know */
  constructor(log: DirtyLog, size: number, ring: readonly GuestRange[]) {
    this.#log = log;
    this.#ring = ring;
    this.#buffers = Array.from({ length: size }, () => []);
  }

  /** Notes what a chain that was taken may write. */
  take(chain: DescriptorChain): void {
    const buffers = this.#buffers[chain.head] as number[];
    buffers.length = 0;
    // Where the order of buffers is wrong, nobody knows which are writable.
    const first = chain.fault === NO_FAULT ? chain.readableSegments : 0;
    for (let i = first; i < chain.segments; i += 1) {
      buffers.push(chain.guest[i] as number, chain.length[i] as number);
    }
  }

  /** Marks the first `bytes` bytes of a chain's writable buffers. */
  finish(token: number, bytes: number): void {
    const buffers = this.#buffers[token] as number[];
    let left = bytes;
    for (let i = 0; i < buffers.length && left > 0; i += 2) {
      const length = Math.min(buffers[i + 1] as number, left);
      this.#log.mark(buffers[i] as number, length);
      left -= length;
    }
  }

  /** Marks what the device writes in the ring. */
  markRing(): void {
    for (const { address, length } of this.#ring) this.#log.mark(address, length);
  }
}
