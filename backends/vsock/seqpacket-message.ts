/** A message of the host's program that goes to the guest in several packets: kept whole in memory of a pool meanwhile. */

import type { PinnedMemory } from '../../protocol/sys/pinned.ts';
import type { PinnedPool } from './byte-ring.ts';

export class SeqpacketMessage {
  readonly memory: PinnedMemory;
  readonly #pool: PinnedPool;
  /** Bytes of the message, and of them those that were sent. */
  length = 0;
  sent = 0;
  endOfRecord = false;

  constructor(pool: PinnedPool) {
    this.#pool = pool;
    this.memory = pool.take();
  }

  get left(): number {
    return this.length - this.sent;
  }

  close(): void {
    this.#pool.give(this.memory);
  }
}
