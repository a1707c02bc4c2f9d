/**
 * A 16550A serial port. The line is infinitely fast: a byte written to the transmitter is gone before the next access, and
 * one that the host has ready is in the receive FIFO as soon as a place is free. So the transmitter is always empty, no
 * byte from outside overruns, and the character timeout comes at once where bytes are below the trigger level.
 *
 *     offset     read                       written
 *       0        RBR  receive buffer        THR  transmit holding      DLL with DLAB
 *       1        IER  interrupt enable      IER                        DLM with DLAB
 *       2        IIR  interrupt identity    FCR  FIFO control
 *       3        LCR  line control          LCR  (DLAB is bit 7)
 *       4        MCR  modem control         MCR  (loopback is bit 4)
 *       5        LSR  line status           -
 *       6        MSR  modem status          -
 *       7        SCR  scratch               SCR
 *
 * The interrupt line is high while an enabled cause is pending, and `raise` is called when it becomes so: the pin of the
 * I/O APIC is edge triggered. OUT2 does not gate it. Source: National Semiconductor PC16550D data sheet, 8.0 Registers;
 * numbers as in linux/serial_reg.h.
 */

import type { BusDevice } from '../bus.ts';
import { readPorts, writePorts } from './byte-ports.ts';
import type { SerialState } from './pc-state.ts';
import { FIFO_BYTES, SerialFifo, WaitingBytes } from './serial-fifo.ts';
import {
  FCR_CLEAR_RCVR,
  FCR_ENABLE_FIFO,
  IER_DLM,
  IER_MASK,
  IER_MSI,
  IER_RDI,
  IER_RLSI,
  IER_THRI,
  IIR_FCR,
  IIR_FIFOS_ENABLED,
  IIR_MSI,
  IIR_NO_INT,
  IIR_RDI,
  IIR_RLSI,
  IIR_RX_TIMEOUT,
  IIR_THRI,
  LCR,
  LCR_DLAB,
  LSR,
  LSR_DR,
  LSR_OE,
  LSR_TEMT,
  LSR_THRE,
  MCR,
  MCR_LOOP,
  MCR_MASK,
  MSR,
  MSR_DELTAS,
  MSR_RI,
  MSR_TERI,
  modemLines,
  RBR_THR_DLL,
  SCR,
  TRIGGER_LEVELS,
} from './serial-registers.ts';

/** Bytes from the host that wait outside of the FIFO before `receive` asks for a pause. */
const WAITING_BYTES = 4096;
/** 9600 baud of a 1.8432 MHz clock, what a PC's firmware leaves. */
const DIVISOR_9600 = 12;

export interface SerialLine {
  /** Pulses the interrupt. */
  raise(): void;
  /** Takes a byte that the guest sends. A promise holds the guest up until it is kept: back pressure. */
  transmit(byte: number): void | Promise<void>;
}

export class Serial implements BusDevice {
  readonly #line: SerialLine;
  readonly #fifo = new SerialFifo();
  readonly #waiting = new WaitingBytes();
  #wanted: () => void = () => undefined;
  /** Whether somebody waits for `onWanted`. */
  #heldBack = false;
  #divisor = DIVISOR_9600;
  #ier = 0;
  #fcr = 0;
  #lcr = 0;
  #mcr = 0;
  #scratch = 0;
  #overrun = false;
  #transmitterPending = false;
  #modem: number;
  #modemDeltas = 0;
  #isHigh = false;

  constructor(line: SerialLine) {
    this.#line = line;
    this.#modem = modemLines(this.#mcr);
  }

  /**
   * Takes bytes for the guest, all of them; they stay in use until the guest has read them. False when the caller is to
   * hold the next ones back until `onWanted` is called.
   */
  receive(bytes: Uint8Array): boolean {
    if (bytes.length > 0) {
      this.#waiting.push(bytes);
      this.#fill();
      this.#update();
    }
    this.#heldBack = this.#waiting.length >= WAITING_BYTES;
    return !this.#heldBack;
  }

  /** Back to the state of a port that was just switched on. Bytes that wait outside of the FIFO stay. */
  reset(): void {
    this.#fifo.clear();
    this.#divisor = DIVISOR_9600;
    this.#ier = 0;
    this.#fcr = 0;
    this.#lcr = 0;
    this.#mcr = 0;
    this.#scratch = 0;
    this.#overrun = false;
    this.#transmitterPending = false;
    this.#modem = modemLines(this.#mcr);
    this.#modemDeltas = 0;
    this.#isHigh = false;
    this.#fill();
  }

