/**
 * Layout of the in-flight region: one queue region after the other, each padded to 64 bytes as every implementation does.
 * Source: vhost-user, Inflight I/O tracking.
 *
 *     split:  features u64 @0, version u16 @8, desc_num u16 @10, last_batch_head u16 @12, used_idx u16 @14,
 *             desc[desc_num] @16, each of 16 bytes: inflight u8 @0, padding[5], next u16 @6, counter u64 @8
 *     packed: features u64 @0, version u16 @8, desc_num u16 @10, free_head u16 @12, old_free_head u16 @14,
 *             used_idx u16 @16, old_used_idx u16 @18, used_wrap_counter u8 @20, old_used_wrap_counter u8 @21, padding,
 *             desc[desc_num] @32, each of 32 bytes: inflight u8 @0, padding, next u16 @2, last u16 @4, num u16 @6,
 *             counter u64 @8, id u16 @16, flags u16 @18, len u32 @20, addr u64 @24
 */

export const INFLIGHT_VERSION = 1;
export const INFLIGHT_HEADER_BYTES = 16;
export const INFLIGHT_DESC_BYTES = 16;
export const INFLIGHT_PACKED_HEADER_BYTES = 32;
export const INFLIGHT_PACKED_DESC_BYTES = 32;
const QUEUE_ALIGN = 64;

/** Bytes of one queue's region. */
export function inflightQueueBytes(queueSize: number, packed: boolean): number {
  const bytes = packed
    ? INFLIGHT_PACKED_HEADER_BYTES + INFLIGHT_PACKED_DESC_BYTES * queueSize
    : INFLIGHT_HEADER_BYTES + INFLIGHT_DESC_BYTES * queueSize;
  return Math.ceil(bytes / QUEUE_ALIGN) * QUEUE_ALIGN;
}
