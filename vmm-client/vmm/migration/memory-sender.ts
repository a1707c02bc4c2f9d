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

/** Whether so many bytes are zero; at most CHUNK_BYTES. */
export function isZero(bytes: Buffer, offset: number, length: number): boolean {
  return bytes.compare(ZEROS, 0, length, offset, offset + length) === 0;
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

  /** Adds pages from `offset` of `bytes` on, as many as there is room for. Returns how many bytes that are. */
  addData(guestAddress: number, bytes: Buffer, offset: number, length: number): number {
    const room = Math.min(this.#buffer.length - this.#end - RECORD_BYTES, MAX_COVERED_BYTES - this.#covered);
    const taken = Math.min(length, Math.floor(room / PAGE_BYTES) * PAGE_BYTES);
    if (taken <= 0) return 0;
    this.#addRecord(guestAddress, taken, RECORD_DATA);
    bytes.copy(this.#buffer, this.#end, offset, offset + taken);
    this.#end += taken;
    return taken;
  }

  /** Adds pages that became zero. Returns how many bytes of them there was room for. */
  addZeros(guestAddress: number, length: number): number {
    const taken = Math.min(length, MAX_COVERED_BYTES - this.#covered);
    if (taken <= 0 || this.#buffer.length - this.#end < RECORD_BYTES) return 0;
    this.#addRecord(guestAddress, taken, RECORD_ZERO);
    return taken;
  }

  #addRecord(guestAddress: number, length: number, kind: number): void {
    const at = this.#end;
    this.#buffer.writeBigUInt64LE(BigInt(guestAddress), at);
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
  #free: Batch[] = [];
  #underWay: Promise<unknown>[] = [];
  #batch: Batch | undefined;
  #sliceStart = 0;

  constructor(memory: SourceMemory, channel: Channel) {
    this.#memory = memory;
    this.#channel = channel;
    this.#sent = new PageSet(memory.ranges);
    while (this.#free.length < BATCHES) this.#free.push(new Batch());
  }

  /**
   * Sends the pages of `pages`, which is empty afterwards. Kept when the kernel has them all. `onProgress` hears how many
   * bytes of guest memory have been looked at.
   */
  async send(pages: PageSet, onProgress: (bytes: number) => void): Promise<void> {
    this.#sliceStart = performance.now();
    for (let run = pages.take(MAX_RUN_BYTES); run !== undefined; run = pages.take(MAX_RUN_BYTES)) {
      await this.#sendRun(run);
      onProgress(run.length);
    }
    await this.#flush();
    await Promise.all(this.#underWay.splice(0));
  }

  async #sendRun(run: PageRange): Promise<void> {
    let at = run.guestAddress;
    for (const range of this.#memory.dataRanges(run)) {
      await this.#becameZero(at, range.guestAddress - at);
      await this.#sendData(range);
      at = range.guestAddress + range.length;
    }
    await this.#becameZero(at, run.guestAddress + run.length - at);
    if (performance.now() - this.#sliceStart < SLICE_MS) return;
    await nextTurn();
    this.#sliceStart = performance.now();
  }

  async #sendData(range: PageRange): Promise<void> {
    const bytes = this.#memory.bytes(range);
    for (let offset = 0; offset < range.length; ) {
      // Runs of pages of one kind.
      const zero = isZero(bytes, offset, PAGE_BYTES);
      let end = offset + PAGE_BYTES;
      while (end < range.length && isZero(bytes, end, PAGE_BYTES) === zero) end += PAGE_BYTES;
      if (zero) await this.#becameZero(range.guestAddress + offset, end - offset);
      else await this.#addData(range.guestAddress, bytes, offset, end);
      offset = end;
    }
  }

  async #addData(base: number, bytes: Buffer, offset: number, end: number): Promise<void> {
    this.#sent.add({ guestAddress: base + offset, length: end - offset });
    for (let at = offset; at < end; ) {
      const batch = await this.#room();
      const taken = batch.addData(base + at, bytes, at, end - at);
      if (taken === 0) await this.#flush();
      at += taken;
    }
  }

  /** Says of those pages that were sent before that they are zero now. */
  async #becameZero(guestAddress: number, length: number): Promise<void> {
    for (let at = guestAddress; at < guestAddress + length; ) {
      if (!this.#sent.has(at)) {
        at += PAGE_BYTES;
        continue;
      }
      let end = at + PAGE_BYTES;
      while (end < guestAddress + length && this.#sent.has(end)) end += PAGE_BYTES;
      this.#sent.remove({ guestAddress: at, length: end - at });
      while (at < end) {
        const batch = await this.#room();
        const taken = batch.addZeros(at, end - at);
        if (taken === 0) await this.#flush();
        at += taken;
      }
    }
  }

  /** The batch to fill. */
  async #room(): Promise<Batch> {
    while (this.#batch === undefined) {
      this.#batch = this.#free.pop();
      // Waiting for the peer is a turn of the others, too.
      if (this.#batch === undefined) await this.#underWay.shift();
    }
    return this.#batch;
  }

  async #flush(): Promise<void> {
    const batch = this.#batch;
    if (batch === undefined || batch.isEmpty) return;
    this.#batch = undefined;
    // Nothing is to be said by the peer meanwhile, but that it gives up.
    if (this.#channel.hasNews) await this.#channel.receive([]);
    const sending = this.#channel.sendFramed(PAGES, batch.frame).then(() => {
      batch.clear();
      this.#free.push(batch);
    });
    // Whoever waits for it hears of it; nobody may come to that.
    sending.catch(() => undefined);
    this.#underWay.push(sending);
  }
}
