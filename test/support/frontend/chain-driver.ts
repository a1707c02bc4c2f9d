/**
 * A correct driver of a ring of either layout: it keeps book of its free descriptors, and uses them in any order (by dice)
 * unless IN_ORDER binds it. In a packed ring it makes buffer IDs up.
 */

import type { Random } from '../random.ts';
import { RawPackedRing } from './raw-packed-ring.ts';
import { NEXT, type RawDescriptor, type RawVirtqueue, type UsedEntry } from './raw-virtqueue.ts';

export class ChainDriver {
  readonly ring: RawVirtqueue;
  readonly #random: Random;
  readonly #inOrder: boolean;
  /** Free descriptors of a split ring, in the order in which they will be used. */
  #free: number[];
  /** Descriptors of each chain that is available or in flight, by its ID. */
  readonly #held = new Map<number, readonly number[]>();

  constructor(ring: RawVirtqueue, random: Random, inOrder: boolean) {
    this.ring = ring;
    this.#random = random;
    this.#inOrder = inOrder;
    this.#free = Array.from({ length: ring.size }, (_, i) => i);
  }

  /** Free descriptors. */
  get room(): number {
    return this.ring instanceof RawPackedRing ? this.ring.free : this.#free.length;
  }

  /** Chains that the device has not returned. */
  get outstanding(): number {
    return this.#held.size;
  }

  /** Makes chains available together, without a kick. There is room. Returns their IDs. */
  offer(chains: readonly (readonly RawDescriptor[])[]): number[] {
    const { ring } = this;
    if (ring instanceof RawPackedRing) return chains.map((chain) => this.#place(ring, chain));
    const heads = chains.map((chain) => this.#link(chain));
    ring.publish(...heads);
    return heads;
  }

  #place(ring: RawPackedRing, chain: readonly RawDescriptor[]): number {
    let id = this.#random.below(0x1_0000);
    while (this.#held.has(id)) id = (id + 1) & 0xffff;
    ring.place(id, chain);
    this.#held.set(id, []);
    return id;
  }

  #link(chain: readonly RawDescriptor[]): number {
    const own = this.#free.splice(0, chain.length);
    chain.forEach((descriptor, i) => {
      const next = own[i + 1];
      const flags = (descriptor.flags ?? 0) | (next === undefined ? 0 : NEXT);
      this.ring.setDescriptor(own[i] as number, { ...descriptor, flags, next: next ?? 0 });
    });
    this.#held.set(own[0] as number, own);
    return own[0] as number;
  }

  /** Takes what the device has returned. @throws Error - a chain that is not in flight */
  harvest(): UsedEntry[] {
    const used = this.ring.harvest();
    for (const { id } of used) {
      const own = this.#held.get(id);
      if (own === undefined) throw new Error(`chain ${id} came back and is not in flight: ${this.ring.describe()}`);
      this.#held.delete(id);
      if (this.#inOrder || this.#random.oneIn(2)) this.#free.push(...own);
      else this.#free.unshift(...own);
    }
    return used;
  }

  /** Forgets all chains, as after a reset; the ring stands where it is told to. */
  reset(base: number): void {
    this.#held.clear();
    this.#free = Array.from({ length: this.ring.size }, (_, i) => i);
    this.ring.standAt(base);
  }
}
