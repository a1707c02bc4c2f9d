/**
 * Which I/O virtual addresses a ring and its chains in flight use. What the front end takes back must not be accessed any
 * more when we have said so; requests that use other addresses need not be waited for.
 */

import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import type { RingAddresses } from '../../protocol/virtqueue/virtqueue.ts';
import { ringAreas } from './ring-writes.ts';

export class IovaUse {
  /** Start and length of each area of the ring, one after the other. */
  readonly #ring: readonly number[];
  /** The same of the buffers of each chain in flight, by token; empty when it is not in flight. */
  readonly #buffers: number[][];
  #inFlight = 0;

  constructor(size: number, addresses: RingAddresses, packed: boolean) {
    this.#ring = ringAreas(size, addresses, packed);
    this.#buffers = Array.from({ length: size }, () => []);
  }

  /** A chain was taken. */
  take(chain: DescriptorChain): void {
    const buffers = this.#buffers[chain.head] as number[];
    this.#inFlight += 1;
    for (let i = 0; i < chain.segments; i += 1) buffers.push(chain.iova[i] as number, chain.length[i] as number);
  }

  /** A chain is done, or back in the ring. */
  end(token: number): void {
    this.#inFlight -= 1;
    (this.#buffers[token] as number[]).length = 0;
  }

  /** Whether anything in use lies in [start, end). */
  overlaps(start: number, end: number): boolean {
    if (lieIn(this.#ring, start, end)) return true;
    return this.#inFlight > 0 && this.#buffers.some((buffers) => lieIn(buffers, start, end));
  }
}

function lieIn(ranges: readonly number[], start: number, end: number): boolean {
  for (let i = 0; i < ranges.length; i += 2) {
    const at = ranges[i] as number;
    if (at < end && start < at + (ranges[i + 1] as number)) return true;
  }
  return false;
}
