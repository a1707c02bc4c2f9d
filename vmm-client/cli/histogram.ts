/**
 * A histogram of durations with buckets of at most 1/64 of their value: log-linear, fixed memory, no allocation per
 * sample. Pure. Unit: nanoseconds, from 1 up to 2^40 - 1 (18 minutes); longer ones count as the longest.
 */

const SUB_BITS = 6;
const SUB_BUCKETS = 1 << SUB_BITS;
const MAX_BITS = 40;
const MAX_VALUE = 2 ** MAX_BITS - 1;
/** Values below 2 * SUB_BUCKETS have a bucket each; every octave above has SUB_BUCKETS. */
const BUCKETS = (MAX_BITS - SUB_BITS + 1) * SUB_BUCKETS;

/** The bucket of a whole number from 0 to MAX_VALUE. */
function bucketOf(value: number): number {
  if (value < 2 * SUB_BUCKETS) return value;
  // Numbers of more than 32 bits have no bit operations: their upper part decides.
  const exponent = value < 0x1_0000_0000 ? 31 - Math.clz32(value) : 63 - Math.clz32(value / 0x1_0000_0000);
  const shift = exponent - SUB_BITS;
  return shift * SUB_BUCKETS + Math.floor(value / 2 ** shift);
}

/** The largest value that falls into a bucket. */
function bucketEnd(bucket: number): number {
  if (bucket < 2 * SUB_BUCKETS) return bucket;
  const shift = Math.floor(bucket / SUB_BUCKETS) - 1;
  return (bucket - shift * SUB_BUCKETS + 1) * 2 ** shift - 1;
}

export class Histogram {
  readonly #counts = new Float64Array(BUCKETS);
  #total = 0;
  #sum = 0;
  #min = Number.POSITIVE_INFINITY;
  #max = 0;

  get count(): number {
    return this.#total;
  }

  /** Exact, unlike percentiles. 0 when empty. */
  get min(): number {
    return this.#total === 0 ? 0 : this.#min;
  }

  get max(): number {
    return this.#max;
  }

  get mean(): number {
    return this.#total === 0 ? 0 : this.#sum / this.#total;
  }

  record(nanoseconds: number): void {
    const value = Math.min(MAX_VALUE, Math.max(0, Math.floor(nanoseconds)));
    const bucket = bucketOf(value);
    this.#counts[bucket] = this.#counts[bucket]! + 1;
    this.#total += 1;
    this.#sum += value;
    if (value < this.#min) this.#min = value;
    if (value > this.#max) this.#max = value;
  }

  /** The value that `percent` (0 to 100) of the samples do not exceed, to within a bucket. 0 when empty. */
  percentile(percent: number): number {
    const rank = Math.max(1, Math.ceil((percent / 100) * this.#total));
    let seen = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.#counts[bucket]!;
      if (seen >= rank) return Math.min(bucketEnd(bucket), this.#max);
    }
    return this.#max;
  }
}
