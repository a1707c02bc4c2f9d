/**
 * The dirty log of a migration as the front end owns it: a memfd with sealed size, in which a back end sets a bit for
 * each page of guest memory that it writes to. Source: vhost-user, Migration.
 *
 *     page p of 4096 bytes, from guest address 0 on: bit p % 8 of byte p / 8
 *
 * Bits are taken by exchanging whole words, so that none that is set meanwhile is lost.
 */

import { appendPages, DIRTY_PAGE_BYTES, type DirtyRange } from '../../protocol/sys/dirty-pages.ts';
import { MAX_VIEW_BYTES, SharedMapping } from '../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';

export type { DirtyRange };

const PAGES_PER_WORD = 32;
const ALL_DIRTY = 0xffff_ffff;
const MAP_BYTES = 4096;

export class DirtyBitmap {
  readonly memfd: OwnedFd;
  /** Bytes of the bitmap. */
  readonly length: number;
  readonly #mapping: SharedMapping;
  readonly #words: Uint32Array;

  /**
   * A bitmap for guest addresses below `coveredBytes` at least, all clean.
   * @throws RangeError - it would be larger than 1 GiB (guest addresses above 32 TiB)
   * @throws SysError - the host has no memory or no descriptors left
   */
  constructor(coveredBytes: number) {
    const bits = Math.ceil(coveredBytes / DIRTY_PAGE_BYTES);
    this.length = Math.max(1, Math.ceil(bits / 8 / MAP_BYTES)) * MAP_BYTES;
    if (this.length > MAX_VIEW_BYTES) throw new RangeError(`dirty log of ${this.length} bytes: too large`);
    this.memfd = createSealedMemfd('ringside-dirty-log', this.length);
    try {
      this.#mapping = new SharedMapping(this.memfd.fd, 0, this.length);
    } catch (error) {
      this.memfd.close();
      throw error;
    }
    this.#words = new Uint32Array(this.#mapping.view(0, this.length));
  }

  /** Guest addresses below this have a bit. */
  get coveredBytes(): number {
    return this.length * 8 * DIRTY_PAGE_BYTES;
  }

  /** Marks the pages of a range, as a back end does. The range is covered. */
  mark({ guestAddress, length }: DirtyRange): void {
    const end = Math.ceil((guestAddress + length) / DIRTY_PAGE_BYTES);
    for (let page = Math.floor(guestAddress / DIRTY_PAGE_BYTES); page < end; ) {
      const at = Math.floor(page / PAGES_PER_WORD);
      const next = Math.min(end, (at + 1) * PAGES_PER_WORD);
      // Whole words at once: all of a large memory is marked in one go.
      const bits = next - page === PAGES_PER_WORD ? ALL_DIRTY : ((1 << (next - page)) - 1) << (page % PAGES_PER_WORD);
      Atomics.or(this.#words, at, bits);
      page = next;
    }
  }

  /** Takes what was written since the last call: ranges in order of their addresses, as long as they can be. */
  take(): DirtyRange[] {
    const ranges: DirtyRange[] = [];
    let start = -1;
    for (let at = 0; at < this.#words.length; at++) {
      // Most words are 0, and an exchange costs a locked instruction.
      const word = Atomics.load(this.#words, at) === 0 ? 0 : Atomics.exchange(this.#words, at, 0);
      if (word === (start === -1 ? 0 : ALL_DIRTY)) continue;
      for (let bit = 0; bit < PAGES_PER_WORD; bit++) {
        const page = at * PAGES_PER_WORD + bit;
        const isDirty = ((word >>> bit) & 1) === 1;
        if (isDirty && start === -1) start = page;
        if (isDirty || start === -1) continue;
        appendPages(ranges, 0, start, page);
        start = -1;
      }
    }
    if (start !== -1) appendPages(ranges, 0, start, this.#words.length * PAGES_PER_WORD);
    return ranges;
  }

  /** Ends the mapping and closes the memfd. Idempotent. */
  close(): void {
    this.#mapping.retire();
    this.memfd.close();
  }
}
