/**
 * Device side of one virtqueue, whatever its layout: chains are taken with `pop`, used ones staged with `push`, made
 * visible together with `publish`, and then the driver is told if it wants to be. Two layouts: `split-queue.ts` and
 * `packed-queue.ts`. Source: VIRTIO 1.3, 2.7 Split Virtqueues, 2.8 Packed Virtqueues.
 *
 * A chain in flight is named by a token below `size`, which `pop` leaves in `chain.head`: the head's index in a split
 * ring, a number of our own in a packed one (whose buffer IDs the driver chooses as it likes).
 */

import type { DescriptorChain } from './chain.ts';

/** Where a ring lies, in the addresses of SET_VRING_ADDR. A packed ring's areas have the split ring's names. */
export interface RingAddresses {
  /** Descriptor table; descriptor ring. */
  readonly descriptor: number;
  /** Available ring; driver event suppression. */
  readonly available: number;
  /** Used ring; device event suppression. */
  readonly used: number;
}

export interface VirtqueueFeatures {
  readonly packed: boolean;
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
}

export interface VirtqueueOptions extends VirtqueueFeatures {
  /** Entries. */
  readonly size: number;
  readonly addresses: RingAddresses;
}

/** A ring cannot be used as described: size, alignment or place. */
export class RingError extends Error {
  override readonly name = 'RingError';
  readonly code = 'RING_SETUP';
}

/**
 * Finds the memory of a ring: a view of `length` bytes at a ring address, host address a multiple of `align`. `writable` says
 * whether the device writes there, which an IOMMU may forbid.
 * @throws RingError, MemoryError - it is not there, not in one piece, or not aligned
 */
export type RingPlacer = (
  address: number,
  length: number,
  align: number,
  what: string,
  writable: boolean,
) => ArrayBuffer;

export interface Virtqueue {
  readonly size: number;
  /** Chains taken and not pushed back. */
  readonly inFlight: number;
  /** Where the queue stands, as GET_VRING_BASE says it and SET_VRING_BASE takes it. */
  readonly base: number;
  /** Whether the queue stands elsewhere than at its beginning. */
  readonly hasPast: boolean;
  /** Place of the next chain to take, for `enableKicks`: a number of at least 0 that only the queue understands. */
  readonly position: number;

  /** Goes on at a base. Nothing is in flight. @throws RingError - there is no such place in the ring */
  seek(base: number): void;

  /**
   * Takes the next chain and walks it. Returns 1 with the chain filled, 0 when there is none, or a negative queue fault.
   * A chain fault is in `chain.fault`, and the chain is taken: push it back.
   */
  pop(chain: DescriptorChain): number;

  /** Gives the chain that was taken last back to the ring, as if it had not been taken. Not for retaken ones. */
  untake(token: number): void;

  /** Forgets that a chain is in flight, without a used entry: for retaken ones. */
  release(token: number): void;

  /** Whether the driver made about `count` chains available that nobody took: exact for 1, an estimate above. */
  offers(count: number): boolean;

  /** Stages a used entry: `length` is how many bytes were written to the chain's writable buffers. */
  push(token: number, length: number): void;

  /** Makes staged entries visible to the driver. */
  publish(): void;

  /** Whether the driver wants to be told of what was published since the last call that returned true. */
  needsNotification(): boolean;

  /** Asks the driver not to kick. */
  disableKicks(): void;

  /**
   * Asks for a kick with the chain after `position` (where the queue stands, unless given). Returns true when it is there
   * already: look instead of sleeping.
   */
  enableKicks(position?: number): boolean;
}