  /** Whether bytes from the host are held back until the guest has read all there are. */
  get holdsBack(): boolean {
    return this.#heldBack;
  }

  /** All that the guest can find out by its registers, and what waits for it. What it has sent is gone. */
  save(): SerialState {
    return {
      fifo: this.#fifo.toBytes(),
      waiting: this.#waiting.toBytes(),
      divisor: this.#divisor,
      ier: this.#ier,
      fcr: this.#fcr,
      lcr: this.#lcr,
      mcr: this.#mcr,
      scratch: this.#scratch,
      modemDeltas: this.#modemDeltas,
      overrun: this.#overrun,
      transmitterPending: this.#transmitterPending,
    };
  }

  /**
   * Goes on where a port was saved. Bytes that have come for this one already are behind those that waited for that one.
   * An interrupt line that was high is raised again: KVM may have been about to take the edge when its state was saved.
   * So the interrupt controllers are restored before.
   */
  restore(restored: SerialState): void {
    const { fifo, waiting } = this.save();
    this.#fifo.clear();
    for (const byte of restored.fifo) this.#fifo.push(byte, FIFO_BYTES);
    this.#waiting.clear();
    for (const bytes of [restored.waiting, fifo, waiting]) this.#waiting.push(bytes);
    this.#heldBack ||= this.#waiting.length >= WAITING_BYTES;
    this.#divisor = restored.divisor;
    this.#ier = restored.ier;
    this.#fcr = restored.fcr;
    this.#lcr = restored.lcr;
    this.#mcr = restored.mcr;
    this.#scratch = restored.scratch;
    this.#overrun = restored.overrun;
    this.#transmitterPending = restored.transmitterPending;
    this.#modem = modemLines(this.#mcr);
    this.#modemDeltas = restored.modemDeltas;
    this.#isHigh = false;
    this.#fill();
    this.#update();
  }

  /** Sets who is told that the guest has read all there was. */
  set onWanted(wanted: () => void) {
    this.#wanted = wanted;
  }

