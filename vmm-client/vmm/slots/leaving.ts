/** Devices on their way out: in no slot any more, reset, let go of, and then their daemons are ended. */

import type { DirtyRange } from '../../frontend/dirty-bitmap.ts';
import type { FilledSlot } from './filled-slot.ts';

export class LeavingDevices {
  /** By id. Never rejected. */
  readonly #ends = new Map<string, Promise<void>>();
  #dirty: DirtyRange[] = [];

  has(id: string): boolean {
    return this.#ends.has(id);
  }

  /**
   * Takes a device away from its driver. Kept when nothing touches guest memory; `onEnd` is called when its daemon has ended
   * too. With `isLogging` what it wrote is kept for `takeDirty`. Never throws.
   */
  unplug(slot: FilledSlot, isLogging: boolean, onEnd: () => void): Promise<void> {
    const unplugged = this.#unplug(slot, isLogging);
    const end = async (): Promise<void> => {
      await unplugged;
      await slot.daemon?.stop();
      this.#ends.delete(slot.id);
      onEnd();
    };
    this.#ends.set(slot.id, end());
    return unplugged;
  }

  async #unplug(slot: FilledSlot, isLogging: boolean): Promise<void> {
    if (isLogging) {
      await slot.transport.reset();
      this.#dirty = [...this.#dirty, ...slot.transport.takeDirty()];
    }
    await slot.unplug();
  }

  /** Resolves when all that are on their way have ended. */
  async ended(): Promise<void> {
    await Promise.all(this.#ends.values());
  }

  /** What those wrote that are gone, since this was last called. */
  takeDirty(): readonly DirtyRange[] {
    return this.#dirty.splice(0);
  }
}
