/**
 * The dirty log of a live migration: a bitmap that the front end shares, in which every page of guest memory that the
 * back end writes to is marked. Source: vhost-user, Migration.
 *
 *     page p of 4096 bytes, from guest address 0 on: bit p % 8 of byte p / 8
 *
 * The front end takes marks away while we set others, so a bit is set by an atomic or, also where it is set already:
 * the or is a full barrier behind the stores to the page. Seeing the bit and skipping it could let a store come late,
 * after the front end took the mark and copied the page.
 */

const PAGE_BYTES = 4096;
const PAGES_PER_WORD = 32;

/** Bytes of guest memory, from address 0 on, that a bitmap of this many bytes has a bit for. */
export function coveredBytes(bitmapBytes: number): number {
  return bitmapBytes * 8 * PAGE_BYTES;
}

export class DirtyLog {
  /** Guest addresses below this have a bit. */
  readonly coveredBytes: number;
  /** Marks of pages that the bitmap has no bit for, counted once a call. */
  ignored = 0;

  readonly #words: Int32Array;
  /** What is left behind the last whole word. */
  readonly #tail: Uint8Array;
  readonly #pages: number;

  /** The bitmap lies over a mapping of the front end's memory, at a host address that is a multiple of 4. */
  constructor(bitmap: ArrayBuffer) {
    const words = Math.floor(bitmap.byteLength / 4);
    this.#words = new Int32Array(bitmap, 0, words);
    this.#tail = new Uint8Array(bitmap, words * 4);
    this.#pages = bitmap.byteLength * 8;
    this.coveredBytes = coveredBytes(bitmap.byteLength);
  }

  /** Marks the pages of `length` bytes at a guest address. Call it after they were written. */
  mark(guestAddress: number, length: number): void {
    if (length === 0) return;
    const first = Math.floor(guestAddress / PAGE_BYTES);
    let last = Math.floor((guestAddress + length - 1) / PAGE_BYTES);
    if (last >= this.#pages) {
      this.ignored += 1;
      last = this.#pages - 1;
    }
    const word = Math.floor(first / PAGES_PER_WORD);
    if (first === last && word < this.#words.length) Atomics.or(this.#words, word, 1 << (first % PAGES_PER_WORD));
    else this.#markRange(first, last);
  }

  #markRange(first: number, last: number): void {
    let page = first;
    while (page <= last) {
      const word = Math.floor(page / PAGES_PER_WORD);
      if (word >= this.#words.length) {
        const inTail = page - this.#words.length * PAGES_PER_WORD;
        Atomics.or(this.#tail, inTail >> 3, 1 << (inTail & 7));
        page += 1;
        continue;
      }
      const bit = page % PAGES_PER_WORD;
      const count = Math.min(PAGES_PER_WORD - bit, last - page + 1);
      Atomics.or(this.#words, word, (-1 >>> (PAGES_PER_WORD - count)) << bit);
      page += count;
    }
  }
}
