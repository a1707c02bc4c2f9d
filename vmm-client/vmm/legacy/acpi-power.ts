/**
 * The three registers by which a guest of hardware-reduced ACPI ends or restarts the machine, one byte each.
 *
 *     +0  RESET_REG            RESET_VALUE, 1, resets
 *     +1  SLEEP_CONTROL_REG    SLP_TYP bits 4:2, SLP_EN bit 5; the type of \_S5 powers off
 *     +2  SLEEP_STATUS_REG     WAK_STS bit 7, cleared by writing it; this machine never wakes up
 *
 * Source: ACPI 6.5, 4.8.3.6 Reset Register, 4.8.3.7 Sleep Control and Status Registers.
 */

import { S5_SLEEP_TYPE } from '../acpi/dsdt.ts';
import { RESET_VALUE } from '../acpi/tables.ts';
import type { BusDevice } from '../bus.ts';
import { readPorts, writePorts } from './byte-ports.ts';

const RESET = 0;
const SLEEP_CONTROL = 1;
const SLP_TYP_SHIFT = 2;
const SLP_TYP_MASK = 0x1c;
const SLP_EN = 0x20;

export class AcpiPower implements BusDevice {
  readonly #onReset: () => void;
  readonly #onShutdown: () => void;

  constructor(actions: { readonly onReset: () => void; readonly onShutdown: () => void }) {
    this.#onReset = actions.onReset;
    this.#onShutdown = actions.onShutdown;
  }

  /** All registers read as zero: SLP_EN is write-only, and WAK_STS is never set. */
  read(offset: number, size: number): number {
    return readPorts(offset, size, () => 0);
  }

  write(offset: number, size: number, value: number): void {
    writePorts(offset, size, value, (at, byte) => {
      if (at === RESET && byte === RESET_VALUE) this.#onReset();
      if (at !== SLEEP_CONTROL || (byte & SLP_EN) === 0) return;
      if ((byte & SLP_TYP_MASK) >> SLP_TYP_SHIFT === S5_SLEEP_TYPE) this.#onShutdown();
    });
  }
}
