/** The RAM of a machine as snapshots and migrations read and fill it. */

import { writeSync } from 'node:fs';
import { SysError } from '../../../protocol/sys/errors.ts';
import type { GuestRam, RamRange } from '../guest-ram.ts';
import type { TargetMemory } from './memory-receiver.ts';
import type { SourceMemory } from './memory-sender.ts';
import { type PageRange, PageSet } from './page-set.ts';

export class RamAccess implements SourceMemory, TargetMemory {
  readonly #ram: GuestRam;
  /** Data that was found last. To ask again for each part of it would look through all of the rest each time. */
  #data: RamRange | undefined;
  /** What `write` has put there. */
  #written: PageSet | undefined;

  constructor(ram: GuestRam) {
    this.#ram = ram;
  }

  /** All that there is, also what was plugged. */
  get ranges(): readonly PageRange[] {
    return this.#ram.regions.map(({ region: { guestAddress, size } }) => ({ guestAddress, length: size }));
  }

  /** What was found before may be a hole by now, which reads as zeros. */
  *dataRanges({ guestAddress, length }: PageRange): Iterable<PageRange> {
    const end = guestAddress + length;
    for (let at = guestAddress; at < end; ) {
      const data = this.#find(at);
      if (data === undefined || data.start >= end) return;
      const start = Math.max(at, data.start);
      at = Math.min(end, data.start + data.length);
      yield { guestAddress: start, length: at - start };
    }
  }

  #find(at: number): RamRange | undefined {
    const known = this.#data;
    if (known === undefined || at < known.start || at >= known.start + known.length)
      this.#data = this.#ram.nextData(at);
    return this.#data;
  }

  bytes({ guestAddress, length }: PageRange): Buffer {
    const { buffer, byteOffset } = this.#ram.bytes(guestAddress, length);
    return Buffer.from(buffer, byteOffset, length);
  }

  /**
   * A page that is new is written to the file: the host neither clears it first nor takes a page fault, which together cost
   * as much again. Pages that come once more are copied to where they are mapped. @throws SysError - ENOSPC
   */
  write(guestAddress: number, pages: Buffer): void {
    this.#written ??= new PageSet(this.ranges);
    const { length } = pages;
    const found = this.#ram.regions.find(({ region }) => {
      const offset = guestAddress - region.guestAddress;
      return offset >= 0 && offset < region.size && length <= region.size - offset;
    });
    // Huge pages are there from the start, and are no file that can be written to.
    const isThere = this.#written.has(guestAddress) || this.#ram.memory.find(guestAddress)?.hugePages === true;
    if (found === undefined || isThere) {
      pages.copy(this.bytes({ guestAddress, length }));
      return;
    }
    const { region, memfd } = found;
    const start = region.mmapOffset + guestAddress - region.guestAddress;
    try {
      for (let done = 0; done < length; ) done += writeSync(memfd.fd, pages, done, length - done, start + done);
    } catch (error) {
      const { errno } = error as NodeJS.ErrnoException;
      if (errno === undefined) throw error;
      throw new SysError('write', -errno, `${length} bytes of RAM`);
    }
    this.#written.add({ guestAddress, length });
  }
}
