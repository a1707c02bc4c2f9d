/**
 * Where a guest's port and memory accesses go that leave KVM_RUN: one bus of ports, one of addresses, each a sorted list of
 * ranges with a device behind. Devices live on the main thread; an answer may take its time (a promise), the vCPU that
 * asked waits for it. What nobody answers reads as all ones and writes into nothing, as on real buses.
 */

/** A device on a bus. Offsets are bytes from the start of its range; sizes 1, 2 or 4; values are unsigned. */
export interface BusDevice {
  read(offset: number, size: number): number | Promise<number>;
  write(offset: number, size: number, value: number): void | Promise<void>;
}

interface Entry {
  readonly start: number;
  readonly end: number;
  readonly device: BusDevice;
}

export class Bus {
  readonly #entries: Entry[] = [];

  /** Puts `device` at `[start, start + length)`. @throws RangeError - something is there already (our mistake) */
  add(start: number, length: number, device: BusDevice): void {
    const end = start + length;
    if (this.#entries.some((entry) => start < entry.end && entry.start < end)) {
      throw new RangeError(`two devices at 0x${start.toString(16)}`);
    }
    this.#entries.push({ start, end, device });
    this.#entries.sort((a, b) => a.start - b.start);
  }

  /** Reads `size` bytes. An access that leaves the device's range is nobody's. */
  read(address: number, size: number): number | Promise<number> {
    const entry = this.#find(address, size);
    return entry === undefined ? 2 ** (8 * size) - 1 : entry.device.read(address - entry.start, size);
  }

  write(address: number, size: number, value: number): void | Promise<void> {
    const entry = this.#find(address, size);
    return entry?.device.write(address - entry.start, size, value);
  }

  #find(address: number, size: number): Entry | undefined {
    return this.#entries.find(({ start, end }) => address >= start && address + size <= end);
  }
}
