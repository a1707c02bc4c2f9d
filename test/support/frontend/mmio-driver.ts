/**
 * A driver's side of a virtio device in memory, in single register accesses with literal offsets from VIRTIO 1.3, 4.2.2.
 * It reads through the page as a guest with a memory slot does.
 */

import type { PinnedMemory } from '../../../protocol/sys/pinned.ts';

/** What the driver writes to. */
export interface MmioTarget {
  write(offset: number, size: number, value: number): void | Promise<void>;
}

/** Where a queue is, in guest addresses. */
export interface MmioQueue {
  readonly index: number;
  readonly size: number;
  readonly table: number;
  readonly avail: number;
  readonly used: number;
}

const VERSION_1 = 1n << 32n;

export class MmioDriver {
  readonly #page: PinnedMemory;
  readonly #target: MmioTarget;

  constructor(page: PinnedMemory, target: MmioTarget) {
    this.#page = page;
    this.#target = target;
  }

  read(offset: number): number {
    return this.#page.data.getUint32(offset, true);
  }

  async write(offset: number, value: number, size = 4): Promise<void> {
    await this.#target.write(offset, size, value);
  }

  get status(): number {
    return this.read(0x70);
  }

  get interruptStatus(): number {
    return this.read(0x60);
  }

  get generation(): number {
    return this.read(0xfc);
  }

  /** Bytes of the configuration space. */
  config(offset: number, length: number): Uint8Array {
    return this.#page.bytes.slice(0x100 + offset, 0x100 + offset + length);
  }

  async offered(): Promise<bigint> {
    await this.write(0x14, 1);
    const high = BigInt(this.read(0x10));
    await this.write(0x14, 0);
    return (high << 32n) | BigInt(this.read(0x10));
  }

  async accept(features: bigint): Promise<void> {
    await this.write(0x24, 1);
    await this.write(0x20, Number(features >> 32n));
    await this.write(0x24, 0);
    await this.write(0x20, Number(features & 0xffff_ffffn));
  }

  /** ACKNOWLEDGE, DRIVER, features, FEATURES_OK; returns what was accepted. */
  async negotiate(features: bigint = VERSION_1): Promise<bigint> {
    await this.write(0x70, 1);
    await this.write(0x70, 3);
    const accepted = (await this.offered()) & (features | VERSION_1);
    await this.accept(accepted);
    await this.write(0x70, 11);
    if (this.status !== 11) throw new Error(`features 0x${accepted.toString(16)} were refused, status ${this.status}`);
    return accepted;
  }

  async setAddress(low: number, address: number): Promise<void> {
    await this.write(low, address % 0x1_0000_0000);
    await this.write(low + 4, Math.floor(address / 0x1_0000_0000));
  }

  async setUpQueue({ index, size, table, avail, used }: MmioQueue): Promise<void> {
    await this.write(0x30, index);
    if (this.read(0x44) !== 0 || this.read(0x34) < size) throw new Error(`queue ${index} cannot have ${size} entries`);
    await this.write(0x38, size);
    await this.setAddress(0x80, table);
    await this.setAddress(0x90, avail);
    await this.setAddress(0xa0, used);
    await this.write(0x44, 1);
  }

  /** DRIVER_OK; returns the status that came of it. */
  async start(): Promise<number> {
    await this.write(0x70, 15);
    return this.status;
  }

  async reset(): Promise<void> {
    await this.write(0x70, 0);
  }
}
