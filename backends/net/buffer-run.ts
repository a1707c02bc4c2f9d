/**
 * Receive buffers taken from a ring for one packet: consecutive chains and their segments. `giveBack` returns those that
 * were not pushed, in the order in which the ring wants them.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import type { Vring } from '../core/vring.ts';

export class BufferRun {
  chains = 0;
  segments = 0;
  /** Bytes that all chains hold. */
  bytes = 0;
  /** Host address, guest address and length in bytes of each segment. */
  readonly address: Float64Array;
  readonly guest: Float64Array;
  readonly length: Uint32Array;
  readonly #limit: number;
  readonly #head: Uint16Array;
  readonly #capacity: Float64Array;
  /** Chains that were pushed to the driver. */
  #pushed = 0;

  /** @param limit segments, and chains, that it can hold */
  constructor(limit: number) {
    this.#limit = limit;
    this.address = new Float64Array(limit);
    this.guest = new Float64Array(limit);
    this.length = new Uint32Array(limit);
    this.#head = new Uint16Array(limit);
    this.#capacity = new Float64Array(limit);
  }

  clear(): void {
    this.chains = 0;
    this.segments = 0;
    this.bytes = 0;
    this.#pushed = 0;
  }

  /** No further chain may be added. */
  get isFull(): boolean {
    return this.segments === this.#limit;
  }

  get firstChainBytes(): number {
    return this.#capacity[0] as number;
  }

  /** Adds a chain of device-writable segments; as many of them as there is room for. */
  add(chain: DescriptorChain): void {
    const count = Math.min(chain.segments, this.#limit - this.segments);
    let bytes = 0;
    for (let i = 0; i < count; i += 1) {
      const at = this.segments + i;
      const length = chain.length[i] as number;
      this.address[at] = chain.address[i] as number;
      this.guest[at] = chain.guest[i] as number;
      this.length[at] = length;
      bytes += length;
    }
    this.#head[this.chains] = chain.head;
    this.#capacity[this.chains] = bytes;
    this.chains += 1;
    this.segments += count;
    this.bytes += bytes;
  }

  /** How many chains hold the first `bytes` bytes. */
  chainsFor(bytes: number): number {
    let held = 0;
    let chains = 0;
    while (held < bytes && chains < this.chains) {
      held += this.#capacity[chains] as number;
      chains += 1;
    }
    return chains;
  }

  /** Returns the first `chains` chains to the driver, with `bytes` bytes in them. */
  push(vring: Vring, chains: number, bytes: number): void {
    let left = bytes;
    for (let i = 0; i < chains; i += 1) {
      const used = Math.min(left, this.#capacity[i] as number);
      vring.push(this.#head[i] as number, used);
      left -= used;
    }
    this.#pushed = chains;
  }

  /** Gives chains that were not pushed back to the ring. No chain was taken from it after them. */
  giveBack(vring: Vring): void {
    for (let i = this.chains - 1; i >= this.#pushed; i -= 1) vring.unpop(this.#head[i] as number);
    this.chains = this.#pushed;
  }

  /** Stores a little-endian u16 at byte `offset` of the run, which may lie across segments. */
  write16(memory: GuestMemory, offset: number, value: number): void {
    if ((this.length[0] as number) >= offset + 2 && memory.locate((this.guest[0] as number) + offset, 2)) {
      memory.view.setUint16(memory.offset, value, true);
      return;
    }
    this.#write8(memory, offset, value & 0xff);
    this.#write8(memory, offset + 1, value >> 8);
  }

  #write8(memory: GuestMemory, offset: number, value: number): void {
    let left = offset;
    for (let i = 0; i < this.segments; i += 1) {
      const length = this.length[i] as number;
      if (left < length) {
        memory.copyIn((this.guest[i] as number) + left, Uint8Array.of(value));
        return;
      }
      left -= length;
    }
  }

  /** Copies from the beginning of the run to `target`. */
  copyOut(memory: GuestMemory, target: Uint8Array): void {
    this.#eachPart(target, (guest, part) => memory.copyOut(guest, part));
  }

  /** Copies `source` to the beginning of the run. */
  copyIn(memory: GuestMemory, source: Uint8Array): void {
    this.#eachPart(source, (guest, part) => memory.copyIn(guest, part));
  }

  #eachPart(bytes: Uint8Array, copy: (guest: number, part: Uint8Array) => void): void {
    let at = 0;
    for (let i = 0; i < this.segments && at < bytes.length; i += 1) {
      const step = Math.min(this.length[i] as number, bytes.length - at);
      copy(this.guest[i] as number, bytes.subarray(at, at + step));
      at += step;
    }
  }
}
