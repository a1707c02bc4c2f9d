/**
 * Sends pages of RAM: batches of records, each a run of pages with its bytes, or one that became zero. Pages that are zero
 * and never were anything else at the destination are not sent. The guest may write meanwhile: what it writes is in the
 * dirty log and is sent again.
 *
 *     record   guest address u64 @0, bytes u32 @8, kind u32 @12 (0: the bytes follow, 1: they are zero)
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { PAGE_BYTES } from '../layout.ts';
import type { Channel } from './channel.ts';
import { HEADER_BYTES, MAX_COVERED_BYTES, MAX_PAGES_BYTES, PAGES } from './frames.ts';
import { type PageRange, PageSet } from './page-set.ts';

export const RECORD_BYTES = 16;
export const RECORD_DATA = 0;
export const RECORD_ZERO = 1;

/** RAM as the sender reads it. */
export interface SourceMemory {
  /** Whole pages. */
  readonly ranges: readonly PageRange[];
  /** The parts of a range that are no holes, which read as zeros. Whole pages, in order. */
  dataRanges(range: PageRange): Iterable<PageRange>;
  /** The memory itself. The range is RAM, within one of `ranges`, and at most 1 MiB. */
  bytes(range: PageRange): Buffer;
}

/** Compared with in one step, where most memory is zero or is not. */
const CHUNK_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(CHUNK_BYTES);
/** Batches that are under way at the same time. */
const BATCHES = 3;
/** How long pages are looked at before somebody else has a turn, in milliseconds. */
const SLICE_MS = 2;
const MAX_RUN_BYTES = 1024 * 1024;
/** Of an address, what is in its higher half. */
const HIGH_WORD = 2 ** 32;

/** Whether so many bytes are zero; from 4 to CHUNK_BYTES. */
export function isZero(bytes: Buffer, offset: number, length: number): boolean {
  // What is not zero seldom begins with zeros, and this much is asked without a call.
  if (bytes.readUInt32LE(offset) !== 0) return false;
  return bytes.compare(ZEROS, 0, length, offset, offset + length) === 0;
}

/** Pages that the destination is to be told of. */
interface Piece extends PageRange {
  /** Where they are, from `offset` on; undefined: they are zero. */
  readonly bytes: Buffer | undefined;
  readonly offset: number;
}

/** A frame that is being filled, or on its way. */
class Batch {
  readonly #buffer = Buffer.allocUnsafe(HEADER_BYTES + MAX_PAGES_BYTES);
  #end = HEADER_BYTES;
  #covered = 0;

  get isEmpty(): boolean {
    return this.#end === HEADER_BYTES;
  }

  get frame(): Buffer {
    return this.#buffer.subarray(0, this.#end);
  }

  clear(): void {
    this.#end = HEADER_BYTES;
    this.#covered = 0;
  }

  /** Adds pages of a piece from `from` on, as many as there is room for. Returns how many bytes of them that are. */
  add({ guestAddress, length, bytes, offset }: Piece, from: number): number {
    const room = this.#buffer.length - this.#end - RECORD_BYTES;
    if (room < 0) return 0;
    const most = Math.min(bytes === undefined ? length : room, MAX_COVERED_BYTES - this.#covered, length - from);
    const taken = most - (most % PAGE_BYTES);
    if (taken === 0) return 0;
    this.#addRecord(guestAddress + from, taken, bytes === undefined ? RECORD_ZERO : RECORD_DATA);
    if (bytes === undefined) return taken;
    bytes.copy(this.#buffer, this.#end, offset + from, offset + from + taken);
    this.#end += taken;
    return taken;
  }

  #addRecord(guestAddress: number, length: number, kind: number): void {
    const at = this.#end;
    this.#buffer.writeUInt32LE(guestAddress % HIGH_WORD, at);
    this.#buffer.writeUInt32LE(Math.floor(guestAddress / HIGH_WORD), at + 4);
    this.#buffer.writeUInt32LE(length, at + 8);
    this.#buffer.writeUInt32LE(kind, at + 12);
    this.#end = at + RECORD_BYTES;
    this.#covered += length;
  }
}

export class MemorySender {
  readonly #memory: SourceMemory;
  readonly #channel: Channel;
  /** What the destination has that is not zero. */
  readonly #sent: PageSet;
  /** The one that is being filled. */
  #batch = new Batch();
  readonly #free: Batch[] = [];
  /** In the order in which they were sent. */
  readonly #underWay: Promise<Batch>[] = [];

