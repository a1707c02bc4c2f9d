/**
 * Figures of one split ring from looks at its two indexes: what the driver made available, and what the device used.
 *
 *     in flight = available - used          rate = progress of used / time
 *     latency   = area below in flight / progress of used        (Little's law)
 *
 * Both indexes count modulo 65536, so a look has to come before the device can have gone round. The driver owns one of
 * them and may write what it likes: what cannot be is counted as what can, and the figures say that they are not exact.
 * Nothing is allocated by a look.
 */

const BUCKET_MS = 100;
/** Of the window; the one that is being filled comes on top. */
const BUCKETS = 10;
export const WINDOW_MS = BUCKET_MS * BUCKETS;
const SLOTS = BUCKETS + 1;

/** Chains that are plausible in a second, of a queue that was not seen to be faster: three times what ours reach. */
const PLAUSIBLE_RATE = 3_000_000;
const INDEX_VALUES = 0x1_0000;
/** A queue that was slow just now does not become the fastest there is unseen: so much faster than its peak. */
const SURGE = 20;
/** Chains a second, below which a peak says nothing of what comes. */
const SLOW_RATE = 20_000;
/** A bucket of less is no measure of a rate: one batch of completions makes it look fast. */
const MEASURE_MS = 50;

export interface RingFigures {
  readonly inFlight: number;
  readonly meanInFlight: number;
  /** Chains a second. */
  readonly rate: number;
  /** Undefined where none was used. */
  readonly latencyMs: number | undefined;
  readonly waitingMs: number;
  readonly used: number;
  readonly exact: boolean;
  /** What mean and rate are over. */
  readonly windowMs: number;
}

export class RingMeter {
  readonly #size: number;
  readonly #startMs: number;
  #lastMs: number;
  #lastUsed: number;
  #inFlight: number;
  /** When the last chain was used, or the first became available after none was in flight. */
  #movedMs: number;
  #total = 0;
  #peakRate = SLOW_RATE;
  /** By bucket, at its number modulo SLOTS. */
  #bucket: number;
  readonly #spans = new Float64Array(SLOTS);
  readonly #areas = new Float64Array(SLOTS);
  readonly #progress = new Float64Array(SLOTS);
  readonly #doubts = new Uint32Array(SLOTS);

  /** The first look at a ring of `size` entries. Times are milliseconds that only grow. */
  constructor(size: number, nowMs: number, available: number, used: number) {
    this.#size = size;
    this.#startMs = nowMs;
    this.#lastMs = nowMs;
    this.#lastUsed = used;
    this.#movedMs = nowMs;
    this.#bucket = Math.floor(nowMs / BUCKET_MS);
    this.#inFlight = this.#settle(available, used);
  }

  /** One more look. */
  look(nowMs: number, available: number, used: number): void {
    const gapMs = nowMs - this.#lastMs;
    this.#turnTo(Math.floor(nowMs / BUCKET_MS));
    const at = this.#bucket % SLOTS;
    const progress = (used - this.#lastUsed) & 0xffff;
    const before = this.#inFlight;
    this.#inFlight = this.#settle(available, used);
    this.#spans[at] = (this.#spans[at] as number) + gapMs;
    this.#areas[at] = (this.#areas[at] as number) + (gapMs * (before + this.#inFlight)) / 2;
    this.#progress[at] = (this.#progress[at] as number) + progress;
    if (gapMs > 0) {
      const possible = Math.min(PLAUSIBLE_RATE, SURGE * this.#peakRate);
      if ((gapMs * possible) / 1000 >= INDEX_VALUES) this.#doubt();
    }
    this.#total += progress;
    if (progress > 0 || before === 0) this.#movedMs = nowMs;
    this.#lastMs = nowMs;
    this.#lastUsed = used;
  }

  /** Of the last WINDOW_MS before the last look, or all there was. */
  figures(): RingFigures {
    let span = 0;
    let area = 0;
    let progress = 0;
    let doubts = 0;
    for (let slot = 0; slot < SLOTS; slot += 1) {
      span += this.#spans[slot] as number;
      area += this.#areas[slot] as number;
      progress += this.#progress[slot] as number;
      doubts += this.#doubts[slot] as number;
    }
    return {
      inFlight: this.#inFlight,
      meanInFlight: span > 0 ? area / span : this.#inFlight,
      rate: span > 0 ? (progress * 1000) / span : 0,
      latencyMs: progress > 0 ? area / progress : undefined,
      waitingMs: this.#inFlight > 0 ? this.#lastMs - this.#movedMs : 0,
      used: this.#total,
      exact: doubts === 0,
      windowMs: Math.min(span, this.#lastMs - this.#startMs),
    };
  }

  /** What can be in flight: no more than the ring has entries. */
  #settle(available: number, used: number): number {
    const inFlight = (available - used) & 0xffff;
    if (inFlight <= this.#size) return inFlight;
    this.#doubt();
    return this.#size;
  }

  #doubt(): void {
    const at = this.#bucket % SLOTS;
    this.#doubts[at] = (this.#doubts[at] as number) + 1;
  }

  /** Leaves the present bucket, and empties those from there to `bucket`. */
  #turnTo(bucket: number): void {
    if (bucket === this.#bucket) return;
    const left = this.#bucket % SLOTS;
    const span = this.#spans[left] as number;
    if (span >= MEASURE_MS) this.#peakRate = Math.max(this.#peakRate, ((this.#progress[left] as number) * 1000) / span);
    const steps = Math.min(bucket - this.#bucket, SLOTS);
    for (let step = 1; step <= steps; step += 1) {
      const at = (bucket - steps + step) % SLOTS;
      this.#spans[at] = 0;
      this.#areas[at] = 0;
      this.#progress[at] = 0;
      this.#doubts[at] = 0;
    }
    this.#bucket = bucket;
  }
}
