/** What is left of a PC: a serial port, the keyboard controller, the power registers of ACPI. */

import { createWriteStream, openSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { Notifier } from '../../../protocol/sys/notifier.ts';
import { createEventFd, type OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { Bus } from '../bus.ts';
import type { ConsoleConfig } from '../config.ts';
import { VmConfigError, VmStateError } from '../errors.ts';
import {
  ACPI_POWER_PORT,
  ACPI_POWER_PORT_COUNT,
  I8042_PORT,
  I8042_PORT_COUNT,
  SERIAL_PORT,
  SERIAL_PORT_COUNT,
} from '../layout.ts';
import type { Log } from '../log.ts';
import { AcpiPower } from './acpi-power.ts';
import { I8042 } from './i8042.ts';
import { Serial } from './serial.ts';
import { feedSerial, SerialOutput } from './serial-stream.ts';
import { SerialTap, type TapReader, typeAt } from './serial-tap.ts';

export interface PcOptions {
  readonly serial: ConsoleConfig;
  /** The guest ran before: what it wrote to a file stays there. */
  readonly isContinued: boolean;
  /** The other end of a serial port in mode Tty. */
  readonly input: Readable;
  readonly output: Writable;
  readonly log: Log;
  readonly onReset: () => void;
  readonly onShutdown: () => void;
}

export class PcDevices {
  /** Undefined where the machine has none. */
  readonly serial: Serial | undefined;
  /** An edge of the serial port's interrupt, when written. */
  readonly serialInterrupt: OwnedFd;
  readonly #i8042: I8042;
  readonly #tap = new SerialTap();
  #output: SerialOutput | undefined;
  readonly #closers: (() => void)[] = [];

  /** Puts the devices on a bus of ports. @throws VmConfigError - the file of the serial port cannot be had */
  constructor(ports: Bus, options: PcOptions) {
    this.serialInterrupt = createEventFd();
    this.#closers.push(() => this.serialInterrupt.close());
    this.#i8042 = new I8042(options.onReset);
    ports.add(I8042_PORT, I8042_PORT_COUNT, this.#i8042);
    ports.add(ACPI_POWER_PORT, ACPI_POWER_PORT_COUNT, new AcpiPower(options));
    try {
      this.serial = options.serial.mode === 'Off' ? undefined : this.#openSerial(options);
    } catch (error) {
      this.close();
      throw error;
    }
    if (this.serial !== undefined) ports.add(SERIAL_PORT, SERIAL_PORT_COUNT, this.serial);
  }

  #openSerial({ serial: { mode, file }, isContinued, input, output, log }: PcOptions): Serial {
    const interrupt = new Notifier(this.serialInterrupt.duplicate());
    this.#closers.push(() => interrupt.close());
    const tap = this.#tap;
    this.#closers.push(() => tap.close());
    let transmit: (byte: number) => void | Promise<void> = (byte) => tap.push(byte);
    if (mode !== 'Null') {
      const target = mode === 'File' && file !== undefined ? openSerialFile(file, isContinued, log) : output;
      const serialOutput = new SerialOutput(target);
      this.#output = serialOutput;
      transmit = (byte) => {
        tap.push(byte);
        return serialOutput.write(byte);
      };
      this.#closers.push(() => {
        serialOutput.close();
        if (target !== output) target.end();
      });
    }
    const serial = new Serial({ raise: () => interrupt.signal(), transmit });
    if (mode === 'Tty') this.#closers.push(feedSerial(input, serial));
    return serial;
  }

  /** What the guest sent by its serial port of late, and what it sends. @throws VmStateError - it has none; too many read */
  listenIn(): TapReader {
    this.#needSerial();
    return this.#tap.read();
  }

  /** Types at the serial port. @throws VmStateError - the guest has none, or does not read it */
  type(text: string): void {
    typeAt(this.#needSerial(), text);
  }

  #needSerial(): Serial {
    if (this.serial === undefined) throw new VmStateError('VM_STATE', 'the VM has no serial port: serial.mode is Off');
    return this.serial;
  }

  /** As at the start of the machine. What was written stays written. */
  reset(): void {
    this.serial?.reset();
  }

  /** Lets no vCPU wait for who reads the serial port, for one that is being held. Idempotent. */
  release(): void {
    this.#output?.release();
  }

  /** The guest waits for its reader again. Idempotent. */
  restrain(): void {
    this.#output?.restrain();
  }

  /** Plain data. No vCPU runs. */
  save(): unknown {
    return { serial: this.serial?.save() ?? null, i8042: this.#i8042.save() };
  }

  /** Goes on where such devices were saved. @throws VmError - that is no state, or one of a machine without a serial port */
  async restore(state: unknown): Promise<void> {
    const { parsePcState } = await import('./pc-state.ts');
    const { serial, i8042 } = parsePcState(state);
    // Where one side has none, the guest finds it as after a reset.
    if (serial !== null) this.serial?.restore(serial);
    this.#i8042.restore(i8042);
  }

  /** Idempotent. */
  close(): void {
    for (const close of this.#closers.splice(0).reverse()) close();
  }
}

function openSerialFile(file: string, isContinued: boolean, log: Log): Writable {
  let fd: number;
  try {
    fd = openSync(file, isContinued ? 'a' : 'w');
  } catch (error) {
    throw new VmConfigError(`serial: ${(error as Error).message}`);
  }
  const stream = createWriteStream('', { fd });
  // To the last byte, which is written after the machine is gone.
  stream.on('error', (error) =>
    log.error(`serial: ${file}: what the guest writes from here on is lost: ${error.message}`),
  );
  return stream;
}
