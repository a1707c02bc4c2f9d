import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Histogram } from '../../../../vmm-client/cli/histogram.ts';

function record(values: readonly number[]): Histogram {
  const histogram = new Histogram();
  for (const value of values) histogram.record(value);
  return histogram;
}

describe('Histogram', () => {
  it('is all zeroes when empty', () => {
    const empty = new Histogram();
    expect([empty.count, empty.min, empty.max, empty.mean, empty.percentile(99)]).toEqual([0, 0, 0, 0, 0]);
  });

  it('counts small values exactly', () => {
    const histogram = record([1, 2, 3, 100, 127]);
    expect([0, 20, 40, 60, 80, 100].map((p) => histogram.percentile(p))).toEqual([1, 1, 2, 3, 100, 127]);
  });

  it('stays within 1/64 above the exact percentile, from nanoseconds to minutes', () => {
    const durations = fc.array(fc.oneof(fc.nat(300), fc.nat(2 ** 31 - 1), fc.nat(2 ** 39)), {
      minLength: 1,
      maxLength: 60,
    });
    fc.assert(
      fc.property(durations, fc.integer({ min: 0, max: 1000 }), (values, perMille) => {
        const sorted = [...values].sort((a, b) => a - b);
        const exact = sorted[Math.max(1, Math.ceil((perMille / 1000) * sorted.length)) - 1] ?? 0;
        const shown = record(values).percentile(perMille / 10);
        expect(shown).toBeGreaterThanOrEqual(exact);
        expect(shown).toBeLessThanOrEqual(exact * (1 + 1 / 64));
      }),
    );
  });

  it.each([127, 128, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 33 + 1, 2 ** 40 - 1])(
    'keeps a single value of %d within its bucket',
    (value) => {
      const histogram = record([value]);
      expect(histogram.percentile(50)).toBe(value);
      expect([histogram.min, histogram.max, histogram.mean]).toEqual([value, value, value]);
    },
  );

  it('counts what is longer than it can hold as the longest', () => {
    const histogram = record([2 ** 45]);
    expect([histogram.count, histogram.max]).toEqual([1, 2 ** 40 - 1]);
  });
});
