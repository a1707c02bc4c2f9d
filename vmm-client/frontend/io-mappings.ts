/**
 * What an IOMMU maps for one device: ranges of I/O virtual addresses (IOVA), each to user addresses of this process, with
 * what the device may do there. Whoever plays the IOMMU maps and unmaps; front ends listen, and so their back ends know.
 * Addresses and sizes are bytes, below 2^53. Source: vhost-user, IOMMU support; VIRTIO 1.3, 5.13 IOMMU device.
 */

import { IOTLB_READ, IOTLB_WRITE } from '../../protocol/memory/iotlb.ts';

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
  /** Nothing in a range is mapped any more. Resolves when the device does not use what was. */
  unmapped(iova: number, size: number): Promise<void>;
}

export class IoMappings {
  /** Sorted by IOVA, never overlapping. */
  readonly #mappings: IoMapping[] = [];
  readonly #listeners = new Set<IoMappingsListener>();

  /** Mappings there are. */
  get count(): number {
    return this.#mappings.length;
  }

  /** From now on the listener is told. Returns what ends that. */
  listen(listener: IoMappingsListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** The mapping that covers an IOVA. */
  find(iova: number): IoMapping | undefined {
    const mapping = this.#mappings[this.#firstEndingAfter(iova)];
    return mapping !== undefined && mapping.iova <= iova ? mapping : undefined;
  }

  /** The lowest IOVA at which the device finds what lies at a user address. */
  iovaOf(userAddress: number): number | undefined {
    const found = this.#mappings.find(
      (mapping) => userAddress >= mapping.userAddress && userAddress - mapping.userAddress < mapping.size,
    );
    return found === undefined ? undefined : found.iova + (userAddress - found.userAddress);
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
    const at = this.#firstEndingAfter(iova);
    const next = this.#mappings[at];
    if (next !== undefined && next.iova < iova + size) {
      throw new RangeError(`${next.size} bytes at I/O address 0x${next.iova.toString(16)} are mapped already`);
    }
    this.#mappings.splice(at, 0, mapping);
    await Promise.all([...this.#listeners].map((listener) => listener.mapped(mapping)));
  }

  /**
   * Takes away every mapping in a range, and resolves when no device uses them any more. Returns how many there were.
   * @throws RangeError - a mapping is only in part in the range; nothing is taken away then
   * @throws PeerError - a back end refused to let go
   */
  async unmap(iova: number, size: number): Promise<number> {
    const end = iova + size;
    const from = this.#firstEndingAfter(iova);
    let to = from;
    for (let mapping = this.#mappings[to]; mapping !== undefined && mapping.iova < end; mapping = this.#mappings[to]) {
      if (mapping.iova < iova || mapping.iova + mapping.size > end) {
        throw new RangeError(
          `unmapping ${size} bytes at I/O address 0x${iova.toString(16)} would cut a mapping of ${mapping.size} in two`,
        );
      }
      to += 1;
    }
    this.#mappings.splice(from, to - from);
    if (to > from) await Promise.all([...this.#listeners].map((listener) => listener.unmapped(iova, size)));
    return to - from;
  }

  /** Index of the first mapping whose end lies above an IOVA. */
  #firstEndingAfter(iova: number): number {
    let low = 0;
    let high = this.#mappings.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const mapping = this.#mappings[middle] as IoMapping;
      if (mapping.iova + mapping.size > iova) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
