/**
 * Mappings whose pages come late (postcopy), in memory that the main thread shares with the guardian: either of them can
 * abandon what is waited for there, and neither may touch addresses that the other has given up meanwhile.
 *
 *     word 0    lock: 1 while somebody looks at the list or changes it
 *     word 1    1 when all was abandoned
 *     word 2    entries
 *     @16       entry[i] = { address f64, length f64 }
 */

import { MAX_MEMORY_REGIONS } from '../../protocol/memory/guest-memory.ts';
import { abandonFaults } from '../../protocol/sys/userfault.ts';

const LOCK = 0;
const ABANDONED = 1;
const COUNT = 2;
const LIST_START = 16;
const ENTRY_BYTES = 16;

/** A range of addresses, in whole pages. */
export interface LateExtent {
  readonly address: number;
  readonly length: number;
}

export class LateExtents {
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;

  /** @param shared of another LateExtents, whose list this one has too */
  constructor(shared = new SharedArrayBuffer(LIST_START + ENTRY_BYTES * MAX_MEMORY_REGIONS)) {
    this.shared = shared;
    this.#words = new Int32Array(shared);
    this.#numbers = new Float64Array(shared, LIST_START);
  }

  /** Nobody who holds the lock waits for a page, so it is soon free. */
  #locked<T>(work: () => T): T {
    while (Atomics.compareExchange(this.#words, LOCK, 0, 1) !== 0) Atomics.wait(this.#words, LOCK, 1);
    try {
      return work();
    } finally {
      Atomics.store(this.#words, LOCK, 0);
      Atomics.notify(this.#words, LOCK);
    }
  }

  get #count(): number {
    return this.#words[COUNT] as number;
  }

  #extent(i: number): LateExtent {
    return { address: this.#numbers[2 * i] as number, length: this.#numbers[2 * i + 1] as number };
  }

  get #abandoned(): boolean {
    return this.#words[ABANDONED] === 1;
  }

  /** Takes a registered range into the list. At most MAX_MEMORY_REGIONS of them. False when all was abandoned. */
  add({ address, length }: LateExtent): boolean {
    return this.#locked(() => {
      if (this.#abandoned) return false;
      const at = this.#count;
      this.#numbers.set([address, length], 2 * at);
      this.#words[COUNT] = at + 1;
      return true;
    });
  }

  /** Takes the range that begins there out of the list, before it is unmapped. */
  remove(address: number): void {
    this.#locked(() => {
      const last = this.#count - 1;
      for (let i = 0; i <= last; i += 1) {
        if (this.#extent(i).address !== address) continue;
        const moved = this.#extent(last);
        this.#numbers.set([moved.address, moved.length], 2 * i);
        this.#words[COUNT] = last;
        return;
      }
    });
  }

  /** Empties the list, after `release` was called for each range that was in it; nothing, when all was abandoned. */
  drain(release: (extent: LateExtent) => void): void {
    this.#locked(() => {
      if (this.#abandoned) return;
      for (let i = 0; i < this.#count; i += 1) release(this.#extent(i));
      this.#words[COUNT] = 0;
    });
  }

  /**
   * Lets everybody fail who waits for pages of these ranges. Once; none may be added after it.
   * @param userFault descriptor of the userfaultfd @param empty descriptor of a file of createEmptyFile
   * @throws SysError
   */
  abandon(userFault: number, empty: number): void {
    this.#locked(() => {
      if (this.#abandoned) return;
      this.#words[ABANDONED] = 1;
      for (let i = 0; i < this.#count; i += 1) {
        const { address, length } = this.#extent(i);
        abandonFaults(userFault, empty, address, length);
      }
    });
  }
}
