/**
 * Where a device writes in a ring itself, in guest addresses: what has to be sent again when a guest is migrated. The
 * front end says it for the used ring (or the device area of a packed ring), because that may lie outside of the memory
 * table; the descriptor ring of a packed queue is always inside. Source: vhost-user, Migration.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { IOTLB_HIT, type Iotlb } from '../../protocol/memory/iotlb.ts';
import { packedRingBytes, VIRTQ_EVENT_SUPPRESS_BYTES } from '../../protocol/virtio/packed-ring.ts';
import { availRingBytes, descriptorTableBytes, usedRingBytes } from '../../protocol/virtio/split-ring.ts';
import type { RingAddresses } from '../../protocol/virtqueue/virtqueue.ts';
import type { RingSettings } from './placed-ring.ts';
import type { GuestRange } from './write-log.ts';

/** Guest ranges behind `length` bytes of I/O virtual addresses that are translated already. */
function translate(iotlb: Iotlb, address: number, length: number): GuestRange[] {
  const ranges: GuestRange[] = [];
  for (let done = 0; done < length && iotlb.lookup(address + done, true) === IOTLB_HIT; ) {
    const part = Math.min(length - done, iotlb.length);
    ranges.push({ address: iotlb.guest, length: part });
    done += part;
  }
  return ranges;
}

/** Address and length in bytes of each area of a ring, one after the other. */
export function ringAreas(size: number, { descriptor, available, used }: RingAddresses, packed: boolean): number[] {
  if (packed) {
    return [descriptor, packedRingBytes(size), available, VIRTQ_EVENT_SUPPRESS_BYTES, used, VIRTQ_EVENT_SUPPRESS_BYTES];
  }
  return [descriptor, descriptorTableBytes(size), available, availRingBytes(size), used, usedRingBytes(size)];
}

/** The ranges of a ring that was found; none when the front end does not want to know. */
export function ringWrites(
  memory: GuestMemory,
  iotlb: Iotlb | undefined,
  { size, addresses, usedLog }: RingSettings,
  packed: boolean,
): readonly GuestRange[] {
  if (usedLog === undefined || addresses === undefined) return [];
  const usedBytes = packed ? VIRTQ_EVENT_SUPPRESS_BYTES : usedRingBytes(size);
  const used = iotlb === undefined ? [{ address: usedLog, length: usedBytes }] : translate(iotlb, usedLog, usedBytes);
  if (!packed) return used;
  const bytes = packedRingBytes(size);
  if (iotlb !== undefined) return [...used, ...translate(iotlb, addresses.descriptor, bytes)];
  return [...used, { address: memory.fromUserAddress(addresses.descriptor, bytes, 'descriptor ring'), length: bytes }];
}
