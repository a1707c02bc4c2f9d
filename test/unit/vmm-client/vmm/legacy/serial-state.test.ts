import { describe, expect, it } from 'vitest';
import { parseSerialState } from '../../../../../vmm-client/vmm/legacy/pc-state.ts';
import { Serial } from '../../../../../vmm-client/vmm/legacy/serial.ts';
import { decodeState, encodeState } from '../../../../../vmm-client/vmm/state/codec.ts';

// Registers by their offsets, from linux/serial_reg.h.
const RBR = 0;
const IER = 1;
const IIR = 2;
const FCR = 2;
const LCR = 3;
const MCR = 4;
const LSR = 5;
const MSR = 6;
const SCR = 7;

class Port {
  interrupts = 0;
  readonly sent: number[] = [];
  readonly serial = new Serial({
    raise: () => {
      this.interrupts += 1;
    },
    transmit: (byte) => void this.sent.push(byte),
  });

  read(offset: number): number {
    return this.serial.read(offset, 1);
  }

  write(offset: number, value: number): void {
    this.serial.write(offset, 1, value);
  }

  type(text: string): boolean {
    return this.serial.receive(Buffer.from(text));
  }

  text(count: number): string {
    return String.fromCharCode(...Array.from({ length: count }, () => this.read(RBR)));
  }
}

/** A port that goes on where another was, by way of bytes. */
const moved = (from: Port): Port => {
  const to = new Port();
  to.serial.restore(parseSerialState(decodeState(encodeState(from.serial.save()))));
  return to;
};

describe('the state of a serial port', () => {
  it('has all registers', () => {
    const from = new Port();
    from.write(LCR, 0x80);
    from.write(0, 0x34);
    from.write(1, 0x12);
    from.write(LCR, 0x1b);
    from.write(IER, 0x0d);
    from.write(FCR, 0xc1);
    from.write(MCR, 0x0b);
    from.write(SCR, 0xa5);
    const to = moved(from);
    expect([IER, IIR, LCR, MCR, LSR, MSR, SCR].map((offset) => to.read(offset))).toEqual([
      0x0d, 0xc1, 0x1b, 0x0b, 0x60, 0xb0, 0xa5,
    ]);
    to.write(LCR, 0x80);
    expect([to.read(0), to.read(1)]).toEqual([0x34, 0x12]);
  });

  it('has what was received and what waits, ahead of what has come to the new port', () => {
    const from = new Port();
    from.write(FCR, 0x01);
    from.type('abcdefghijklmnopqrst');
    expect(from.text(3)).toBe('abc');
    const to = new Port();
    to.type('XYZ');
    to.serial.restore(from.serial.save());
    expect(to.text(20)).toBe('defghijklmnopqrstXYZ');
    expect(to.read(LSR)).toBe(0x60);
  });

  it('raises an interrupt again that was high, and none that was not', () => {
    const from = new Port();
    from.write(IER, 0x01);
    expect(moved(from).interrupts).toBe(0);
    from.type('a');
    const to = moved(from);
    expect(to.interrupts).toBe(1);
    expect(to.read(IIR)).toBe(0x04);
    expect(to.text(1)).toBe('a');
    expect(to.read(IIR)).toBe(0x01);
  });

  it('has causes that were not told yet: empty transmitter, overrun, modem lines', () => {
    const from = new Port();
    from.write(IER, 0x02);
    expect(moved(from).read(IIR)).toBe(0x02);

    const overrun = new Port();
    overrun.write(MCR, 0x10);
    overrun.write(0, 0x31);
    overrun.write(0, 0x32);
    expect(moved(overrun).read(LSR)).toBe(0x63);

    const lines = new Port();
    lines.write(MCR, 0x12);
    expect(moved(lines).read(MSR)).toBe(lines.read(MSR));
  });

  it('holds input back that is too much for it', () => {
    const from = new Port();
    expect(from.serial.holdsBack).toBe(false);
    expect(from.type('a'.repeat(5000))).toBe(false);
    const to = moved(from);
    expect(to.serial.holdsBack).toBe(true);
    let wanted = 0;
    to.serial.onWanted = () => {
      wanted += 1;
    };
    expect(to.text(5000)).toBe('a'.repeat(5000));
    expect([wanted, to.serial.holdsBack]).toEqual([1, false]);
  });

  it.each([
    [undefined, 'serial: nothing: not an object'],
    [{ fifo: new Uint8Array(17) }, 'serial: fifo: 17 bytes, at most 16 are possible'],
    [{ waiting: new Uint8Array(2 ** 21 + 1) }, 'serial: waiting: 2097153 bytes, at most 2097152 are possible'],
    [{ divisor: 65_536 }, 'serial: divisor: 65536: not a whole number between 0 and 65535'],
    [{ ier: 16 }, 'serial: ier: 16: not a whole number between 0 and 15'],
    [{ mcr: -1 }, 'serial: mcr: -1: not a whole number between 0 and 31'],
    [{ overrun: 1 }, 'serial: overrun: 1: not true or false'],
  ])('is refused when it cannot be: %j', (change, sentence) => {
    const port = new Port();
    const state = change === undefined ? undefined : { ...port.serial.save(), ...change };
    expect(() => parseSerialState(state)).toThrow(sentence);
  });
});
