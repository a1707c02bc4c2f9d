/** What the PC devices are when their machine is saved, as plain data, and as it comes back from somebody else. */

import { VmError } from '../errors.ts';
import { bytesOf, fieldsOf, flagOf, integerOf } from '../state/codec.ts';
import { type I8042State, SYSTEM_CONTROL_LATCHES } from './i8042.ts';
import { FIFO_BYTES } from './serial-fifo.ts';

/** Registers are as the guest reads them, 8 bits; `divisor` is DLM and DLL. */
export interface SerialState {
  /** What the guest has received and not read. */
  readonly fifo: Uint8Array;
  /** What the host had for the guest beyond that. */
  readonly waiting: Uint8Array;
  readonly divisor: number;
  readonly ier: number;
  readonly fcr: number;
  readonly lcr: number;
  readonly mcr: number;
  readonly scratch: number;
  /** Bits 3:0 of MSR. */
  readonly modemDeltas: number;
  /** Whether a byte was lost, which LSR has not told yet. */
  readonly overrun: boolean;
  /** Whether the empty transmitter is a cause of interrupts that IIR has not told yet. */
  readonly transmitterPending: boolean;
}

export interface PcState {
  /** Null of a machine without a serial port. */
  readonly serial: SerialState | null;
  readonly i8042: I8042State;
}

/** Much more than input that is held back comes to; what a state can make this process keep. */
const MAX_WAITING_BYTES = 2 * 1024 * 1024;

/** @throws VmError - it is no state of a serial port */
export function parseSerialState(value: unknown): SerialState {
  const fields = fieldsOf(value, 'serial');
  const register = (name: string, maximum: number): number => integerOf(fields[name], `serial: ${name}`, { maximum });
  const flag = (name: string): boolean => flagOf(fields[name], `serial: ${name}`);
  const bytes = (name: string, most: number): Uint8Array => {
    const found = bytesOf(fields[name], `serial: ${name}`);
    if (found.length > most) throw new VmError(`serial: ${name}: ${found.length} bytes, at most ${most} are possible`);
    return found;
  };
  return {
    fifo: bytes('fifo', FIFO_BYTES),
    waiting: bytes('waiting', MAX_WAITING_BYTES),
    divisor: register('divisor', 0xffff),
    ier: register('ier', 0x0f),
    fcr: register('fcr', 0xff),
    lcr: register('lcr', 0xff),
    mcr: register('mcr', 0x1f),
    scratch: register('scratch', 0xff),
    modemDeltas: register('modemDeltas', 0x0f),
    overrun: flag('overrun'),
    transmitterPending: flag('transmitterPending'),
  };
}

/** @throws VmError - it is no state of a keyboard controller */
export function parseI8042State(value: unknown): I8042State {
  const { systemControl } = fieldsOf(value, 'i8042');
  return { systemControl: integerOf(systemControl, 'i8042: systemControl', { maximum: SYSTEM_CONTROL_LATCHES }) };
}

/** @throws VmError - it is no state of PC devices */
export function parsePcState(value: unknown): PcState {
  const { serial, i8042 } = fieldsOf(value, 'state of the PC devices');
  return { serial: serial === null ? null : parseSerialState(serial), i8042: parseI8042State(i8042) };
}
