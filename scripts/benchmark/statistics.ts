/** Order statistics of a handful of runs: medians and extremes, because a mean would let one disturbed run decide. */

export interface Spread {
  median: number;
  min: number;
  max: number;
}

/** Median, smallest and largest of at least one value. */
export function spreadOf(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const [min, max] = [sorted[0], sorted[sorted.length - 1]];
  const upper = sorted[sorted.length >> 1];
  const lower = sorted[(sorted.length - 1) >> 1];
  if (min === undefined || max === undefined || upper === undefined || lower === undefined) {
    throw new RangeError('no values to take a median of');
  }
  return { median: (lower + upper) / 2, min, max };
}

/** Ratios of what was measured in the same round, a[i] / b[i]: slow drift of the machine divides out. */
export function pairwiseRatio(a: readonly number[], b: readonly number[]): Spread | undefined {
  const ratios: number[] = [];
  for (let round = 0; round < a.length; round++) {
    const [mine, theirs] = [a[round], b[round]];
    if (mine !== undefined && theirs !== undefined && theirs > 0) ratios.push(mine / theirs);
  }
  return ratios.length > 0 ? spreadOf(ratios) : undefined;
}

/** 1234567 -> `1.23M`, 54321 -> `54.3k`. */
export function formatCount(value: number): string {
  if (value >= 999_500) return `${(value / 1e6).toFixed(2)}M`;
  if (value >= 99_950) return `${(value / 1e3).toFixed(0)}k`;
  if (value >= 1000) return `${(value / 1e3).toFixed(1)}k`;
  return value.toFixed(0);
}
