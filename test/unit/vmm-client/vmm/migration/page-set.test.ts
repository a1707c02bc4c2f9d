/** Sets of pages, against a Set of page addresses. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type PageRange, PageSet } from '../../../../../vmm-client/vmm/migration/page-set.ts';

const PAGE = 4096;
const REGIONS: readonly PageRange[] = [
  { guestAddress: 0, length: 70 * PAGE },
  { guestAddress: 0x1_0000_0000, length: 33 * PAGE },
];

const takeAll = (set: PageSet, mostBytes = 1 << 20): PageRange[] => {
  const runs: PageRange[] = [];
  for (let run = set.take(mostBytes); run !== undefined; run = set.take(mostBytes)) runs.push(run);
  return runs;
};

describe('a set of pages', () => {
  it('has whole pages of what is added, and none outside of the regions', () => {
    const set = new PageSet(REGIONS);
    set.add({ guestAddress: 2 * PAGE - 1, length: 2 });
    set.add({ guestAddress: 69 * PAGE, length: 0x1_0000_0000 - 68 * PAGE });
    set.add({ guestAddress: 0x1_0000_0000 + 40 * PAGE, length: 1e12 });

    expect(set.bytes).toBe(4 * PAGE);
    expect(takeAll(set)).toEqual([
      { guestAddress: PAGE, length: 2 * PAGE },
      { guestAddress: 69 * PAGE, length: PAGE },
      { guestAddress: 0x1_0000_0000, length: PAGE },
    ]);
    expect(set.bytes).toBe(0);
  });

  it('gives runs that are not longer than asked for', () => {
    const set = new PageSet(REGIONS);
    set.add({ guestAddress: 0, length: 70 * PAGE });

    expect(takeAll(set, 32 * PAGE).map(({ length }) => length / PAGE)).toEqual([32, 32, 6]);
  });

  it('is what a Set is, whatever is done to it', () => {
    const range = fc.record({
      guestAddress: fc.oneof(
        fc.nat(72 * PAGE),
        fc.nat(40 * PAGE).map((offset) => 0x1_0000_0000 + offset),
      ),
      length: fc.integer({ min: 1, max: 80 * PAGE }),
    });
    const step = fc.oneof(
      range.map((r) => ({ add: r })),
      range.map((r) => ({ remove: r })),
      fc.integer({ min: 1, max: 50 }).map((pages) => ({ take: pages })),
    );
    const pagesOf = ({ guestAddress, length }: PageRange): number[] =>
      REGIONS.flatMap((region) =>
        Array.from({ length: region.length / PAGE }, (_, i) => region.guestAddress + i * PAGE),
      ).filter((page) => page + PAGE > guestAddress && page < guestAddress + length);
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        const set = new PageSet(REGIONS);
        const model = new Set<number>();
        for (const each of steps) {
          if ('add' in each) {
            set.add(each.add);
            for (const page of pagesOf(each.add)) model.add(page);
          } else if ('remove' in each) {
            set.remove(each.remove);
            for (const page of pagesOf(each.remove)) model.delete(page);
          } else {
            const run = set.take(each.take * PAGE);
            expect(run === undefined).toBe(model.size === 0);
            for (const page of run === undefined ? [] : pagesOf(run)) expect(model.delete(page)).toBe(true);
          }
          expect(set.bytes).toBe(model.size * PAGE);
        }
        for (const page of pagesOf({ guestAddress: 0, length: 1e13 })) expect(set.has(page)).toBe(model.has(page));
      }),
    );
  });
});
