/**
 * Layout of the in-flight region of split virtqueues: one queue region after the other, each padded to 64 bytes as every
 * implementation does. Source: vhost-user, Inflight I/O tracking.
 *
 *     queue region: features u64 @0, version u16 @8, desc_num u16 @10, last_batch_head u16 @12, used_idx u16 @14,
 *                   desc[desc_num] @16
 *     desc (16 bytes): inflight u8 @0, padding[5], next u16 @6, counter u64 @8
 */

export const INFLIGHT_VERSION = 1;
export const INFLIGHT_HEADER_BYTES = 16;
export const INFLIGHT_DESC_BYTES = 16;
const QUEUE_ALIGN = 64;

/** Bytes of one queue's region. */
export function inflightQueueBytes(queueSize: number): number {
  return Math.ceil((INFLIGHT_HEADER_BYTES + INFLIGHT_DESC_BYTES * queueSize) / QUEUE_ALIGN) * QUEUE_ALIGN;
}
