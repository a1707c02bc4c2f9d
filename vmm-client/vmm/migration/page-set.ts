/**
 * A set of pages of RAM: one bit a page, 32 KiB for each GiB. What is to be sent, what has been sent.
 */

import { PAGE_BYTES } from '../layout.ts';

/** Whole pages of guest memory. */
export interface PageRange {
  readonly guestAddress: number;
  /** Bytes. */
  readonly length: number;
}

const WORD_PAGES = 32;
const WORD_BYTES = WORD_PAGES * PAGE_BYTES;

interface Region extends PageRange {
  readonly words: Uint32Array;
}

function countBits(word: number): number {
  let bits = word - ((word >>> 1) & 0x5555_5555);
  bits = (bits & 0x3333_3333) + ((bits >>> 2) & 0x3333_3333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}

/** Bits `from` to `to` (exclusive, at most 32) of a word. */
function bitsBetween(from: number, to: number): number {
  const upTo = to === WORD_PAGES ? -1 : (1 << to) - 1;
  return upTo & ~((1 << from) - 1);
}

/** The first page of `from` to `to` (exclusive) that is in the set, or is not; `to` where there is none. */
function findPage(words: Uint32Array, from: number, to: number, isIn: boolean): number {
  for (let page = from; page < to; ) {
    const at = Math.floor(page / WORD_PAGES);
    const word = words[at] as number;
    const bits = (isIn ? word : ~word) & (-1 << (page % WORD_PAGES));
    // The lowest of them.
    if (bits !== 0) return Math.min(to, at * WORD_PAGES + 31 - Math.clz32(bits & -bits));
    page = (at + 1) * WORD_PAGES;
  }
  return to;
}

export class PageSet {
  readonly #regions: readonly Region[];
  #pages = 0;
  /** Where `take` looks next. */
  #region = 0;
  #page = 0;

  /** An empty set of the pages of `regions`, which begin and end at pages. */
  constructor(regions: readonly PageRange[]) {
    this.#regions = regions.map(({ guestAddress, length }) => {
      return { guestAddress, length, words: new Uint32Array(Math.ceil(length / WORD_BYTES)) };
    });
  }

  /** How much memory the pages of the set are. */
  get bytes(): number {
    return this.#pages * PAGE_BYTES;
  }

  /** Adds every page that the range touches; what is outside of the regions is no page. */
  add(range: PageRange): void {
    this.#change(range, true);
  }

  remove(range: PageRange): void {
    this.#change(range, false);
  }

  /** Whether a page is in the set. */
  has(guestAddress: number): boolean {
    for (const region of this.#regions) {
      const offset = guestAddress - region.guestAddress;
      if (offset < 0 || offset >= region.length) continue;
      const page = Math.floor(offset / PAGE_BYTES);
      return ((region.words[Math.floor(page / WORD_PAGES)] as number) & (1 << (page % WORD_PAGES))) !== 0;
    }
    return false;
  }

  #change({ guestAddress, length }: PageRange, isAdded: boolean): void {
    for (const region of this.#regions) {
      const start = Math.max(guestAddress, region.guestAddress) - region.guestAddress;
      const end = Math.min(guestAddress + length, region.guestAddress + region.length) - region.guestAddress;
      if (start >= end) continue;
      const endPage = Math.ceil(end / PAGE_BYTES);
      for (let page = Math.floor(start / PAGE_BYTES); page < endPage; ) {
        const at = Math.floor(page / WORD_PAGES);
        const next = Math.min(endPage, (at + 1) * WORD_PAGES);
        const bits = bitsBetween(page % WORD_PAGES, next - at * WORD_PAGES);
        const before = region.words[at] as number;
        const after = isAdded ? before | bits : before & ~bits;
        region.words[at] = after;
        this.#pages += countBits(after) - countBits(before);
        page = next;
      }
    }
  }

  /**
   * Takes the next pages out of the set: a run of at most `mostBytes`, in the order of addresses, from the first again when
   * the last has been taken. Undefined when the set is empty.
   */
  take(mostBytes: number): PageRange | undefined {
    if (this.#pages === 0) return undefined;
    for (;;) {
      const region = this.#regions[this.#region];
      if (region === undefined) {
        this.#region = 0;
        this.#page = 0;
        continue;
      }
      const run = this.#nextRun(region, Math.floor(mostBytes / PAGE_BYTES));
      if (run === undefined) {
        this.#region += 1;
        this.#page = 0;
        continue;
      }
      this.remove(run);
      return run;
    }
  }

  #nextRun({ guestAddress, length, words }: Region, mostPages: number): PageRange | undefined {
    const count = length / PAGE_BYTES;
    const first = findPage(words, this.#page, count, true);
    if (first === count) return undefined;
    const end = findPage(words, first, Math.min(count, first + mostPages), false);
    this.#page = end;
    return { guestAddress: guestAddress + first * PAGE_BYTES, length: (end - first) * PAGE_BYTES };
  }
}
