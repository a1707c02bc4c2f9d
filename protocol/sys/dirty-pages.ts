/** Pages of guest memory that were written, found in a bitmap of one bit a page: bit p % 8 of byte p / 8. */

export const DIRTY_PAGE_BYTES = 4096;
const PAGES_PER_WORD = 32;
const ALL_DIRTY = -1;
/**
 * Ranges that are kept apart; what comes behind them is joined to the last one, with the clean pages in between. A guest that
 * writes every other page of 96 GiB would make 12 million, which take a gigabyte and seconds.
 */
export const MAX_DIRTY_RANGES = 2 ** 19;

/** Bytes of guest memory that were written, in whole pages. */
export interface DirtyRange {
  readonly guestAddress: number;
  readonly length: number;
}

/**
 * Appends what a bitmap of `pages` pages from `guestAddress` on has: ranges in order of their addresses, as long as they
 * can be. One that begins where the last of `ranges` ends prolongs that. Bits behind the last page are 0.
 */
export function appendDirtyRanges(words: Int32Array, pages: number, guestAddress: number, ranges: DirtyRange[]): void {
  const wordCount = Math.ceil(pages / PAGES_PER_WORD);
  /** The first page of the run of dirty ones that is under way. */
  let start = -1;
  for (let at = 0; at < wordCount; at++) {
    const word = words[at] as number;
    // Most words are all clean, and those that are not are often all dirty.
    if (word === (start === -1 ? 0 : ALL_DIRTY)) continue;
    for (let bit = 0; bit < PAGES_PER_WORD; bit++) {
      const isDirty = ((word >>> bit) & 1) === 1;
      const page = at * PAGES_PER_WORD + bit;
      if (isDirty && start === -1) start = page;
      if (isDirty || start === -1) continue;
      appendPages(ranges, guestAddress, start, page);
      start = -1;
    }
  }
  if (start !== -1) appendPages(ranges, guestAddress, start, pages);
}

/** Appends pages `from` to `to` (exclusive), counted from `guestAddress` on. They are behind all others. */
export function appendPages(ranges: DirtyRange[], guestAddress: number, from: number, to: number): void {
  const first = guestAddress + from * DIRTY_PAGE_BYTES;
  const length = (to - from) * DIRTY_PAGE_BYTES;
  const last = ranges.at(-1);
  const isApart = last !== undefined && last.guestAddress + last.length !== first;
  if (last === undefined || (isApart && ranges.length < MAX_DIRTY_RANGES)) ranges.push({ guestAddress: first, length });
  else ranges[ranges.length - 1] = { guestAddress: last.guestAddress, length: first + length - last.guestAddress };
}
