/** The device's side of a split ring, entry by entry, from the layout in the standard. */

import type { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import type { Buffer, DeviceRing, RingDevice, Taken } from './ring-device.ts';

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

export class SplitDevice implements RingDevice {
  readonly #memory: SharedMemory;
  readonly #view: DataView;
  readonly #ring: DeviceRing;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  #available: number;
  #used: number;

  constructor(memory: SharedMemory, ring: DeviceRing, base: number, eventIdx: boolean, inOrder: boolean) {
    this.#memory = memory;
    this.#ring = ring;
    this.#view = new DataView(memory.bytes.buffer);
    this.#eventIdx = eventIdx;
    this.#inOrder = inOrder;
    this.#available = base;
    this.#used = base;
  }

  get usedBase(): number {
    return this.#used;
  }

  take(): Taken | undefined {
    const { size, descriptorArea, driverArea } = this.#ring;
    if (this.#view.getUint16(driverArea + 2, true) === this.#available) return undefined;
    const id = this.#view.getUint16(driverArea + 4 + 2 * (this.#available % size), true);
    this.#available = (this.#available + 1) & 0xffff;
    const head = this.#read(descriptorArea + 16 * id);
    if ((head.flags & INDIRECT) === 0) return { id, ...this.#walk(descriptorArea, id, size) };
    if (head.flags !== INDIRECT) throw new Error(`flags ${head.flags} of a table`);
    const table = head.address - this.#memory.guestAddress;
    return { id, slots: 1, buffers: this.#walk(table, 0, head.length / 16).buffers };
  }

  #walk(table: number, first: number, size: number): { slots: number; buffers: Buffer[] } {
    const buffers: Buffer[] = [];
    for (let at = first; buffers.length < size; ) {
      const { address, length, flags, next } = this.#read(table + 16 * at);
      buffers.push({ address, length, writable: (flags & WRITE) !== 0 });
      if ((flags & NEXT) === 0) return { slots: buffers.length, buffers };
      if (this.#inOrder && next !== (at + 1) % size) throw new Error(`descriptor ${next} follows ${at}`);
      at = next;
    }
    throw new Error('a chain without an end');
  }

  #read(at: number): { address: number; length: number; flags: number; next: number } {
    return {
      address: Number(this.#view.getBigUint64(at, true)),
      length: this.#view.getUint32(at + 8, true),
      flags: this.#view.getUint16(at + 12, true),
      next: this.#view.getUint16(at + 14, true),
    };
  }

  complete(chains: readonly Taken[], length: number): boolean {
    const { size, driverArea, deviceArea } = this.#ring;
    const before = this.#used;
    this.#view.setUint32(deviceArea + 4 + 8 * (before % size), chains.at(-1)!.id, true);
    this.#view.setUint32(deviceArea + 8 + 8 * (before % size), length, true);
    this.#used = (before + chains.length) & 0xffff;
    this.#view.setUint16(deviceArea + 2, this.#used, true);
    if (!this.#eventIdx) return (this.#view.getUint16(driverArea, true) & 1) === 0;
    const event = this.#view.getUint16(driverArea + 4 + 2 * size, true);
    return chains.some((_, i) => ((before + i) & 0xffff) === event);
  }

  askAlways(): void {
    // With EVENT_IDX there is no such thing.
    if (this.#eventIdx) this.askHere();
    else this.#view.setUint16(this.#ring.deviceArea, 0, true);
  }

  askNever(): void {
    if (this.#eventIdx) this.#ask(this.#available - 1);
    else this.#view.setUint16(this.#ring.deviceArea, 1, true);
  }

  askHere(): void {
    if (this.#eventIdx) this.#ask(this.#available);
    else this.askAlways();
  }

  #ask(event: number): void {
    this.#view.setUint16(this.#ring.deviceArea + 4 + 8 * this.#ring.size, event, true);
  }
}
