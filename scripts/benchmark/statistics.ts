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

/** The value that `percent` per cent of at least one value do not exceed. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const value = sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)];
  if (value === undefined) throw new RangeError('no values to take a percentile of');
  return value;
}

/** What `compare` says of the values of the same round, a[i] and b[i]: slow drift of the machine hits both. */
function pairwise(a: readonly number[], b: readonly number[], compare: (a: number, b: number) => number) {
  const compared: number[] = [];
  for (let round = 0; round < a.length; round++) {
    const [mine, theirs] = [a[round], b[round]];
    if (mine !== undefined && theirs !== undefined && theirs > 0) compared.push(compare(mine, theirs));
  }
  return compared.length > 0 ? spreadOf(compared) : undefined;
}

/** a[i] / b[i] of each round. */
export function pairwiseRatio(a: readonly number[], b: readonly number[]): Spread | undefined {
  return pairwise(a, b, (mine, theirs) => mine / theirs);
}

/** a[i] - b[i] of each round. */
export function pairwiseDifference(a: readonly number[], b: readonly number[]): Spread | undefined {
  return pairwise(a, b, (mine, theirs) => mine - theirs);
}

/** 1234567 -> `1.23M`, 54321 -> `54.3k`. */
export function formatCount(value: number): string {
  if (value >= 999_500) return `${(value / 1e6).toFixed(2)}M`;
  if (value >= 99_950) return `${(value / 1e3).toFixed(0)}k`;
  if (value >= 1000) return `${(value / 1e3).toFixed(1)}k`;
  return value.toFixed(0);
}
