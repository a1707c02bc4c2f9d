/** Bytes of one connection that the host's side did not take yet: a ring in memory of its own, from a pool. */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { allocatePinned, discardPinned, type PinnedMemory } from '../../protocol/sys/pinned.ts';
import type { SocketTransfer } from '../../protocol/sys/socket-transfer.ts';

/** Pieces of memory of one size. Those that are given back cost the host nothing until they are taken again. */
export class PinnedPool {
  readonly size: number;
  readonly #free: PinnedMemory[] = [];

  /** @param size bytes of each piece */
  constructor(size: number) {
    this.size = size;
  }

  take(): PinnedMemory {
    return this.#free.pop() ?? allocatePinned(this.size);
  }

  give(memory: PinnedMemory): void {
    discardPinned(memory);
    this.#free.push(memory);
  }
}

export class ByteRing {
  readonly #pool: PinnedPool;
  #memory: PinnedMemory | undefined;
  #start = 0;
  length = 0;

  constructor(pool: PinnedPool) {
    this.#pool = pool;
  }

  /** Appends bytes of guest memory, which flow control lets fit. */
  append(memory: GuestMemory, guestAddress: number, length: number): void {
    this.#memory ??= this.#pool.take();
    const { size } = this.#pool;
    let done = 0;
    while (done < length) {
      const end = (this.#start + this.length) % size;
      const part = Math.min(length - done, size - end);
      memory.copyOut(guestAddress + done, this.#memory.bytes.subarray(end, end + part));
      this.length += part;
      done += part;
    }
  }

  /** Lays out the first `length` bytes to be sent. */
  layOut(transfer: SocketTransfer, length: number): void {
    transfer.clear();
    if (this.#memory === undefined || length === 0) return;
    const first = Math.min(length, this.#pool.size - this.#start);
    transfer.append(this.#memory.address + this.#start, first);
    if (length > first) transfer.append(this.#memory.address, length - first);
  }

  /** Drops the first `length` bytes. */
  drop(length: number): void {
    this.length -= length;
    this.#start = (this.#start + length) % this.#pool.size;
    if (this.length === 0) this.clear();
  }

  /** Drops everything. */
  clear(): void {
    this.length = 0;
    this.#start = 0;
    if (this.#memory === undefined) return;
    this.#pool.give(this.#memory);
    this.#memory = undefined;
  }
}
