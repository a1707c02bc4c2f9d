/**
 * The registers by which a guest hears of devices that come and that are to go, as a device on the bus. Reads find the page
 * itself, mostly without an exit; writes come by here. A bit that is set in ADDED, REMOVING or BUTTONS raises the interrupt: a guest
 * that acknowledges first and looks after the slots then misses nothing.
 */

import type { PinnedMemory } from '../../../protocol/sys/pinned.ts';
import type { BusDevice } from '../bus.ts';
import { RegisterPage } from '../virtio-mmio/register-page.ts';
import {
  ACKNOWLEDGE_ADDED,
  ACKNOWLEDGE_BUTTONS,
  ACKNOWLEDGE_REMOVING,
  ADDED,
  BUTTONS,
  EJECT,
  POWER_BUTTON,
  PRESENT,
  REMOVING,
} from './register-offsets.ts';

export interface HotplugActions {
  /** Signals the interrupt. */
  raise(): void;
  /** Takes the device of a slot out, if it can be taken out. What is no slot has none. */
  eject(slot: number): void | Promise<void>;
}

export class HotplugRegisters implements BusDevice {
  readonly #page: RegisterPage;
  readonly #actions: HotplugActions;

  /** Fills the page, which outlives this object. */
  constructor(memory: PinnedMemory, actions: HotplugActions) {
    this.#page = new RegisterPage(memory);
    this.#actions = actions;
  }

  read(offset: number, size: number): number {
    return this.#page.read(offset, size);
  }

  write(offset: number, size: number, value: number): void | Promise<void> {
    if (size !== 4) return;
    if (offset === ACKNOWLEDGE_ADDED) this.#clear(ADDED, value);
    else if (offset === ACKNOWLEDGE_REMOVING) this.#clear(REMOVING, value);
    else if (offset === ACKNOWLEDGE_BUTTONS) this.#clear(BUTTONS, value);
    else if (offset === EJECT) return this.#actions.eject(value);
  }

  /** A device is in the slot, as the guest finds it at its start. */
  showPresent(slot: number): void {
    this.#set(PRESENT, bit(slot));
  }

  /** A device has come into the slot. */
  add(slot: number): void {
    this.#set(PRESENT, bit(slot));
    this.#set(ADDED, bit(slot));
    this.#actions.raise();
  }

  /** The device of the slot is wanted back. */
  requestRemoval(slot: number): void {
    this.#set(REMOVING, bit(slot));
    this.#actions.raise();
  }

  /** The guest is asked to shut down. */
  pressPowerButton(): void {
    this.#set(BUTTONS, POWER_BUTTON);
    this.#actions.raise();
  }

  /** Whether the guest has not acknowledged that. */
  get isPowerButtonPressed(): boolean {
    return (this.#page.get(BUTTONS) & POWER_BUTTON) !== 0;
  }

  /** Nothing is in the slot any more. */
  remove(slot: number): void {
    for (const register of [PRESENT, ADDED, REMOVING]) this.#clear(register, bit(slot));
  }

  /** Whether the guest has not acknowledged that the device came. */
  isAdded(slot: number): boolean {
    return (this.#page.get(ADDED) & bit(slot)) !== 0;
  }

  /** Whether the guest has not acknowledged that the device is wanted back. */
  isRemoving(slot: number): boolean {
    return (this.#page.get(REMOVING) & bit(slot)) !== 0;
  }

  /** The guest starts anew, and finds devices where they are. */
  reset(): void {
    this.#page.set(ADDED, 0);
    this.#page.set(REMOVING, 0);
    this.#page.set(BUTTONS, 0);
  }

  #set(register: number, bits: number): void {
    this.#page.set(register, this.#page.get(register) | bits);
  }

  #clear(register: number, bits: number): void {
    this.#page.set(register, this.#page.get(register) & ~bits);
  }
}

function bit(slot: number): number {
  return 1 << slot;
}
