/**
 * Layout of packed virtqueues. Source: VIRTIO 1.3, 2.8 Packed Virtqueues; linux/virtio_ring.h.
 *
 *     descriptor (16 bytes): addr u64 @0, len u32 @8, id u16 @12, flags u16 @14          ring aligned to 16
 *     event suppression (4 bytes): off u15 and wrap u1 @0, flags u2 @2                   aligned to 4
 *
 * NEXT, WRITE and INDIRECT are those of split-ring.ts. A slot is available when AVAIL is the driver's wrap counter and
 * USED is not, and used when both are the device's wrap counter. Counters start at 1 and turn at the end of the ring.
 */

import { VIRTQ_DESC_BYTES } from './split-ring.ts';

export const VIRTQ_DESC_F_AVAIL = 0x0080;
export const VIRTQ_DESC_F_USED = 0x8000;

export const RING_EVENT_FLAGS_ENABLE = 0;
export const RING_EVENT_FLAGS_DISABLE = 1;
/** At one descriptor; only with EVENT_IDX. */
export const RING_EVENT_FLAGS_DESC = 2;

export const VIRTQ_EVENT_SUPPRESS_BYTES = 4;
export const VIRTQ_EVENT_SUPPRESS_ALIGN = 4;
/** Slots; any number up to this one. */
export const VIRTQ_PACKED_MAX_SIZE = 32768;

/**
 * Where a ring begins: both positions at 0, both wrap counters at 1. Source: vhost-user, Vring descriptor index for packed
 * virtqueues.
 *
 *     available position: bits 0 to 14, its wrap counter: bit 15, used position: bits 16 to 30, its wrap counter: bit 31
 */
export const PACKED_START_BASE = 0x8000_8000;

/** Bytes of the descriptor ring of `size` slots. */
export function packedRingBytes(size: number): number {
  return VIRTQ_DESC_BYTES * size;
}
