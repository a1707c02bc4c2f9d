/** The RAM of a machine as snapshots and migrations read and fill it. */

import type { GuestRam, RamRange } from '../guest-ram.ts';
import type { TargetMemory } from './memory-receiver.ts';
import type { SourceMemory } from './memory-sender.ts';
import type { PageRange } from './page-set.ts';

export class RamAccess implements SourceMemory, TargetMemory {
  readonly #ram: GuestRam;
  /** Data that was found last. To ask again for each part of it would look through all of the rest each time. */
  #data: RamRange | undefined;

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
}
