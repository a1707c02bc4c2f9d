/**
 * Where a ring lies. Its addresses are user addresses of the front end, or, behind an IOMMU, I/O virtual addresses. What is
 * in one piece there can be scattered page by page in guest memory, and the views of a queue want one piece: scattered
 * pages are mapped a second time, in their order.
 *
 *     IOVA           | page a | page b | page c |
 *     guest memory   ... | b | ......... | a | .. | c | ...
 *     stitched       | a | b | c |
 */

import { SysError } from '../sys/errors.ts';
import { StitchedMapping } from '../sys/mapping.ts';
import type { GuestMemory, MemoryRegion } from './guest-memory.ts';
import { IOTLB_DENIED, IOTLB_HIT, type Iotlb, MissingPages } from './iotlb.ts';
import { MemoryError } from './memory-error.ts';

const PAGE_BYTES = 4096;

/** The front end has to be asked for translations: for those of `missing`, then the ring can be looked for again. */
export class TranslationMissing extends Error {
  override readonly name = 'TranslationMissing';
  readonly code = 'TRANSLATION_MISSING';
  readonly missing: MissingPages;

  constructor(what: string, missing: MissingPages) {
    super(`${what}: ${missing.count} translations are missing`);
    this.missing = missing;
  }
}

/** A piece of a ring that is contiguous in guest memory. */
interface Piece {
  readonly region: MemoryRegion;
  readonly guest: number;
  length: number;
}

/**
 * Reads every page of a piece where its region is mapped: a page that has yet to come (postcopy) is waited for there only,
 * and would become zero for everybody if it was touched in another mapping first.
 */
function touch({ region, guest, length }: Piece): void {
  const bytes = new Uint8Array(region.view(guest, length));
  // An atomic load, because one that nobody uses could be left out otherwise.
  for (let at = 0; at < length; at += PAGE_BYTES - ((guest + at) % PAGE_BYTES)) Atomics.load(bytes, at);
}

/** The memory of one ring, as long as the guest's memory and translations stay as they are. */
export class RingPlace {
  readonly #memory: GuestMemory;
  readonly #iotlb: Iotlb | undefined;
  readonly #stitched: StitchedMapping[] = [];

  constructor(memory: GuestMemory, iotlb?: Iotlb) {
    this.#memory = memory;
    this.#iotlb = iotlb;
  }

  /**
   * A view of `length` bytes at a ring address; its host address is a multiple of `align`, which is at most a page.
   * `writable` says whether the device writes there: a translation has to permit it.
   * @throws MemoryError - it is not there, or not aligned
   * @throws TranslationMissing - nobody asked the front end yet
   */
  readonly view = (address: number, length: number, align: number, what: string, writable = true): ArrayBuffer => {
    const pieces =
      this.#iotlb === undefined
        ? [this.#find(address, length, what)]
        : this.#translate(this.#iotlb, address, length, what, writable);
    const first = pieces[0] as Piece;
    if ((first.guest + first.region.hostDelta) % align !== 0) {
      throw new MemoryError(`${what} at 0x${address.toString(16)} is not aligned to ${align} bytes`);
    }
    return pieces.length === 1 ? first.region.view(first.guest, length) : this.#stitch(pieces, length, what);
  };

  /** Whether the front end took pages away that were mapped a second time. */
  get faulted(): boolean {
    return this.#stitched.some((mapping) => mapping.faulted);
  }

  /** Lets go of what was mapped a second time. No view is used any more. */
  retire(): void {
    for (const mapping of this.#stitched.splice(0)) mapping.retire();
  }

  #find(address: number, length: number, what: string): Piece {
    const guest = this.#memory.fromUserAddress(address, length, what);
    return { region: this.#memory.find(guest) as MemoryRegion, guest, length };
  }

  #translate(iotlb: Iotlb, iova: number, length: number, what: string, writable: boolean): Piece[] {
    const missing = new MissingPages();
    const found = iotlb.collectMissing(iova, length, writable, missing);
    if (found === IOTLB_DENIED) {
      throw new MemoryError(`${what}: ${length} bytes at IOVA 0x${iova.toString(16)} are not all translated`);
    }
    if (found !== IOTLB_HIT) throw new TranslationMissing(what, missing);
    const pieces: Piece[] = [];
    let last: Piece | undefined;
    for (let done = 0; done < length; ) {
      iotlb.lookup(iova + done, writable);
      const step = Math.min(length - done, iotlb.length);
      const region = this.#memory.find(iotlb.guest) as MemoryRegion;
      if (last !== undefined && last.region === region && last.guest + last.length === iotlb.guest) {
        last.length += step;
      } else {
        last = { region, guest: iotlb.guest, length: step };
        pieces.push(last);
      }
      done += step;
    }
    return pieces;
  }

  /** Maps pieces a second time. Every one but the first begins with a page, and every one but the last ends with one. */
  #stitch(pieces: readonly Piece[], length: number, what: string): ArrayBuffer {
    if (pieces.some(({ region }) => region.hugePages)) {
      throw new MemoryError(`${what} is scattered in guest memory of huge pages, which cannot be mapped in one piece`);
    }
    for (const piece of pieces) touch(piece);
    const hosts = pieces.map(({ region, guest, length }) => ({ address: guest + region.hostDelta, length }));
    const offset = (hosts[0] as { address: number }).address % PAGE_BYTES;
    let at = offset;
    hosts.forEach((host, i) => {
      if (i > 0 && (host.address % PAGE_BYTES !== 0 || at % PAGE_BYTES !== 0)) {
        throw new MemoryError(`${what} is scattered in guest memory in pieces that are not pages`);
      }
      at += host.length;
    });
    const mapping = this.#map(hosts, what);
    this.#stitched.push(mapping);
    return mapping.view(offset, length);
  }

  #map(hosts: readonly { readonly address: number; readonly length: number }[], what: string): StitchedMapping {
    try {
      return new StitchedMapping(
        hosts.map(({ address, length }) => {
          const start = address - (address % PAGE_BYTES);
          return { address: start, length: Math.ceil((address + length - start) / PAGE_BYTES) * PAGE_BYTES };
        }),
      );
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      throw new MemoryError(`${what} is scattered in guest memory and cannot be mapped in one piece: ${error.message}`);
    }
  }
}
