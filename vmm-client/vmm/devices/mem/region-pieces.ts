/** The pieces of a region, by number: those that are there, and what blocks make of them. */

import { HOTPLUG_BLOCK_BYTES } from '../../config-limits.ts';
import type { RamRange } from '../../guest-ram.ts';
import type { BlockRun, Blocks } from './blocks.ts';
import { blocksOf, type HotplugRegion, pieceAt, piecesOf } from './region.ts';

/** Who has them. */
export interface Pieces {
  has(piece: RamRange): boolean;
  /** No effect where it is there. @throws Error - it cannot be had, in a sentence */
  add(piece: RamRange): Promise<void>;
  remove(piece: RamRange): Promise<void>;
  /** Gives a part of one back to the host. */
  discard(part: RamRange): Promise<void>;
  /** Sees to it that the host has memory for a part of one. @throws Error - it has not, or for some of it */
  reserve(part: RamRange): Promise<void>;
}

export class RegionPieces {
  readonly #region: HotplugRegion;
  readonly #pieces: Pieces;
  readonly #all: readonly number[];

  constructor(region: HotplugRegion, pieces: Pieces) {
    this.#region = region;
    this.#pieces = pieces;
    this.#all = Array.from({ length: piecesOf(region, region.size) }, (_, index) => index);
  }

  get present(): readonly number[] {
    return this.#all.filter((index) => this.#has(index));
  }

  get absent(): readonly number[] {
    return this.#all.filter((index) => !this.#has(index));
  }

  #has(index: number): boolean {
    return this.#pieces.has(pieceAt(this.#region, index));
  }

  /** Adds the pieces that hold the first so many bytes. @throws Error - one cannot be had; those before it are there */
  async provide(bytes: number): Promise<void> {
    for (const index of this.#all.slice(0, piecesOf(this.#region, bytes))) {
      await this.#pieces.add(pieceAt(this.#region, index));
    }
  }

  /** Has memory for a run of blocks. @throws Error - the host has not got it; some may be there */
  async take(run: BlockRun): Promise<void> {
    for (const { index } of this.#partsOf(run)) await this.#pieces.add(pieceAt(this.#region, index));
    for (const part of this.#partsOf(run)) await this.#pieces.reserve(this.#rangeOf(part));
  }

  /** Gives the memory of a run back, as far as it is there. */
  async giveBack(run: BlockRun): Promise<void> {
    for (const part of this.#partsOf(run)) {
      if (this.#has(part.index)) await this.#pieces.discard(this.#rangeOf(part));
    }
  }

  /** Gives all memory back of what is not plugged. */
  async giveBackUnplugged(blocks: Blocks): Promise<void> {
    for (const index of this.present) {
      const all = blocksOf(this.#region, index);
      const runs = blocks.pluggedIn(index) === 0 ? [all] : blocks.runs(all, false);
      for (const run of runs) await this.#pieces.discard(this.#rangeOf(run));
    }
  }

  /** Takes away those pieces that are there and that `which` names. */
  async remove(which: (index: number) => boolean): Promise<void> {
    for (const index of this.present) if (which(index)) await this.#pieces.remove(pieceAt(this.#region, index));
  }

  /** A run, cut at the borders of pieces. */
  #partsOf({ first, count }: BlockRun): (BlockRun & { readonly index: number })[] {
    const perPiece = this.#region.pieceBytes / HOTPLUG_BLOCK_BYTES;
    const end = first + count;
    return this.#all.slice(Math.floor(first / perPiece), Math.ceil(end / perPiece)).map((index) => {
      const from = Math.max(first, index * perPiece);
      return { index, first: from, count: Math.min(end, (index + 1) * perPiece) - from };
    });
  }

  #rangeOf({ first, count }: BlockRun): RamRange {
    return { start: this.#region.start + first * HOTPLUG_BLOCK_BYTES, length: count * HOTPLUG_BLOCK_BYTES };
  }
}
