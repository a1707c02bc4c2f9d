/** What a driver has written of one queue. Source: VIRTIO 1.3, 4.2.3.2 Virtqueue Configuration, 2.7, 2.8. */

import { VIRTIO_MMIO } from '../../../protocol/virtio/mmio.ts';
import { VIRTQ_EVENT_SUPPRESS_ALIGN } from '../../../protocol/virtio/packed-ring.ts';
import { VIRTQ_AVAIL_ALIGN, VIRTQ_DESC_ALIGN, VIRTQ_USED_ALIGN } from '../../../protocol/virtio/split-ring.ts';
import { VmError } from '../errors.ts';
import { bigintOf, fieldsOf, flagOf, integerOf } from '../state/codec.ts';

const HALF = 0x1_0000_0000;

/** A 64-bit address in two registers. */
class AddressRegisters {
  low = 0;
  high = 0;

  /** Not exact above 2^53, where no RAM is. */
  get value(): number {
    return this.high * HALF + this.low;
  }

  get exact(): bigint {
    return (BigInt(this.high) << 32n) | BigInt(this.low);
  }

  set exact(value: bigint) {
    this.low = Number(value & 0xffff_ffffn);
    this.high = Number(value >> 32n);
  }
}

/** The registers as plain data. */
export interface QueueState {
  /** Entries. */
  readonly maxSize: number;
  readonly size: number;
  readonly ready: boolean;
  readonly descriptorTable: bigint;
  readonly availRing: bigint;
  readonly usedRing: bigint;
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

  /** The descriptor ring, where rings are packed. */
  get descriptorTable(): number {
    return this.#descriptorTable.value;
  }

  /** Driver event suppression, where rings are packed. */
  get availRing(): number {
    return this.#availRing.value;
  }

  /** Device event suppression, where rings are packed. */
  get usedRing(): number {
    return this.#usedRing.value;
  }

  /** Writes a register of the set-up. Returns false where there is none, or the queue cannot be of that size. */
  write(register: number, value: number, isPacked: boolean): boolean {
    switch (register) {
      case VIRTIO_MMIO.queue_num:
        if (value === 0 || !this.#canHave(value, isPacked)) return false;
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

  /** A packed queue can be of any size. */
  #canHave(size: number, isPacked: boolean): boolean {
    return size <= this.maxSize && (isPacked || (size & (size - 1)) === 0);
  }

  /** @throws RangeError - the driver made a queue ready that none can be */
  check(isPacked: boolean): void {
    if (this.size === 0) throw new RangeError(`queue ${this.index} is ready without a size`);
    const parts = isPacked
      ? ([
          ['descriptor ring', this.descriptorTable, VIRTQ_DESC_ALIGN],
          ['driver event suppression', this.availRing, VIRTQ_EVENT_SUPPRESS_ALIGN],
          ['device event suppression', this.usedRing, VIRTQ_EVENT_SUPPRESS_ALIGN],
        ] as const)
      : ([
          ['descriptor table', this.descriptorTable, VIRTQ_DESC_ALIGN],
          ['available ring', this.availRing, VIRTQ_AVAIL_ALIGN],
          ['used ring', this.usedRing, VIRTQ_USED_ALIGN],
        ] as const);
    for (const [what, address, alignment] of parts) {
      if (address > Number.MAX_SAFE_INTEGER) throw new RangeError(`queue ${this.index}: ${what} above 2^53 - 1`);
      if (address % alignment !== 0) {
        throw new RangeError(
          `queue ${this.index}: ${what} at 0x${address.toString(16)}, a multiple of ${alignment} is needed`,
        );
      }
    }
  }

  save(): QueueState {
    const { maxSize, size, ready } = this;
    const [descriptorTable, availRing] = [this.#descriptorTable.exact, this.#availRing.exact];
    return { maxSize, size, ready, descriptorTable, availRing, usedRing: this.#usedRing.exact };
  }

  /** Takes over what `save` returned, elsewhere. @throws VmError - this is something else, or another queue */
  load(state: unknown, isPacked: boolean, what: string): void {
    const { maxSize, size, ready, descriptorTable, availRing, usedRing } = fieldsOf(state, what);
    if (maxSize !== this.maxSize) {
      const entries = integerOf(maxSize, `${what}: maxSize`);
      throw new VmError(`${what}: it had up to ${entries} entries, it has up to ${this.maxSize} here`);
    }
    const wanted = integerOf(size, `${what}: size`, { maximum: this.maxSize });
    if (!this.#canHave(wanted, isPacked)) throw new VmError(`${what}: size: ${wanted} is not a power of two`);
    this.size = wanted;
    this.ready = flagOf(ready, `${what}: ready`);
    this.#descriptorTable.exact = bigintOf(descriptorTable, `${what}: descriptorTable`);
    this.#availRing.exact = bigintOf(availRing, `${what}: availRing`);
    this.#usedRing.exact = bigintOf(usedRing, `${what}: usedRing`);
  }
}
