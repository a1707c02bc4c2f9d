/**
 * Ranges of addresses, sorted and never overlapping, with what belongs to each. They lie in blocks, so that one more or
 * less costs no more than moving a block and the list of blocks: with 100,000 ranges 512 and 400 entries.
 */

export interface Range {
  readonly iova: number;
  readonly size: number;
}

const MAX_BLOCK = 512;

const endOf = ({ iova, size }: Range): number => iova + size;

export class RangeTable<T extends Range> {
  /** None of them is empty. */
  readonly #blocks: T[][] = [];
  #count = 0;

  get count(): number {
    return this.#count;
  }

  /** The range that covers an address. */
  find(address: number): T | undefined {
    const range = this.firstEndingAfter(address);
    return range !== undefined && range.iova <= address ? range : undefined;
  }

  /** The first range whose end lies above an address. */
  firstEndingAfter(address: number): T | undefined {
    const block = this.#blocks[this.#blockEndingAfter(address)];
    return block?.[placeEndingAfter(block, address)];
  }

  /** The last range that begins below an address. */
  lastBeginningBefore(address: number): T | undefined {
    const at = this.#blockEndingAfter(address);
    const block = this.#blocks[at];
    if (block === undefined) return this.#blocks.at(-1)?.at(-1);
    const place = placeEndingAfter(block, address);
    const covering = block[place];
    if (covering !== undefined && covering.iova < address) return covering;
    return place > 0 ? block[place - 1] : this.#blocks[at - 1]?.at(-1);
  }

  /** Adds a range. Returns one that overlaps it instead, if there is one. */
  add(range: T): T | undefined {
    const at = Math.min(this.#blockEndingAfter(range.iova), Math.max(0, this.#blocks.length - 1));
    const block = this.#blocks[at];
    if (block === undefined) {
      this.#blocks.push([range]);
      this.#count = 1;
      return undefined;
    }
    const place = placeEndingAfter(block, range.iova);
    const next = block[place];
    if (next !== undefined && next.iova < endOf(range)) return next;
    block.splice(place, 0, range);
    if (block.length > MAX_BLOCK) this.#blocks.splice(at + 1, 0, block.splice(MAX_BLOCK / 2));
    this.#count += 1;
    return undefined;
  }

  /** Removes the ranges that overlap [start, end), and returns them. */
  remove(start: number, end: number): T[] {
    const removed: T[] = [];
    const first = this.#blockEndingAfter(start);
    let at = first;
    for (let block = this.#blocks[at]; block !== undefined; block = this.#blocks[at]) {
      const from = placeEndingAfter(block, start);
      let to = from;
      while (to < block.length && (block[to] as T).iova < end) to += 1;
      for (const range of block.splice(from, to - from)) removed.push(range);
      // What is left behind the range ends it.
      if (from < block.length) break;
      at += 1;
    }
    const left = this.#blocks.slice(first, at + 1).filter(({ length }) => length > 0);
    this.#blocks.splice(first, at + 1 - first, ...left);
    this.#count -= removed.length;
    return removed;
  }

  *[Symbol.iterator](): Generator<T> {
    for (const block of this.#blocks) yield* block;
  }

  /** Index of the first block whose last range ends above an address. */
  #blockEndingAfter(address: number): number {
    let low = 0;
    let high = this.#blocks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const block = this.#blocks[middle] as T[];
      if (endOf(block[block.length - 1] as T) > address) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Index of the first range of a block whose end lies above an address. */
function placeEndingAfter(block: readonly Range[], address: number): number {
  let low = 0;
  let high = block.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (endOf(block[middle] as Range) > address) high = middle;
    else low = middle + 1;
  }
  return low;
}
