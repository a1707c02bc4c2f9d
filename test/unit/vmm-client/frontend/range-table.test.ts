import { describe, expect, it } from 'vitest';
import { RangeTable } from '../../../../vmm-client/frontend/range-table.ts';

const range = (iova: number, size: number) => ({ iova, size });

const of = (...ranges: readonly (readonly [iova: number, size: number])[]) => {
  const table = new RangeTable<{ iova: number; size: number }>();
  for (const [iova, size] of ranges) expect(table.add(range(iova, size))).toBeUndefined();
  return table;
};

describe('a table of ranges', () => {
  it('finds the one that covers an address', () => {
    const table = of([10, 10], [30, 5], [20, 1]);
    expect([9, 10, 19, 20, 21, 29, 30, 34, 35].map((at) => table.find(at)?.iova)).toEqual([
      undefined,
      10,
      10,
      20,
      undefined,
      undefined,
      30,
      30,
      undefined,
    ]);
    expect([...table].map(({ iova }) => iova)).toEqual([10, 20, 30]);
  });

  it('finds the neighbours of an address', () => {
    const table = of([10, 10], [30, 5]);
    expect([0, 19, 20, 34, 35].map((at) => table.firstEndingAfter(at)?.iova)).toEqual([10, 10, 30, 30, undefined]);
    expect([10, 11, 30, 31, 99].map((at) => table.lastBeginningBefore(at)?.iova)).toEqual([undefined, 10, 10, 30, 30]);
  });

  it('takes none that overlaps', () => {
    const table = of([10, 10], [30, 5]);
    for (const [iova, size] of [
      [5, 6],
      [19, 1],
      [12, 2],
      [5, 40],
    ] as const) {
      expect(table.add(range(iova, size))?.iova).toBe(10);
    }
    expect(table.add(range(20, 11))?.iova).toBe(30);
    expect(table.count).toBe(2);
  });

  it('removes what is in a range', () => {
    const table = of([10, 10], [20, 10], [30, 10]);
    expect(table.remove(15, 31).map(({ iova }) => iova)).toEqual([10, 20, 30]);
    expect([table.count, [...table], table.find(10)]).toEqual([0, [], undefined]);
    expect(table.remove(0, 100)).toEqual([]);
    expect(table.add(range(1, 1))).toBeUndefined();
  });

  it('of many is what a plain list is', () => {
    const table = new RangeTable<{ iova: number; size: number }>();
    const list = new Map<number, number>();
    let state = 88172645463325252n;
    const random = (below: number): number => {
      state ^= BigInt.asUintN(64, state << 13n);
      state ^= state >> 7n;
      state ^= BigInt.asUintN(64, state << 17n);
      return Number(state % BigInt(below));
    };
    // Places of ten addresses each: a range covers the fourth of one, and nothing of the next.
    const places = 6000;
    for (let step = 0; step < 30_000; step++) {
      const place = random(places);
      if (step % 5000 < 4900) {
        const added = range(place * 10 + random(5), 5 + random(2));
        const isFree = !list.has(place);
        expect(table.add(added) === undefined).toBe(isFree);
        if (isFree) list.set(place, added.iova);
      } else {
        const end = Math.min(places, place + random(300));
        const gone = [...list].filter(([at]) => at >= place && at < end);
        for (const [at] of gone) list.delete(at);
        const removed = table.remove(place * 10, end * 10).map(({ iova }) => iova);
        expect(removed).toEqual(gone.map(([, iova]) => iova).sort((a, b) => a - b));
      }
      if (step % 1000 > 0) continue;
      const sorted = [...list.values()].sort((a, b) => a - b);
      expect([...table].map(({ iova }) => iova)).toEqual(sorted);
      expect(table.count).toBe(sorted.length);
      const at = random(places * 10);
      expect(table.lastBeginningBefore(at)?.iova).toBe(sorted.findLast((iova) => iova < at));
    }
  });
});
