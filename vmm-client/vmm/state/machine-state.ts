/**
 * A machine that stands still: what it takes to go on, here or elsewhere, apart from its RAM. The order is the one in
 * which parts touch each other: vCPUs finish what they asked of devices, devices finish what they do to memory; and the
 * other way round, processors are there before devices interrupt them.
 */

import type { PcDevices } from '../legacy/pc-devices.ts';
import type { PageRange } from '../migration/page-set.ts';
import type { Processors } from '../processors.ts';
import type { VirtioSlots } from '../virtio-slots.ts';

/** Plain data; each part is its owner's. */
export interface MachineState {
  readonly processors: unknown;
  readonly slots: unknown;
  readonly pc: unknown;
}

/** The parts of a machine that have a state. */
export interface MachineParts {
  readonly processors: Processors;
  readonly slots: VirtioSlots;
  readonly pc: PcDevices;
}

/** The parts of a machine, whichever they are at the time, running or standing still. */
export class Standstill {
  readonly #parts: () => MachineParts;
  /** What the devices said when they were suspended; undefined while they run. */
  #slots: unknown;
  #isLogging = false;

  constructor(parts: () => MachineParts) {
    this.#parts = parts;
  }

  /**
   * Holds the vCPUs, then suspends the devices. Nothing touches guest memory afterwards. No effect where that is so.
   * @throws VmError - a vCPU has ended, or a device cannot: the devices go on, and `resume` is to be called
   */
  async suspend(): Promise<void> {
    if (this.#slots !== undefined) return;
    const { processors, pc, slots } = this.#parts();
    // A vCPU that waits for who reads the serial port would not get out of there.
    pc.release();
    await processors.quiesce();
    this.#slots = await slots.suspend();
  }

  /** Of a machine that is suspended. @throws VmError - a vCPU has ended */
  async state(): Promise<MachineState> {
    const { processors, pc } = this.#parts();
    return { processors: await processors.save(), slots: this.#slots, pc: pc.save() };
  }

  /** Lets everything but the vCPUs go on. Idempotent. @throws VmError - a device does not */
  async resume(): Promise<void> {
    const { pc, slots } = this.#parts();
    pc.restrain();
    if (this.#slots === undefined) return;
    this.#slots = undefined;
    await slots.resume();
  }

  /** The machine starts anew, its devices are reset: nothing stands still any more, and nothing is noted. */
  async reset(): Promise<void> {
    this.#slots = undefined;
    await this.resume();
    await this.stopDirtyLog();
  }

  /**
   * Puts the processors of a machine that never ran into a state, and what is theirs alone.
   * @throws VmError - it is none, or another machine's
   */
  async restoreProcessors(value: unknown): Promise<void> {
    const { fieldsOf } = await import('./codec.ts');
    const state = fieldsOf(value, 'state of the machine');
    const { processors, pc } = this.#parts();
    await processors.restore(state.processors);
    await pc.restore(state.pc);
  }

  /** Lets the devices, which find their memory there, go on. After the processors. @throws VmError - likewise */
  async restoreDevices(value: unknown): Promise<void> {
    const { fieldsOf } = await import('./codec.ts');
    await this.#parts().slots.restore(fieldsOf(value, 'state of the machine').slots);
  }

  /** From now on what the devices write is noted, and what the guest writes if wanted. @throws VmError - a device cannot */
  async startDirtyLog(ofGuest: boolean): Promise<void> {
    const { processors, slots } = this.#parts();
    this.#isLogging = true;
    await slots.startDirtyLog();
    if (ofGuest) processors.vm.startDirtyLog();
  }

  takeDirty(): readonly PageRange[] {
    const { processors, slots } = this.#parts();
    return [...processors.vm.takeDirty(), ...slots.takeDirty()];
  }

  /** Idempotent. */
  async stopDirtyLog(): Promise<void> {
    if (!this.#isLogging) return;
    this.#isLogging = false;
    const { processors, slots } = this.#parts();
    processors.vm.stopDirtyLog();
    await slots.stopDirtyLog();
  }
}
