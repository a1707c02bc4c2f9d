/**
 * A guest without a processor: memory, rings and a driver of one virtio-mmio device. Its rings' kick descriptors are what
 * the ioeventfds would be, the call descriptor of its first ring is the interrupt.
 */

import { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { GuestRam } from './guest-ram.ts';
import { MmioDriver, type MmioTarget } from './mmio-driver.ts';
import { RawPackedRing } from './raw-packed-ring.ts';
import { RawRing } from './raw-ring.ts';
import type { RawVirtqueue } from './raw-virtqueue.ts';

export interface MmioGuestOptions {
  /** Entries of each ring; default one ring of 64. */
  readonly queueSizes?: readonly number[];
  /** Bytes of guest memory; default 4 MiB. */
  readonly ramBytes?: number;
  /** Packed rings instead of split ones, for a driver that accepts RING_PACKED. */
  readonly packed?: boolean;
  /** Where the memory is, for a driver that says I/O virtual addresses. Default: where the driver says it is. */
  readonly physicalAddress?: number;
}

export class MmioGuest {
  /** Above 4 GiB: the upper halves of addresses count. */
  readonly ram: GuestRam;
  readonly queues: readonly RawVirtqueue[];
  readonly dataStart: number;
  readonly registers = allocatePinned(4096);
  readonly #memory = new GuestMemory();
  readonly #options: MmioGuestOptions;
  #driver: MmioDriver | undefined;

  constructor(options: MmioGuestOptions = {}) {
    const { queueSizes = [64], ramBytes = 4 << 20, packed = false } = options;
    this.#options = options;
    this.ram = new GuestRam(ramBytes, 0x1_4000_0000);
    this.#memory.add(this.region, this.ram.fd);
    let at = 0x1000;
    this.queues = queueSizes.map((size, index) => {
      const ring = packed ? new RawPackedRing(this.ram, index, size, at) : new RawRing(this.ram, index, size, at);
      at = ring.end;
      return ring;
    });
    this.dataStart = at;
  }

  /** The same guest in other memory, of which it has nothing yet. Its driver knows what it knew. */
  twin(): MmioGuest {
    const twin = new MmioGuest(this.#options);
    for (const { index, seen } of this.queues) twin.ring(index).seen = seen;
    return twin;
  }

  /** All of them, where they are split rings. */
  get rings(): readonly RawRing[] {
    return this.queues.map(({ index }) => this.ring(index));
  }

  /** A split ring. */
  ring(index = 0): RawRing {
    const ring = this.queue(index);
    if (!(ring instanceof RawRing)) throw new Error('the rings of the guest are packed');
    return ring;
  }

  queue(index = 0): RawVirtqueue {
    const queue = this.queues[index];
    if (queue === undefined) throw new Error(`the guest has no queue ${index}`);
    return queue;
  }

  /** The guest's memory as back ends are told of it. */
  get region() {
    const { guestAddress: said, userAddress, length: size } = this.ram;
    return { guestAddress: this.#options.physicalAddress ?? said, userAddress, size, mmapOffset: 0 };
  }

  /** The guest's memory as a device gets it. */
  get deviceMemory() {
    const { ram, region } = this;
    return {
      memory: this.#memory,
      regions: [{ region, memfd: ram.fd }],
      hostAddress: (address: number, length: number): number | undefined => {
        const offset = address - region.guestAddress;
        return offset >= 0 && offset + length <= ram.length ? ram.user(offset) : undefined;
      },
    };
  }

  /** What a transport needs of the machine. */
  get wiring() {
    return {
      registers: this.registers,
      interrupt: this.queue().call,
      kicks: this.queues.map(({ kick }) => kick),
    };
  }

  /** Whom register writes go to. */
  plug(target: MmioTarget): MmioDriver {
    this.#driver = new MmioDriver(this.registers, target);
    return this.#driver;
  }

  get driver(): MmioDriver {
    if (this.#driver === undefined) throw new Error('no device is plugged');
    return this.#driver;
  }

  /** From reset to DRIVER_OK with empty rings; returns the status that came of it. */
  async start(features = 0n): Promise<number> {
    for (const queue of this.queues) {
      const start = queue.addresses().descriptor - this.ram.userAddress;
      this.ram.bytes.fill(0, start, queue.end);
      if (queue instanceof RawPackedRing) queue.forget();
      queue.seen = 0;
    }
    await this.driver.negotiate(features);
    for (const queue of this.queues) {
      const { descriptor, available, used } = queue.addresses();
      const at = (user: number) => this.ram.guest(user - this.ram.userAddress);
      const { index, size } = queue;
      await this.driver.setUpQueue({ index, size, table: at(descriptor), avail: at(available), used: at(used) });
    }
    return this.driver.start();
  }

  close(): void {
    for (const queue of this.queues) queue.close();
    this.#memory.clear();
    this.ram.close();
  }
}
