/**
 * A guest without a processor: memory, rings and a driver of one virtio-mmio device. Its rings' kick descriptors are what
 * the ioeventfds would be, the call descriptor of its first ring is the interrupt.
 */

import { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { GuestRam } from './guest-ram.ts';
import { MmioDriver, type MmioTarget } from './mmio-driver.ts';
import { RawRing } from './raw-ring.ts';

export interface MmioGuestOptions {
  /** Entries of each ring; default one ring of 64. */
  readonly queueSizes?: readonly number[];
  /** Bytes of guest memory; default 4 MiB. */
  readonly ramBytes?: number;
}

export class MmioGuest {
  /** Above 4 GiB: the upper halves of addresses count. */
  readonly ram: GuestRam;
  readonly rings: readonly RawRing[];
  readonly dataStart: number;
  readonly registers = allocatePinned(4096);
  readonly #memory = new GuestMemory();
  #driver: MmioDriver | undefined;

  constructor({ queueSizes = [64], ramBytes = 4 << 20 }: MmioGuestOptions = {}) {
    this.ram = new GuestRam(ramBytes, 0x1_4000_0000);
    const { guestAddress, userAddress, length: size } = this.ram;
    this.#memory.add({ guestAddress, userAddress, size, mmapOffset: 0 }, this.ram.fd);
    let at = 0x1000;
    this.rings = queueSizes.map((size, index) => {
      const ring = new RawRing(this.ram, index, size, at);
      at = ring.end;
      return ring;
    });
    this.dataStart = at;
  }

  ring(index = 0): RawRing {
    const ring = this.rings[index];
    if (ring === undefined) throw new Error(`the guest has no ring ${index}`);
    return ring;
  }

  queue(index = 0): RawRing {
    return this.ring(index);
  }

  /** The guest's memory as a device gets it. */
  get deviceMemory() {
    const { ram } = this;
    const { guestAddress, userAddress, length: size } = ram;
    return {
      memory: this.#memory,
      regions: [{ region: { guestAddress, userAddress, size, mmapOffset: 0 }, memfd: ram.fd }],
      hostAddress: (address: number, length: number): number | undefined => {
        const offset = address - ram.guestAddress;
        return offset >= 0 && offset + length <= ram.length ? ram.user(offset) : undefined;
      },
    };
  }

  /** What a transport needs of the machine. */
  get wiring() {
    return {
      registers: this.registers,
      interrupt: this.ring().call,
      kicks: this.rings.map(({ kick }) => kick),
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
    for (const ring of this.rings) {
      this.ram.bytes.fill(0, ring.table, ring.end);
      ring.seen = 0;
    }
    await this.driver.negotiate(features);
    for (const { index, size, table, avail, used } of this.rings) {
      const { ram } = this;
      await this.driver.setUpQueue({
        index,
        size,
        table: ram.guest(table),
        avail: ram.guest(avail),
        used: ram.guest(used),
      });
    }
    return this.driver.start();
  }

  close(): void {
    for (const ring of this.rings) ring.close();
    this.#memory.clear();
    this.ram.close();
  }
}
