import { describe, expect, it } from 'vitest';
import { appendDirtyRanges, type DirtyRange, MAX_DIRTY_RANGES } from '../../../../protocol/sys/dirty-pages.ts';

/** A bitmap of `pages` with these set, in whole 64-bit words as KVM writes them. */
const bitmap = (pages: number, dirty: readonly number[]): Int32Array => {
  const bytes = new Uint8Array(Math.ceil(pages / 64) * 8);
  for (const page of dirty) bytes[page >> 3] = (bytes[page >> 3] as number) | (1 << (page & 7));
  return new Int32Array(bytes.buffer);
};

const rangesOf = (pages: number, dirty: readonly number[], guestAddress = 0): DirtyRange[] => {
  const ranges: DirtyRange[] = [];
  appendDirtyRanges(bitmap(pages, dirty), pages, guestAddress, ranges);
  return ranges;
};

const pagesFrom = (first: number, count: number): number[] => Array.from({ length: count }, (_, at) => first + at);

describe('ranges of a bitmap of dirty pages', () => {
  it.each([
    ['none', 256, [], []],
    ['the first', 256, [0], [[0, 1]]],
    ['the last of a word, and the first of the next', 256, [31, 32], [[31, 2]]],
    ['the highest bit of a word alone', 256, [31], [[31, 1]]],
    [
      'two apart',
      256,
      [3, 5],
      [
        [3, 1],
        [5, 1],
      ],
    ],
    ['whole words', 256, pagesFrom(32, 96), [[32, 96]]],
    ['across words that are all dirty', 256, pagesFrom(17, 130), [[17, 130]]],
    ['all', 256, pagesFrom(0, 256), [[0, 256]]],
    ['all of a count that fills no word', 70, pagesFrom(0, 70), [[0, 70]]],
    ['the last one of such a count', 70, [69], [[69, 1]]],
    ['all of one word', 32, pagesFrom(0, 32), [[0, 32]]],
  ] as [string, number, number[], [number, number][]][])('%s', (_, pages, dirty, expected) => {
    expect(rangesOf(pages, dirty)).toEqual(
      expected.map(([first, count]) => ({ guestAddress: first * 4096, length: count * 4096 })),
    );
  });

  it('lie where the memory does, also beyond 4 GiB', () => {
    expect(rangesOf(64, [1], 0x17_4000_0000)).toEqual([{ guestAddress: 0x17_4000_1000, length: 4096 }]);
  });

  it('prolong what ended where they begin, and nothing else', () => {
    const ranges: DirtyRange[] = [];
    appendDirtyRanges(bitmap(64, [62, 63]), 64, 0, ranges);
    appendDirtyRanges(bitmap(64, [0]), 64, 64 * 4096, ranges);
    appendDirtyRanges(bitmap(64, [0]), 64, 256 * 4096, ranges);
    expect(ranges).toEqual([
      { guestAddress: 62 * 4096, length: 3 * 4096 },
      { guestAddress: 256 * 4096, length: 4096 },
    ]);
  });

  it('are those of a walk page by page', () => {
    let seed = 1;
    const random = (): number => {
      seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
      return seed >>> 8;
    };
    for (let run = 0; run < 100; run += 1) {
      const pages = 1 + (random() % 500);
      const density = 1 + (random() % 64);
      const dirty = pagesFrom(0, pages).filter(() => random() % 64 < density);
      const set = new Set(dirty);
      const starts = dirty.filter((page) => !set.has(page - 1));
      const ends = dirty.filter((page) => !set.has(page + 1));
      expect(rangesOf(pages, dirty)).toEqual(
        starts.map((start, at) => ({ guestAddress: start * 4096, length: ((ends[at] as number) - start + 1) * 4096 })),
      );
    }
  });

  it('are no more than a limit, the last with what is behind, whatever a guest writes', () => {
    const pages = 2 * MAX_DIRTY_RANGES + 64;
    const ranges: DirtyRange[] = [];

    appendDirtyRanges(new Int32Array(pages / 32).fill(0x5555_5555), pages, 0, ranges);

    expect(ranges).toHaveLength(MAX_DIRTY_RANGES);
    expect(ranges.at(-2)).toEqual({ guestAddress: 2 * (MAX_DIRTY_RANGES - 2) * 4096, length: 4096 });
    // The last page but one is the last that is dirty.
    const start = 2 * (MAX_DIRTY_RANGES - 1);
    expect(ranges.at(-1)).toEqual({ guestAddress: start * 4096, length: (pages - 1 - start) * 4096 });
  });
});
