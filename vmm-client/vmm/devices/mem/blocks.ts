/** Which blocks of a region are plugged: a bit each, and how many they are, piece by piece. Pure. */

/** Blocks next to each other, by number. */
export interface BlockRun {
  readonly first: number;
  readonly count: number;
}

export class Blocks {
  readonly count: number;
  readonly #bits: Uint8Array;
  readonly #blocksPerPiece: number;
  readonly #perPiece: number[];
  #plugged = 0;

  /** All unplugged, or as `bits` says (the same bytes that `bits()` returns, as many as it takes). */
  constructor(count: number, blocksPerPiece: number, bits?: Uint8Array) {
    this.count = count;
    this.#blocksPerPiece = blocksPerPiece;
    this.#bits = new Uint8Array(bytesFor(count));
    this.#perPiece = new Array<number>(Math.ceil(count / blocksPerPiece)).fill(0);
    for (let block = 0; bits !== undefined && block < count; block += 1) {
      if (((bits[block >> 3] as number) & (1 << (block & 7))) !== 0) this.set({ first: block, count: 1 }, true);
    }
  }

  /** Blocks that are plugged. */
  get plugged(): number {
    return this.#plugged;
  }

  /** Those of one piece. */
  pluggedIn(piece: number): number {
    return this.#perPiece[piece] ?? 0;
  }

  isPlugged(block: number): boolean {
    return ((this.#bits[block >> 3] as number) & (1 << (block & 7))) !== 0;
  }

  /** How many of a run are plugged. The run lies inside. */
  pluggedOf({ first, count }: BlockRun): number {
    let plugged = 0;
    for (let block = first; block < first + count; block += 1) plugged += Number(this.isPlugged(block));
    return plugged;
  }

  /** Plugs or unplugs a run of blocks which all are not so yet. */
  set({ first, count }: BlockRun, plugged: boolean): void {
    for (let block = first; block < first + count; block += 1) {
      this.#bits[block >> 3] = (this.#bits[block >> 3] as number) ^ (1 << (block & 7));
      const piece = Math.floor(block / this.#blocksPerPiece);
      this.#perPiece[piece] = (this.#perPiece[piece] as number) + (plugged ? 1 : -1);
    }
    this.#plugged += plugged ? count : -count;
  }

  /** Unplugs all. */
  clear(): void {
    this.#bits.fill(0);
    this.#perPiece.fill(0);
    this.#plugged = 0;
  }

  /** The longest runs of a part that are all plugged, or all unplugged, in order. */
  *runs(part: BlockRun, plugged: boolean): Generator<BlockRun> {
    const end = part.first + part.count;
    for (let first = part.first; first < end; first += 1) {
      if (this.isPlugged(first) !== plugged) continue;
      let next = first + 1;
      while (next < end && this.isPlugged(next) === plugged) next += 1;
      yield { first, count: next - first };
      first = next;
    }
  }

  /** Bit N % 8 of byte N / 8 is set where block N is plugged. A copy. */
  bits(): Uint8Array {
    return this.#bits.slice();
  }
}

/** Bytes of the bitmap of so many blocks. */
export function bytesFor(count: number): number {
  return Math.ceil(count / 8);
}
