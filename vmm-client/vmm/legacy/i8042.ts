/**
 * What is left of the keyboard controller (ports 0x60 to 0x64): the command that pulses the processor's reset line, which
 * is how many kernels reboot a PC. The status has the output buffer full for ever and the input buffer empty: a driver
 * that flushes the controller gives up after a few bytes ("No controller found"), and one that waits before it sends a
 * command does not wait. Port 0x61 in between is the system control port.
 * Source: Intel 8742 data sheet (status byte, command D0-FF); Linux, drivers/input/serio/i8042.c and arch/x86 reboot.
 */

import type { BusDevice } from '../bus.ts';
import { readPorts, writePorts } from './byte-ports.ts';

/** Offsets from port 0x60. */
const SYSTEM_CONTROL = 1;
const STATUS_AND_COMMAND = 4;
const STATUS_OUTPUT_BUFFER_FULL = 0x01;
/** Output of timer 2, which ends every loop that waits for it, and the line that toggles with each refresh of memory. */
const SYSTEM_CONTROL_TIMER_2 = 0x20;
const SYSTEM_CONTROL_REFRESH = 0x10;
const SYSTEM_CONTROL_WRITABLE = 0x0f;
/** What of the system control port is remembered. */
export const SYSTEM_CONTROL_LATCHES = SYSTEM_CONTROL_REFRESH | SYSTEM_CONTROL_WRITABLE;
/** Pulse output port: bit 0, clear, is the reset line. */
const COMMAND_PULSE_RESET = 0xfe;

/** What it remembers: the writable bits of the system control port, and the refresh line. Plain data. */
export interface I8042State {
  readonly systemControl: number;
}

export class I8042 implements BusDevice {
  readonly #onReset: () => void;
  #systemControl = 0;

  /** `onReset` is called when the guest resets the processor. */
  constructor(onReset: () => void) {
    this.#onReset = onReset;
  }

  read(offset: number, size: number): number {
    return readPorts(offset, size, (at) => this.#read(at));
  }

  write(offset: number, size: number, value: number): void {
    writePorts(offset, size, value, (at, byte) => {
      if (at === STATUS_AND_COMMAND && byte === COMMAND_PULSE_RESET) this.#onReset();
      // Gate of timer 2, speaker and the parity checks are what can be written.
      if (at === SYSTEM_CONTROL)
        this.#systemControl = (this.#systemControl & SYSTEM_CONTROL_REFRESH) | (byte & SYSTEM_CONTROL_WRITABLE);
    });
  }

  save(): I8042State {
    return { systemControl: this.#systemControl };
  }

  restore({ systemControl }: I8042State): void {
    this.#systemControl = systemControl;
  }

  #read(offset: number): number {
    if (offset === STATUS_AND_COMMAND) return STATUS_OUTPUT_BUFFER_FULL;
    if (offset !== SYSTEM_CONTROL) return 0;
    this.#systemControl ^= SYSTEM_CONTROL_REFRESH;
    return this.#systemControl | SYSTEM_CONTROL_TIMER_2;
  }
}
