/**
 * The rings of a device as its back end is told of them: where they lie, and where a back end goes on that comes back.
 * Behind an IOMMU they lie at I/O virtual addresses, which the back end has translated when it needs them; nobody looks
 * at them before. Source: VIRTIO 1.3, 2.7 Split Virtqueues, 2.8 Packed Virtqueues.
 */

import type { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import { Notifier } from '../../../protocol/sys/notifier.ts';
import { createEventFd, type OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import { PeerError } from '../../../protocol/vhost-user/errors.ts';
import {
  PACKED_START_BASE,
  packedRingBytes,
  VIRTQ_EVENT_SUPPRESS_BYTES,
} from '../../../protocol/virtio/packed-ring.ts';
import { hasFeature, VIRTIO_F_RING_PACKED } from '../../../protocol/virtio/reserved-features.ts';
import { availRingBytes, descriptorTableBytes, usedRingBytes } from '../../../protocol/virtio/split-ring.ts';
import type { SharedRegion } from '../../frontend/hand-over.ts';
import type { IoMappings } from '../../frontend/io-mappings.ts';
import type { Vring } from '../../frontend/vring.ts';
import type { DeviceProfile } from './profile.ts';
import type { Activation, ReadyQueue } from './virtio-device.ts';

/** What a device needs of the guest's RAM. User addresses of `regions` are the ones that `hostAddress` gives. */
export interface DeviceMemory {
  readonly memory: GuestMemory;
  readonly regions: readonly SharedRegion[];
  /** The address in this process of `length` bytes at a guest address; undefined where they are not in one region. */
  hostAddress(guestAddress: number, length: number): number | undefined;
}

const USED_INDEX = 2;
const USED_INDEX_BYTES = 2;

/** The parts of a ring: name, address in guest memory, bytes. */
function partsOf(queue: ReadyQueue, isPacked: boolean) {
  const { size, descriptorTable, availRing, usedRing } = queue;
  if (isPacked) {
    return [
      ['descriptor ring', descriptorTable, packedRingBytes(size)],
      ['driver event suppression', availRing, VIRTQ_EVENT_SUPPRESS_BYTES],
      ['device event suppression', usedRing, VIRTQ_EVENT_SUPPRESS_BYTES],
    ] as const;
  }
  return [
    ['descriptor table', descriptorTable, descriptorTableBytes(size)],
    ['available ring', availRing, availRingBytes(size)],
    ['used ring', usedRing, usedRingBytes(size)],
  ] as const;
}

export class DeviceRings {
  readonly #profile: DeviceProfile;
  readonly #ram: DeviceMemory;
  readonly #iommu: IoMappings | undefined;
  readonly #onBroken: (error: Error) => void;
  /** Of packed rings, by the back end's index: where it began, or stood when it was stopped last. */
  readonly #packedBases = new Map<number, number>();

  /** Written to by the back end when a ring is broken; there while rings are placed. */
  #errors: { readonly fd: OwnedFd; readonly watch: Watch } | undefined;

  /**
   * `onBroken` hears of rings that do not go on: the back end found one broken, or died and the guest took away meanwhile
   * where the ring stood.
   */
  constructor(
    profile: DeviceProfile,
    ram: DeviceMemory,
    iommu: IoMappings | undefined,
    onBroken: (error: Error) => void,
  ) {
    this.#profile = profile;
    this.#ram = ram;
    this.#iommu = iommu;
    this.#onBroken = onBroken;
  }

  /** The rings of the queues that somebody serves, until `close`. @throws RangeError - one is not in RAM */
  place({ queues, features, interrupt }: Activation): Vring[] {
    const isPacked = hasFeature(features, VIRTIO_F_RING_PACKED);
    const error = this.#watchErrors();
    return queues
      .filter(({ index }) => this.#profile.isServed(index))
      .map((queue) => {
        const ring = this.#profile.ringOf(queue.index, features);
        const [descriptorTable, availRing, usedRing] = this.#place(queue, isPacked);
        const { size, kick } = queue;
        return {
          index: ring,
          size,
          descriptorTable,
          availRing,
          usedRing,
          hasIova: this.#iommu !== undefined,
          kick,
          call: interrupt,
          error,
          resume: () => (isPacked ? this.#packedBases.get(ring) : this.#usedIndex(queue)),
          notify: () => queue.notify(),
        };
      });
  }

  #place(queue: ReadyQueue, isPacked: boolean): [number, number, number] {
    const places = partsOf(queue, isPacked).map(([what, address, length]) => {
      if (this.#iommu !== undefined) return address;
      const host = this.#ram.hostAddress(address, length);
      if (host !== undefined) return host;
      const where = `${length} bytes at 0x${address.toString(16)}`;
      throw new RangeError(`queue ${queue.index}: ${what} (${where}) is not in RAM`);
    });
    return places as [number, number, number];
  }

  #watchErrors(): OwnedFd {
    if (this.#errors !== undefined) return this.#errors.fd;
    const fd = createEventFd();
    const notifier = new Notifier(fd);
    const watch = watchReadable(fd.fd, () => {
      notifier.drain();
      this.#onBroken(new PeerError('the back end found a broken virtqueue'));
    });
    this.#errors = { fd, watch };
    return fd;
  }

  /** Nobody serves the rings any more. Idempotent. */
  close(): void {
    this.#errors?.watch.close();
    this.#errors?.fd.close();
    this.#errors = undefined;
    this.#packedBases.clear();
  }

  /** Where a fresh back end begins. */
  startBase(vring: Vring, features: bigint): number {
    if (!hasFeature(features, VIRTIO_F_RING_PACKED)) return 0;
    this.#packedBases.set(vring.index, PACKED_START_BASE);
    return PACKED_START_BASE;
  }

  /** Where a back end stopped, which another one gets that goes on. */
  note(rings: readonly { readonly index: number; readonly base: number }[]): void {
    for (const { index, base } of rings) this.#packedBases.set(index, base);
  }

  /** Where no in-flight region is kept, what the back end had taken and not used is taken again, as with QEMU. */
  #usedIndex({ index, usedRing }: ReadyQueue): number | undefined {
    const { memory } = this.#ram;
    const guestAddress = this.#guestAddress(usedRing + USED_INDEX);
    if (guestAddress !== undefined && memory.locate(guestAddress, USED_INDEX_BYTES)) {
      return memory.view.getUint16(memory.offset, true);
    }
    const where = `0x${usedRing.toString(16)}`;
    this.#onBroken(new RangeError(`queue ${index}: its used ring at ${where} is not there any more`));
    return undefined;
  }

  /** Where the guest has a 16-bit field of a ring. Behind an IOMMU it lies in one page, since rings are aligned. */
  #guestAddress(address: number): number | undefined {
    if (this.#iommu === undefined) return address;
    const mapping = this.#iommu.find(address);
    if (mapping === undefined) return undefined;
    const userAddress = mapping.userAddress + (address - mapping.iova);
    const found = this.#ram.regions.find(({ region }) => {
      const offset = userAddress - region.userAddress;
      return offset >= 0 && offset < region.size;
    });
    return found && found.region.guestAddress + (userAddress - found.region.userAddress);
  }
}
