/** Hands out ranges of a space of bytes: first fit over a sorted list of holes that grow together again. Pure. */

interface Hole {
  start: number;
  end: number;
}

export class RangeAllocator {
  readonly length: number;
  readonly #holes: Hole[];
  readonly #taken = new Map<number, number>();

  /** Everything from 0 to `length` (bytes) is free. */
  constructor(length: number) {
    this.length = length;
    this.#holes = length > 0 ? [{ start: 0, end: length }] : [];
  }

  /** Bytes that are free, possibly in several holes. */
  get freeBytes(): number {
    return this.#holes.reduce((sum, hole) => sum + hole.end - hole.start, 0);
  }

  /**
   * Takes `length` bytes (at least 1) at a multiple of `alignment` (a power of two).
   * @returns the offset, or -1 when no hole is large enough
   */
  take(length: number, alignment: number): number {
    if (!(length > 0)) throw new RangeError(`a range of ${length} bytes cannot be allocated`);
    for (let i = 0; i < this.#holes.length; i++) {
      const hole = this.#holes[i];
      if (hole === undefined) break;
      const start = Math.ceil(hole.start / alignment) * alignment;
      if (start > hole.end || length > hole.end - start) continue;
      const rest = [
        { start: hole.start, end: start },
        { start: start + length, end: hole.end },
      ].filter(({ start, end }) => end > start);
      this.#holes.splice(i, 1, ...rest);
      this.#taken.set(start, length);
      return start;
    }
    return -1;
  }

  /** Gives back what `take` returned. @throws RangeError - nothing is allocated at `start` (our mistake) */
  release(start: number): void {
    const length = this.#taken.get(start);
    if (length === undefined) throw new RangeError(`nothing is allocated at offset ${start}`);
    this.#taken.delete(start);
    let at = this.#holes.findIndex((hole) => hole.start > start);
    if (at === -1) at = this.#holes.length;
    this.#holes.splice(at, 0, { start, end: start + length });
    this.#join(at);
    if (at > 0) this.#join(at - 1);
  }

  /** Makes one hole of hole `at` and the next where they touch. */
  #join(at: number): void {
    const left = this.#holes[at];
    const right = this.#holes[at + 1];
    if (left === undefined || right === undefined || left.end !== right.start) return;
    left.end = right.end;
    this.#holes.splice(at + 1, 1);
  }
}
