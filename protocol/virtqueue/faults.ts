/**
 * What a driver can do wrong with a ring, as codes for the hot path and sentences for people. Two kinds, by what can
 * still be done for the driver:
 *
 * - a chain fault concerns one chain: the chain goes back to the driver and the queue goes on. After a soft one
 *   (unmapped buffer, wrong order) the chain was still walked to its end, so that a status can be written.
 * - a queue fault leaves no head to give back: the queue is broken until it is reset.
 */

export const NO_FAULT = 0;

// Soft chain faults.
export const FAULT_UNMAPPED = 1;
export const FAULT_ORDER = 2;
/** Codes up to this one leave the chain walked to its end. */
export const LAST_SOFT_FAULT = FAULT_ORDER;

// Hard chain faults.
export const FAULT_CHAIN_TOO_LONG = 3;
export const FAULT_NEXT_OUT_OF_RANGE = 4;
export const FAULT_NESTED_INDIRECT = 5;
export const FAULT_INDIRECT_NOT_NEGOTIATED = 6;
export const FAULT_INDIRECT_AND_NEXT = 7;
export const FAULT_INDIRECT_LENGTH = 8;
export const FAULT_INDIRECT_UNMAPPED = 9;
export const FAULT_TOO_MANY_BYTES = 10;
/** No fault of the driver's: the chain can be walked when the front end has sent translations. */
export const FAULT_TRANSLATION_MISSING = 11;

// Queue faults: negative, so that `pop` can return them.
export const FAULT_AVAIL_INDEX = -1;
export const FAULT_HEAD_OUT_OF_RANGE = -2;
export const FAULT_HEAD_IN_FLIGHT = -3;
export const FAULT_RING_OVERFULL = -4;
export const FAULT_CHAIN_UNFINISHED = -5;

const sentences: ReadonlyMap<number, string> = new Map([
  [FAULT_UNMAPPED, 'a buffer is outside of guest memory'],
  [FAULT_ORDER, 'a device-readable buffer follows a device-writable one'],
  [FAULT_CHAIN_TOO_LONG, 'the descriptor chain is longer than the limit or loops'],
  [FAULT_NEXT_OUT_OF_RANGE, 'a next index is beyond the descriptor table'],
  [FAULT_NESTED_INDIRECT, 'an indirect table contains an indirect descriptor'],
  [FAULT_INDIRECT_NOT_NEGOTIATED, 'an indirect descriptor without VIRTIO_F_INDIRECT_DESC'],
  [FAULT_INDIRECT_AND_NEXT, 'a descriptor has both INDIRECT and NEXT'],
  [FAULT_INDIRECT_LENGTH, 'the length of an indirect table is 0 or not a multiple of 16'],
  [FAULT_INDIRECT_UNMAPPED, 'an indirect table is outside of guest memory'],
  [FAULT_TOO_MANY_BYTES, 'the buffers of a chain are 2^32 bytes or more'],
  [FAULT_TRANSLATION_MISSING, 'an address is not translated yet'],
  [FAULT_AVAIL_INDEX, 'the available index jumped by more than the queue size'],
  [FAULT_HEAD_OUT_OF_RANGE, 'a head index is beyond the descriptor table'],
  [FAULT_HEAD_IN_FLIGHT, 'a head was made available again while it is in flight'],
  [FAULT_RING_OVERFULL, 'more descriptors are available than the ring has room for'],
  [FAULT_CHAIN_UNFINISHED, 'a descriptor chain goes on in a descriptor that is not available'],
]);

/** The sentence of a fault code. */
export function describeFault(code: number): string {
  return sentences.get(code) ?? `fault ${code}`;
}
