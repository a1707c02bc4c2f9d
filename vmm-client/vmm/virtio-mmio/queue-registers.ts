/** What a driver has written of one queue. Source: VIRTIO 1.3, 4.2.3.2 Virtqueue Configuration. */

import { VIRTIO_MMIO } from '../../../protocol/virtio/mmio.ts';
import { VIRTQ_AVAIL_ALIGN, VIRTQ_DESC_ALIGN, VIRTQ_USED_ALIGN } from '../../../protocol/virtio/split-ring.ts';

const HALF = 0x1_0000_0000;

/** A 64-bit address in two registers. */
class AddressRegisters {
  low = 0;
  high = 0;

  /** Not exact above 2^53, where no RAM is. */
  get value(): number {
    return this.high * HALF + this.low;
  }
}

export class QueueRegisters {
  readonly index: number;
  /** Entries. */
  readonly maxSize: number;
  /** Entries; 0 before the driver said. */
  size = 0;
  ready = false;
  readonly #descriptorTable = new AddressRegisters();
  readonly #availRing = new AddressRegisters();
  readonly #usedRing = new AddressRegisters();

  constructor(index: number, maxSize: number) {
    this.index = index;
    this.maxSize = maxSize;
  }

  get descriptorTable(): number {
    return this.#descriptorTable.value;
  }

  get availRing(): number {
    return this.#availRing.value;
  }

  get usedRing(): number {
    return this.#usedRing.value;
  }

  /** Writes a register of the set-up. Returns false where there is none, or the queue cannot be of that size. */
  write(register: number, value: number): boolean {
    switch (register) {
      case VIRTIO_MMIO.queue_num:
        if (value === 0 || value > this.maxSize || (value & (value - 1)) !== 0) return false;
        this.size = value;
        return true;
      case VIRTIO_MMIO.queue_desc_low:
        this.#descriptorTable.low = value;
        return true;
      case VIRTIO_MMIO.queue_desc_high:
        this.#descriptorTable.high = value;
        return true;
      case VIRTIO_MMIO.queue_driver_low:
        this.#availRing.low = value;
        return true;
      case VIRTIO_MMIO.queue_driver_high:
        this.#availRing.high = value;
        return true;
      case VIRTIO_MMIO.queue_device_low:
        this.#usedRing.low = value;
        return true;
      case VIRTIO_MMIO.queue_device_high:
        this.#usedRing.high = value;
        return true;
      default:
        return false;
    }
  }

  /** @throws RangeError - the driver made a queue ready that none can be */
  check(): void {
    if (this.size === 0) throw new RangeError(`queue ${this.index} is ready without a size`);
    const parts = [
      ['descriptor table', this.descriptorTable, VIRTQ_DESC_ALIGN],
      ['available ring', this.availRing, VIRTQ_AVAIL_ALIGN],
      ['used ring', this.usedRing, VIRTQ_USED_ALIGN],
    ] as const;
    for (const [what, address, alignment] of parts) {
      if (address > Number.MAX_SAFE_INTEGER) throw new RangeError(`queue ${this.index}: ${what} above 2^53 - 1`);
      if (address % alignment !== 0) {
        throw new RangeError(
          `queue ${this.index}: ${what} at 0x${address.toString(16)}, a multiple of ${alignment} is needed`,
        );
      }
    }
  }
}