  read(offset: number, size: number): number {
    return readPorts(offset, size, (at) => this.#read(at));
  }

  write(offset: number, size: number, value: number): void | Promise<void> {
    return writePorts(offset, size, value, (at, byte) => this.#write(at, byte));
  }

  #read(offset: number): number {
    const divisorLatch = (this.#lcr & LCR_DLAB) !== 0;
    switch (offset) {
      case RBR_THR_DLL:
        return divisorLatch ? this.#divisor & 0xff : this.#readReceived();
      case IER_DLM:
        return divisorLatch ? this.#divisor >> 8 : this.#ier;
      case IIR_FCR:
        return this.#readIdentity();
      case LCR:
        return this.#lcr;
      case MCR:
        return this.#mcr;
      case LSR:
        return this.#readLineStatus();
      case MSR:
        return this.#readModemStatus();
      case SCR:
        return this.#scratch;
      default:
        return 0xff;
    }
  }

  #write(offset: number, byte: number): void | Promise<void> {
    const divisorLatch = (this.#lcr & LCR_DLAB) !== 0;
    if (offset === RBR_THR_DLL && !divisorLatch) return this.#writeTransmitter(byte);
    if (offset === RBR_THR_DLL) this.#divisor = (this.#divisor & 0xff00) | byte;
    else if (offset === IER_DLM && divisorLatch) this.#divisor = (this.#divisor & 0xff) | (byte << 8);
    else if (offset === IER_DLM) this.#writeInterruptEnable(byte);
    else if (offset === IIR_FCR) this.#writeFifoControl(byte);
    else if (offset === LCR) this.#lcr = byte;
    else if (offset === MCR) this.#writeModemControl(byte);
    else if (offset === SCR) this.#scratch = byte;
    this.#update();
  }

  #readReceived(): number {
    const byte = this.#fifo.shift() ?? 0;
    // Below the trigger level a read ends the interrupt; what is left, or comes now, begins the next one.
    if (this.#fifo.length < this.#triggerLevel) this.#setLine(this.#identity(false));
    this.#fill();
    this.#update();
    return byte;
  }

  #writeTransmitter(byte: number): void | Promise<void> {
    this.#transmitterPending = false;
    this.#update();
    const waiting = this.#loopback ? this.#loopBack(byte) : this.#line.transmit(byte);
    this.#transmitterPending = true;
    this.#update();
    return waiting;
  }

  #loopBack(byte: number): void {
    if (!this.#fifo.push(byte, this.#capacity)) this.#overrun = true;
  }

  #writeInterruptEnable(byte: number): void {
    const enabled = byte & ~this.#ier & IER_THRI;
    this.#ier = byte & IER_MASK;
    // The transmitter is empty, which is what it was enabled to tell.
    if (enabled !== 0) this.#transmitterPending = true;
    if ((this.#ier & IER_THRI) === 0) this.#transmitterPending = false;
  }

  /** Bytes that wait outside survive: they have not come over the line yet. */
  #writeFifoControl(byte: number): void {
    const toggled = ((byte ^ this.#fcr) & FCR_ENABLE_FIFO) !== 0;
    // The other bits count only together with this one.
    this.#fcr = (byte & FCR_ENABLE_FIFO) === 0 ? 0 : byte;
    if (toggled || (this.#fcr & FCR_CLEAR_RCVR) !== 0) this.#fifo.clear();
    this.#fill();
  }

  #writeModemControl(byte: number): void {
    this.#mcr = byte & MCR_MASK;
    const before = this.#modem;
    this.#modem = modemLines(this.#mcr);
    this.#modemDeltas |= ((before ^ this.#modem) >> 4) & MSR_DELTAS;
    if ((before & ~this.#modem & MSR_RI) !== 0) this.#modemDeltas |= MSR_TERI;
    this.#fill();
  }

  #readIdentity(): number {
    const identity = this.#identity();
    if (identity === IIR_THRI) this.#transmitterPending = false;
    this.#update();
    return identity | ((this.#fcr & FCR_ENABLE_FIFO) !== 0 ? IIR_FIFOS_ENABLED : 0);
  }

  #readLineStatus(): number {
    const status = LSR_THRE | LSR_TEMT | (this.#fifo.length > 0 ? LSR_DR : 0) | (this.#overrun ? LSR_OE : 0);
    this.#overrun = false;
    this.#update();
    return status;
  }

  #readModemStatus(): number {
    const status = this.#modem | this.#modemDeltas;
    this.#modemDeltas = 0;
    this.#update();
    return status;
  }

  get #loopback(): boolean {
    return (this.#mcr & MCR_LOOP) !== 0;
  }

  get #capacity(): number {
    return (this.#fcr & FCR_ENABLE_FIFO) !== 0 ? FIFO_BYTES : 1;
  }

  get #triggerLevel(): number {
    return (this.#fcr & FCR_ENABLE_FIFO) !== 0 ? TRIGGER_LEVELS[(this.#fcr >> 6) as 0 | 1 | 2 | 3] : 1;
  }

  /** The pending cause of the highest priority that is enabled, `received` data left out or not. */
  #identity(received = true): number {
    if (this.#overrun && (this.#ier & IER_RLSI) !== 0) return IIR_RLSI;
    if (received && this.#fifo.length > 0 && (this.#ier & IER_RDI) !== 0) {
      return this.#fifo.length >= this.#triggerLevel ? IIR_RDI : IIR_RX_TIMEOUT;
    }
    if (this.#transmitterPending && (this.#ier & IER_THRI) !== 0) return IIR_THRI;
    if (this.#modemDeltas !== 0 && (this.#ier & IER_MSI) !== 0) return IIR_MSI;
    return IIR_NO_INT;
  }

  /** Brings the interrupt line to where the causes want it. */
  #update(): void {
    this.#setLine(this.#identity());
  }

  #setLine(identity: number): void {
    const isHigh = identity !== IIR_NO_INT;
    const rose = isHigh && !this.#isHigh;
    this.#isHigh = isHigh;
    if (rose) this.#line.raise();
  }

  /** What waits outside comes over the line as far as there is room; in loopback the line is cut. */
  #fill(): void {
    while (this.#waiting.length > 0 && !this.#loopback && this.#fifo.length < this.#capacity) {
      this.#fifo.push(this.#waiting.shift() as number, this.#capacity);
    }
    if (!this.#heldBack || this.#waiting.length > 0) return;
    this.#heldBack = false;
    this.#wanted();
  }
}
