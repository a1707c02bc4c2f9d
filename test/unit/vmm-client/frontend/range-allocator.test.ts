import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RangeAllocator } from '../../../../vmm-client/frontend/range-allocator.ts';

describe('RangeAllocator', () => {
  it('returns aligned offsets, and the gap before them later', () => {
    const ranges = new RangeAllocator(8192);
    expect(ranges.take(10, 1)).toBe(0);
    expect(ranges.take(100, 4096)).toBe(4096);
    expect(ranges.take(64, 64)).toBe(64);
  });

  it('is full when no hole is long enough, although enough is free altogether', () => {
    const ranges = new RangeAllocator(300);
    ranges.take(100, 1);
    const middle = ranges.take(100, 1);
    ranges.take(100, 1);
    ranges.release(0);
    ranges.release(200);
    expect([ranges.freeBytes, ranges.take(101, 1)]).toEqual([200, -1]);
    ranges.release(middle);
    expect(ranges.take(300, 1)).toBe(0);
  });

  it('refuses to release what is not allocated, and empty ranges', () => {
    const ranges = new RangeAllocator(100);
    ranges.take(10, 1);
    expect(() => ranges.release(1)).toThrow('nothing is allocated at offset 1');
    ranges.release(0);
    expect(() => ranges.release(0)).toThrow('nothing is allocated at offset 0');
    expect(() => ranges.take(0, 1)).toThrow(RangeError);
  });

  it('never hands out a byte twice, and is whole again in the end', () => {
    const steps = fc.array(
      fc.record({ length: fc.integer({ min: 1, max: 200 }), alignment: fc.constantFrom(1, 8, 64), release: fc.nat() }),
      { maxLength: 80 },
    );
    fc.assert(
      fc.property(steps, (sequence) => {
        const ranges = new RangeAllocator(1000);
        const held: { start: number; end: number }[] = [];
        for (const { length, alignment, release } of sequence) {
          const start = ranges.take(length, alignment);
          if (start !== -1) {
            expect(start % alignment).toBe(0);
            expect(start + length).toBeLessThanOrEqual(1000);
            expect(held.some((other) => start < other.end && other.start < start + length)).toBe(false);
            held.push({ start, end: start + length });
          }
          if (start === -1 || release % 2 === 0) {
            const [freed] = held.splice(release % Math.max(1, held.length), 1);
            if (freed !== undefined) ranges.release(freed.start);
          }
        }
        for (const { start } of held) ranges.release(start);
        expect(ranges.take(1000, 1)).toBe(0);
      }),
    );
  });
});
