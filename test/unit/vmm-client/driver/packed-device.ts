/** The device's side of a packed ring, slot by slot, from the layout in the standard. */

import type { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import type { Buffer, DeviceRing, RingDevice, Taken } from './ring-device.ts';

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;
const AVAIL = 0x80;
const USED = 0x8000;

/** Slot and wrap counter. */
interface Place {
  slot: number;
  wrap: boolean;
}

export class PackedDevice implements RingDevice {
  readonly #memory: SharedMemory;
  readonly #view: DataView;
  readonly #ring: DeviceRing;
  readonly available: Place = { slot: 0, wrap: true };
  readonly used: Place = { slot: 0, wrap: true };

  constructor(memory: SharedMemory, ring: DeviceRing) {
    this.#memory = memory;
    this.#ring = ring;
    this.#view = new DataView(memory.bytes.buffer);
  }

  get usedBase(): number {
    const used = this.used.slot + (this.used.wrap ? 0x8000 : 0);
    return used + used * 0x10000;
  }

  /** Fields of a descriptor at an offset. */
  read(at: number): { address: number; length: number; id: number; flags: number } {
    return {
      address: Number(this.#view.getBigUint64(at, true)),
      length: this.#view.getUint32(at + 8, true),
      id: this.#view.getUint16(at + 12, true),
      flags: this.#view.getUint16(at + 14, true),
    };
  }

  slot(slot: number): { address: number; length: number; id: number; flags: number } {
    return this.read(this.#ring.descriptorArea + 16 * slot);
  }

  /** Writes a used descriptor to any slot. */
  write(slot: number, id: number, length: number, flags: number): void {
    const at = this.#ring.descriptorArea + 16 * slot;
    // What a device leaves in the address is nobody's business.
    this.#view.setBigUint64(at, 0xdead_dead_dead_deadn, true);
    this.#view.setUint32(at + 8, length, true);
    this.#view.setUint16(at + 12, id, true);
    this.#view.setUint16(at + 14, flags, true);
  }

  #forward(place: Place, slots: number): void {
    place.slot += slots;
    if (place.slot < this.#ring.size) return;
    place.slot -= this.#ring.size;
    place.wrap = !place.wrap;
  }

  take(): Taken | undefined {
    const isAvailable = () => {
      const { flags } = this.slot(this.available.slot);
      return ((flags & AVAIL) !== 0) === this.available.wrap && ((flags & USED) !== 0) !== this.available.wrap;
    };
    if (!isAvailable()) return undefined;
    const buffers: Buffer[] = [];
    for (let slots = 1; slots <= this.#ring.size; slots++) {
      if (!isAvailable()) throw new Error(`slot ${this.available.slot} within a chain is not available`);
      const { address, length, id, flags } = this.slot(this.available.slot);
      this.#forward(this.available, 1);
      if ((flags & INDIRECT) === 0) {
        buffers.push({ address, length, writable: (flags & WRITE) !== 0 });
      } else {
        if ((flags & NEXT) !== 0 || slots > 1) throw new Error('a table in a chain');
        buffers.push(...this.#readTable(address, length));
      }
      if ((flags & NEXT) === 0) return { id, slots, buffers };
    }
    throw new Error('a chain without an end');
  }

  #readTable(address: number, length: number): Buffer[] {
    if (length === 0 || length % 16 !== 0) throw new Error(`a table of ${length} bytes`);
    return Array.from({ length: length / 16 }, (_, i) => {
      const entry = this.read(address - this.#memory.guestAddress + 16 * i);
      if ((entry.flags & ~WRITE) !== 0) throw new Error(`flags ${entry.flags} in a table`);
      return { address: entry.address, length: entry.length, writable: (entry.flags & WRITE) !== 0 };
    });
  }

  complete(chains: readonly Taken[], length: number): boolean {
    const slots = chains.reduce((sum, chain) => sum + chain.slots, 0);
    return this.use(chains.at(-1)!.id, slots, length);
  }

  /** Uses so many slots by one descriptor. Returns whether the driver wants to be told. */
  use(id: number, slots: number, length: number): boolean {
    const { slot, wrap } = this.used;
    this.write(slot, id, length, (wrap ? AVAIL | USED : 0) | (length > 0 ? WRITE : 0));
    this.#forward(this.used, slots);
    return this.#isAskedFor(slot, wrap, slots);
  }

  #isAskedFor(slot: number, wrap: boolean, slots: number): boolean {
    const event = this.#view.getUint16(this.#ring.driverArea, true);
    const flags = this.#view.getUint16(this.#ring.driverArea + 2, true);
    if (flags !== 2) return flags === 0;
    const place: Place = { slot, wrap };
    for (let i = 0; i < slots; i++) {
      if ((event & 0x7fff) === place.slot && ((event & 0x8000) !== 0) === place.wrap) return true;
      this.#forward(place, 1);
    }
    return false;
  }

  /** Says when it wants to be kicked: flags, and slot and wrap counter. */
  ask(flags: number, slot = 0, wrap = false): void {
    this.#view.setUint16(this.#ring.deviceArea, slot + (wrap ? 0x8000 : 0), true);
    this.#view.setUint16(this.#ring.deviceArea + 2, flags, true);
  }

  askAlways(): void {
    this.ask(0);
  }

  askNever(): void {
    this.ask(1);
  }

  askHere(): void {
    this.ask(2, this.available.slot, this.available.wrap);
  }

  /** What the driver says of its wishes: flags, slot, wrap counter. */
  wishes(): [flags: number, slot: number, wrap: boolean] {
    const event = this.#view.getUint16(this.#ring.driverArea, true);
    return [this.#view.getUint16(this.#ring.driverArea + 2, true), event & 0x7fff, (event & 0x8000) !== 0];
  }
}
