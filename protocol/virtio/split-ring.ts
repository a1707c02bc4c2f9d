/**
 * Layout of split virtqueues. Source: VIRTIO 1.3, 2.7 Split Virtqueues; linux/virtio_ring.h.
 *
 *     descriptor (16 bytes): addr u64 @0, len u32 @8, flags u16 @12, next u16 @14      table aligned to 16
 *     avail: flags u16 @0, idx u16 @2, ring[size] u16 @4, used_event u16 @4+2*size      aligned to 2
 *     used:  flags u16 @0, idx u16 @2, ring[size] {id u32, len u32} @4, avail_event u16 @4+8*size   aligned to 4
 */

export const VIRTQ_DESC_F_NEXT = 1;
export const VIRTQ_DESC_F_WRITE = 2;
export const VIRTQ_DESC_F_INDIRECT = 4;
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
export const VIRTQ_USED_F_NO_NOTIFY = 1;

export const VIRTQ_DESC_BYTES = 16;
export const VIRTQ_DESC_ALIGN = 16;
export const VIRTQ_AVAIL_ALIGN = 2;
export const VIRTQ_USED_ALIGN = 4;
/** Entries; a split queue's size is a power of two. */
export const VIRTQ_MAX_SIZE = 32768;

/** Bytes of the descriptor table of `size` entries. */
export function descriptorTableBytes(size: number): number {
  return VIRTQ_DESC_BYTES * size;
}

/** Bytes of the available ring, used_event included. */
export function availRingBytes(size: number): number {
  return 6 + 2 * size;
}

/** Bytes of the used ring, avail_event included. */
export function usedRingBytes(size: number): number {
  return 6 + 8 * size;
}
