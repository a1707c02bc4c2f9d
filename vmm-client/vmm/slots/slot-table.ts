/**
 * Which slot has which device. Empty slots have an order in which they are filled: those that were used come after those
 * that were not, and the one longest empty first, since guests hold on to what they know of a slot.
 */

import { VmConfigError, VmNotFoundError } from '../errors.ts';
import { MAX_VIRTIO_DEVICES } from '../layout.ts';
import type { FilledSlot } from './filled-slot.ts';
import type { PlannedDevice } from './plan.ts';

export class SlotTable {
  readonly #slots: (FilledSlot | undefined)[] = Array.from({ length: MAX_VIRTIO_DEVICES });
  /** Slots that are empty and nobody's, the next to be filled first. */
  readonly #free = Array.from({ length: MAX_VIRTIO_DEVICES }, (_, slot) => slot);

  /** Slots with a device, in their order. */
  get filled(): readonly FilledSlot[] {
    return this.#slots.filter((slot) => slot !== undefined);
  }

  at(index: number): FilledSlot | undefined {
    return this.#slots[index];
  }

  /** @throws VmNotFoundError - there is no device of that id */
  find(id: string): FilledSlot {
    const slot = this.filled.find((each) => each.id === id);
    if (slot === undefined) throw new VmNotFoundError(`the machine has no device "${id}"`);
    return slot;
  }

  /**
   * Takes the slot that a device has to have, or the next of those that `suits` says are for it. It is taken until `put` and
   * `empty`, or `giveBack`.
   * @throws VmConfigError - there is none
   */
  take({ id, slot: fixed }: PlannedDevice, suits: (slot: number) => boolean): number {
    const at = this.#free.findIndex((slot) => (fixed === undefined ? suits(slot) : slot === fixed));
    const [slot] = at < 0 ? [] : this.#free.splice(at, 1);
    if (slot !== undefined) return slot;
    if (fixed !== undefined) throw new VmConfigError(`device "${id}": slot ${fixed} is not free`);
    const which = this.#free.length > 0 ? ' that the guest knows to be behind its IOMMU' : '';
    throw new VmConfigError(`device "${id}": none of the ${MAX_VIRTIO_DEVICES} slots${which} is free`);
  }

  /** A slot that was taken in vain: it is the next one again. */
  giveBack(slot: number): void {
    this.#free.unshift(slot);
  }

  /** Puts a device into its slot, which was taken for it. */
  put(slot: FilledSlot): void {
    this.#slots[slot.index] = slot;
  }

  /** Takes a device out. Its slot is empty, and stays taken until `release`. */
  empty(index: number): void {
    this.#slots[index] = undefined;
  }

  release(index: number): void {
    this.#free.push(index);
  }

  /** A new guest knows nothing of any slot. */
  forgetUse(): void {
    this.#free.sort((a, b) => a - b);
  }
}
