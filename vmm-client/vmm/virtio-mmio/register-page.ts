/**
 * The page of memory that a driver reads registers from, by a memory slot of the guest or by exits, which is the same. It
 * is kept so that every read finds what it should: reading has no effects. Registers that are only written read as 0.
 * Source: VIRTIO 1.3, 4.2.2 MMIO Device Register Layout.
 */

import type { PinnedMemory } from '../../../protocol/sys/pinned.ts';
import { VIRTIO_MMIO, VIRTIO_MMIO_MAGIC, VIRTIO_MMIO_VERSION } from '../../../protocol/virtio/mmio.ts';
import { PAGE_BYTES } from '../layout.ts';

/** Makes a page that of a place without a device: DeviceID 0, which drivers pass over. */
export function showEmptySlot(memory: PinnedMemory): void {
  const page = new RegisterPage(memory);
  page.set(VIRTIO_MMIO.magic_value, VIRTIO_MMIO_MAGIC);
  page.set(VIRTIO_MMIO.version, VIRTIO_MMIO_VERSION);
}

export class RegisterPage {
  readonly #bytes: Uint8Array;
  readonly #data: DataView;
  readonly #words: Uint32Array;

  /** Fills the page, which outlives this object, with zeros. @throws RangeError - `memory` is not one page (our mistake) */
  constructor(memory: PinnedMemory) {
    if (memory.length !== PAGE_BYTES)
      throw new RangeError(`registers of ${memory.length} bytes, a page is ${PAGE_BYTES}`);
    this.#bytes = memory.bytes;
    this.#data = memory.data;
    this.#words = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, PAGE_BYTES / 4);
    this.#bytes.fill(0);
  }

  /** What a read of `size` bytes (1, 2 or 4) at `offset` finds. */
  read(offset: number, size: number): number {
    if (size === 4) return this.#data.getUint32(offset, true);
    return size === 2 ? this.#data.getUint16(offset, true) : this.#data.getUint8(offset);
  }

  get(register: number): number {
    return Atomics.load(this.#words, register / 4);
  }

  set(register: number, value: number): void {
    Atomics.store(this.#words, register / 4, value);
  }

  /**
   * Puts a new configuration space in the place of the old one. The generation changes before and after, so that a driver
   * that read parts of both notices. Returns false when it is the old one.
   */
  replaceConfig(config: Uint8Array): boolean {
    const space = this.#bytes.subarray(VIRTIO_MMIO.config);
    const padded = new Uint8Array(space.length);
    padded.set(config.subarray(0, space.length));
    if (padded.every((byte, i) => byte === space[i])) return false;
    this.set(VIRTIO_MMIO.config_generation, this.get(VIRTIO_MMIO.config_generation) + 1);
    space.set(padded);
    this.set(VIRTIO_MMIO.config_generation, this.get(VIRTIO_MMIO.config_generation) + 1);
    return true;
  }

  /** Shows a configuration space as a driver has seen it elsewhere, with its generation. */
  loadConfig(config: Uint8Array, generation: number): void {
    const space = this.#bytes.subarray(VIRTIO_MMIO.config);
    space.fill(0);
    space.set(config.subarray(0, space.length));
    this.set(VIRTIO_MMIO.config_generation, generation);
  }
}