  constructor(memory: SourceMemory, channel: Channel) {
    this.#memory = memory;
    this.#channel = channel;
    this.#sent = new PageSet(memory.ranges);
    while (this.#free.length < BATCHES - 1) this.#free.push(new Batch());
  }

  /**
   * Sends the pages of `pages`, which is empty afterwards. Kept when the kernel has them all. `onProgress` hears how many
   * bytes of guest memory have been looked at.
   */
  async send(pages: PageSet, onProgress: (bytes: number) => void): Promise<void> {
    let sliceStart = performance.now();
    let looked = 0;
    for (let run = pages.take(MAX_RUN_BYTES); run !== undefined; run = pages.take(MAX_RUN_BYTES)) {
      for (const piece of this.#pieces(run)) {
        // Awaits nothing while there is room: pages may come one by one.
        for (let done = 0; done < piece.length; ) {
          const taken = this.#batch.add(piece, done);
          if (taken === 0) await this.#flush();
          done += taken;
        }
      }
      looked += run.length;
      if (looked < MAX_RUN_BYTES / 4) continue;
      onProgress(looked);
      looked = 0;
      if (performance.now() - sliceStart < SLICE_MS) continue;
      await nextTurn();
      sliceStart = performance.now();
    }
    onProgress(looked);
    await this.#flush();
    for (const batch of await Promise.all(this.#underWay.splice(0))) this.#free.push(batch);
  }

  *#pieces({ guestAddress, length }: PageRange): Iterable<Piece> {
    let at = guestAddress;
    for (const range of this.#memory.dataRanges({ guestAddress, length })) {
      yield* this.#piecesThatBecameZero(at, range.guestAddress);
      yield* this.#piecesOfData(range);
      at = range.guestAddress + range.length;
    }
    yield* this.#piecesThatBecameZero(at, guestAddress + length);
  }

  /** Runs of pages of one kind. */
  *#piecesOfData(range: PageRange): Iterable<Piece> {
    const bytes = this.#memory.bytes(range);
    for (let offset = 0; offset < range.length; ) {
      const zero = isZero(bytes, offset, PAGE_BYTES);
      let end = offset + PAGE_BYTES;
      while (end < range.length && isZero(bytes, end, PAGE_BYTES) === zero) end += PAGE_BYTES;
      const guestAddress = range.guestAddress + offset;
      const length = end - offset;
      if (zero) {
        yield* this.#piecesThatBecameZero(guestAddress, guestAddress + length);
      } else {
        this.#sent.add({ guestAddress, length });
        yield { guestAddress, length, bytes, offset };
      }
      offset = end;
    }
  }

  /** Those of the pages, which are zero, that were sent before as something else. */
  *#piecesThatBecameZero(start: number, end: number): Iterable<Piece> {
    for (let at = start; at < end; ) {
      if (!this.#sent.has(at)) {
        at += PAGE_BYTES;
        continue;
      }
      const guestAddress = at;
      while (at < end && this.#sent.has(at)) at += PAGE_BYTES;
      const length = at - guestAddress;
      this.#sent.remove({ guestAddress, length });
      yield { guestAddress, length, bytes: undefined, offset: 0 };
    }
  }

  /** Sends what has been collected. Kept when there is a batch to fill. */
  async #flush(): Promise<void> {
    const batch = this.#batch;
    if (batch.isEmpty) return;
    // Nothing is to be said by the peer meanwhile, but that it gives up.
    if (this.#channel.hasNews) await this.#channel.receive([]);
    const sending = this.#channel.sendFramed(PAGES, batch.frame).then(() => {
      batch.clear();
      return batch;
    });
    // Whoever waits for it hears of it; nobody may come to that.
    sending.catch(() => undefined);
    this.#underWay.push(sending);
    this.#batch = this.#free.pop() ?? (await (this.#underWay.shift() as Promise<Batch>));
  }
}
