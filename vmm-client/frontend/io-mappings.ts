/**
 * What an IOMMU maps for one device: ranges of I/O virtual addresses (IOVA), each to user addresses of this process, with
 * what the device may do there. Whoever plays the IOMMU maps and unmaps; front ends listen, and so their back ends know.
 * Several devices may have one table: who changes that tells them (`tellMapped`, `tellUnmapped`).
 * Addresses and sizes are bytes, below 2^53. Source: vhost-user, IOMMU support; VIRTIO 1.3, 5.13 IOMMU device.
 */

import { IOTLB_READ, IOTLB_WRITE } from '../../protocol/memory/iotlb.ts';
import { RangeTable } from './range-table.ts';

export interface IoMapping {
  readonly iova: number;
  readonly size: number;
  readonly userAddress: number;
  /** IOTLB_READ and IOTLB_WRITE: what the device may do. */
  readonly permission: number;
}

/** Who has to know of changes. */
export interface IoMappingsListener {
  /** A range is mapped now. */
  mapped(mapping: IoMapping): Promise<void>;
  /** What was mapped in a range is not any more. Resolves when the device does not use it. */
  unmapped(iova: number, size: number): Promise<void>;
}

/** Whoever plays the IOMMU hears of accesses that it does not allow: IOVA, and what was wanted there. */
export type OnFault = (iova: bigint, permission: number) => void;

export class IoMappings {
  #table = new RangeTable<IoMapping>();
  readonly #listeners = new Set<IoMappingsListener>();
  readonly #onFault: OnFault;

  constructor(onFault: OnFault = () => undefined) {
    this.#onFault = onFault;
  }

  /** Mappings there are. */
  get count(): number {
    return this.#table.count;
  }

  /** From now on the listener is told. Returns what ends that. */
  listen(listener: IoMappingsListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** The mapping that covers an IOVA. */
  find(iova: number): IoMapping | undefined {
    return this.#table.find(iova);
  }

  /** The mapping by which the device may do what it wants at an IOVA. Where there is none, that is a fault. */
  grant(iova: bigint, permission: number): IoMapping | undefined {
    const mapping = iova <= BigInt(Number.MAX_SAFE_INTEGER) ? this.find(Number(iova)) : undefined;
    if (mapping !== undefined && (permission & ~mapping.permission) === 0) return mapping;
    this.noteFault(iova, permission);
    return undefined;
  }

  /** The device was kept from an access. */
  noteFault(iova: bigint, permission: number): void {
    this.#onFault(iova, permission);
  }

  /** The lowest IOVA at which the device finds what lies at a user address. */
  iovaOf(userAddress: number): number | undefined {
    for (const mapping of this.#table) {
      const offset = userAddress - mapping.userAddress;
      if (offset >= 0 && offset < mapping.size) return mapping.iova + offset;
    }
    return undefined;
  }

  /**
   * Maps a range. Devices ask for it when they need it.
   * @throws RangeError - empty, without permission, too high, or a part of it is mapped already
   * @throws PeerError - a back end had to be told and refused
   */
  async map(mapping: IoMapping): Promise<void> {
    const { iova, size, permission } = mapping;
    if (!(size > 0) || iova < 0 || iova + size > Number.MAX_SAFE_INTEGER) {
      throw new RangeError(`mapping of ${size} bytes at I/O address 0x${iova.toString(16)}: no such range`);
    }
    if (permission < IOTLB_READ || permission > (IOTLB_READ | IOTLB_WRITE)) {
      throw new RangeError(`mapping at I/O address 0x${iova.toString(16)}: permission ${permission}, 1 to 3 expected`);
    }
    const other = this.#table.add(mapping);
    if (other !== undefined) {
      throw new RangeError(`${other.size} bytes at I/O address 0x${other.iova.toString(16)} are mapped already`);
    }
    await this.tellMapped(mapping);
  }

  /**
   * Takes away every mapping in a range, and resolves when no device uses them any more. Returns how many there were.
   * @throws RangeError - a mapping is only in part in the range; nothing is taken away then
   * @throws PeerError - a back end refused to let go
   */
  async unmap(iova: number, size: number): Promise<number> {
    const end = iova + size;
    for (const each of [this.#table.firstEndingAfter(iova), this.#table.lastBeginningBefore(end)]) {
      if (each === undefined || each.iova >= end || each.iova + each.size <= iova) continue;
      if (each.iova >= iova && each.iova + each.size <= end) continue;
      throw new RangeError(
        `unmapping ${size} bytes at I/O address 0x${iova.toString(16)} would cut a mapping of ${each.size} in two`,
      );
    }
    const removed = this.#table.remove(iova, end).length;
    if (removed > 0) await this.tellUnmapped(iova, size);
    return removed;
  }

  /**
   * Puts another table in the place of what was mapped, all of it below `limit`. Resolves when no device uses that any more.
   * @throws PeerError - a back end refused to let go
   */
  async use(table: RangeTable<IoMapping>, limit: number): Promise<void> {
    if (table === this.#table) return;
    const had = this.#table.count;
    this.#table = table;
    if (had > 0) await this.tellUnmapped(0, limit);
  }

  /** The table has a mapping more. @throws PeerError - a back end had to be told and refused */
  async tellMapped(mapping: IoMapping): Promise<void> {
    await Promise.all([...this.#listeners].map((listener) => listener.mapped(mapping)));
  }

  /** It has nothing in a range any more; resolves when no device uses what it had. @throws PeerError - a back end refused */
  async tellUnmapped(iova: number, size: number): Promise<void> {
    await Promise.all([...this.#listeners].map((listener) => listener.unmapped(iova, size)));
  }
}
