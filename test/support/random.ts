/**
 * Random numbers that a failing run can be given again: the seed is in the title or the message of what uses them, and
 * RINGSIDE_TEST_SEED sets it.
 */

/** The seed of this run. */
export const testSeed = Number(process.env.RINGSIDE_TEST_SEED ?? Math.floor(Math.random() * 0x7fff_ffff) + 1);

export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0 || 1;
    // Neighbouring seeds begin alike otherwise.
    for (let i = 0; i < 8; i += 1) this.#next();
  }

  /** xorshift32 */
  #next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }

  /** 0 to limit - 1. */
  below(limit: number): number {
    return this.#next() % limit;
  }

  /** from to to, both possible. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  /** Whether something happens that happens once in `times`. */
  oneIn(times: number): boolean {
    return this.below(times) === 0;
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)] as T;
  }
}
