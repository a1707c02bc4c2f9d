/**
 * In-flight tracking of one virtqueue, in memory that outlives the daemon (the front end keeps its descriptor). Every
 * store is made so that a kill between any two of them leaves a state that `recover` reads rightly; stores of one process
 * reach memory in program order as far as another process can tell after its death. They go through typed arrays: a store
 * to an element is one instruction, which a DataView does not promise. Source: vhost-user, Inflight I/O tracking.
 */

import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import type { Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import { PackedInflight } from './inflight-packed.ts';
import { SplitInflight } from './inflight-split.ts';

export interface InflightTracker {
  /**
   * Reads the region. When it was used before, the queue goes on where it says, and what is returned are the tokens in
   * flight, in the order in which they were fetched. A region that is new is initialized from where the queue stands.
   * @throws RingError - what the region says contradicts itself
   */
  recover(queue: Virtqueue): number[] | undefined;
  /** Takes a token that `recover` returned and walks its chain; once more after `queue.release`. */
  retake(token: number, chain: DescriptorChain): void;
  /** Gives the last of the tokens that `recover` returned back to the ring: none was taken. Nothing is in flight. */
  giveBack(queue: Virtqueue, tokens: readonly number[]): void;
  /** Notes a chain that was taken from the ring. */
  fetch(chain: DescriptorChain): void;
  /** Notes that a chain went back to the ring. */
  unfetch(token: number): void;
  /** Notes a chain whose used entry is staged, before another one is taken. */
  complete(token: number): void;
  /** Notes that what is staged was published. */
  commit(): void;
  /** The front end was told where the ring stands, and nothing is in flight: the base that it says next is what holds. */
  rest(): void;
}

/** @param region of this queue, at least inflightQueueBytes(size, packed) long; where rings are packed, a multiple of 8 */
export function createInflightTracker(packed: boolean, region: ArrayBuffer, size: number): InflightTracker {
  return packed ? new PackedInflight(region, size) : new SplitInflight(region, size);
}
