/**
 * A domain: an address space for devices, as its driver mapped it. What one MAP request made is one mapping, and only
 * taken away whole. Source: VIRTIO 1.3, 5.13.6.5 MAP request, 5.13.6.6 UNMAP request.
 */

import type { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import type { IoMapping } from '../../../frontend/io-mappings.ts';
import { RangeTable } from '../../../frontend/range-table.ts';

/** What a driver asked for: bytes from an I/O virtual address on, all of them at a guest address. Multiples of a page. */
export interface DomainMapping {
  readonly iova: number;
  readonly size: number;
  readonly guestAddress: number;
  /** VIRTIO_IOMMU_MAP_F_READ and _WRITE, which are IOTLB_READ and IOTLB_WRITE. */
  readonly permission: number;
}

/** As much of a mapping as is in one region of RAM, for back ends. */
export interface MappedPiece extends IoMapping {
  readonly mapping: DomainMapping;
}

/** RAM, as far as mappings need it. */
export interface MappableRam {
  readonly memory: GuestMemory;
  hostAddress(guestAddress: number, length: number): number | undefined;
}

export class Domain {
  readonly id: number;
  /** Endpoints in it reach all of RAM, by guest addresses. It has no mappings. */
  readonly bypass: boolean;
  readonly table = new RangeTable<MappedPiece>();
  #count = 0;

  constructor(id: number, bypass: boolean) {
    this.id = id;
    this.bypass = bypass;
  }

  /** Mappings there are. */
  get count(): number {
    return this.#count;
  }

  *mappings(): Generator<DomainMapping> {
    for (const { iova, mapping } of this.table) if (iova === mapping.iova) yield mapping;
  }

  /** Whether anything in [start, end) is mapped. */
  overlaps(start: number, end: number): boolean {
    const next = this.table.firstEndingAfter(start);
    return next !== undefined && next.iova < end;
  }

  /** Adds the pieces of a mapping, where nothing is mapped. */
  add(pieces: readonly MappedPiece[]): void {
    for (const piece of pieces) this.table.add(piece);
    this.#count += 1;
  }

  /** Removes all mappings in [start, end), and returns how many. Undefined, and nothing removed: it would cut one in two. */
  remove(start: number, end: number): number | undefined {
    const first = this.table.firstEndingAfter(start);
    const last = this.table.lastBeginningBefore(end);
    if (first === undefined || last === undefined || first.iova >= end) return 0;
    if (first.mapping.iova < start || last.mapping.iova + last.mapping.size > end) return undefined;
    const removed = this.table.remove(start, end);
    const mappings = removed.filter(({ iova, mapping }) => iova === mapping.iova).length;
    this.#count -= mappings;
    return mappings;
  }
}

/** The pieces of a mapping by the regions that its guest addresses are in. Undefined: some are not RAM. */
export function piecesOf(ram: MappableRam, mapping: DomainMapping): MappedPiece[] | undefined {
  const { iova, size, guestAddress, permission } = mapping;
  const pieces: MappedPiece[] = [];
  for (let done = 0; done < size; ) {
    const address = guestAddress + done;
    const region = ram.memory.find(address);
    const length = Math.min(size - done, (region?.end ?? address) - address);
    const userAddress = length > 0 ? ram.hostAddress(address, length) : undefined;
    if (userAddress === undefined) return undefined;
    pieces.push({ iova: iova + done, size: length, userAddress, permission, mapping });
    done += length;
  }
  return pieces;
}
