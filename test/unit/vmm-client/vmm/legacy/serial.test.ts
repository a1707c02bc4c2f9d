import { beforeEach, describe, expect, it } from 'vitest';
import { Serial } from '../../../../../vmm-client/vmm/legacy/serial.ts';

// Registers and bits by their numbers, from linux/serial_reg.h.
const RBR = 0;
const THR = 0;
const IER = 1;
const IIR = 2;
const FCR = 2;
const LCR = 3;
const MCR = 4;
const LSR = 5;
const MSR = 6;
const SCR = 7;

let sent: number[];
let interrupts: number;
let serial: Serial;
let hold: Promise<void> | undefined;

beforeEach(() => {
  sent = [];
  interrupts = 0;
  hold = undefined;
  serial = new Serial({
    raise: () => {
      interrupts += 1;
    },
    transmit: (byte) => {
      sent.push(byte);
      return hold;
    },
  });
});

const read = (offset: number): number => serial.read(offset, 1);
const write = (offset: number, value: number) => serial.write(offset, 1, value);
const type = (text: string): boolean => serial.receive(Buffer.from(text));
const readText = (count: number): string => String.fromCharCode(...Array.from({ length: count }, () => read(RBR)));

describe('after reset', () => {
  it('the registers are those of an idle 16550 with a terminal at it', () => {
    expect([IER, IIR, LCR, MCR, LSR, MSR, SCR].map(read)).toEqual([0, 0x01, 0, 0, 0x60, 0xb0, 0]);
  });

  it('scratch register, line control and divisor keep what is written', () => {
    write(SCR, 0xa5);
    write(LCR, 0x83);
    write(0, 0x01);
    write(1, 0x02);
    expect([read(0), read(1), read(LCR), read(SCR)]).toEqual([0x01, 0x02, 0x83, 0xa5]);

    write(LCR, 0x03);
    expect([read(1), read(LCR)]).toEqual([0, 0x03]);
    expect(sent).toEqual([]);
  });

  it('a wide access is split, the lowest byte first', () => {
    serial.write(THR, 2, 0x0f41);
    expect([sent, read(IER)]).toEqual([[0x41], 0x0f]);
    expect(serial.read(LCR, 4)).toBe(0xb0_60_00_00);
  });
});

describe('what the 8250 driver does to find out what it has', () => {
  it('IER keeps four bits and no fifth', () => {
    write(IER, 0);
    expect(read(IER) & 0x0f).toBe(0);
    write(IER, 0xff);
    expect(read(IER)).toBe(0x0f);
  });

  it('loopback leads DTR, RTS, OUT1, OUT2 to DSR, CTS, RI, DCD', () => {
    write(MCR, 0x10 | 0x08 | 0x02);
    expect(read(MSR) & 0xf0).toBe(0x90);
    write(MCR, 0x10 | 0x04 | 0x01);
    expect(read(MSR) & 0xf0).toBe(0x60);
    write(MCR, 0);
    expect(read(MSR) & 0xf0).toBe(0xb0);
  });

  it('FIFOs show in IIR when they are on, and are those of a 16550A, not of its successors', () => {
    write(FCR, 0x01);
    expect(read(IIR) >> 6).toBe(3);
    // A 16650 and later have registers behind LCR 0x80 and 0xbf that read as zero; a 16750 shows 64 bytes in bit 5.
    for (const lcr of [0x80, 0xbf]) {
      write(LCR, lcr);
      expect(read(IIR)).not.toBe(0);
      write(FCR, 0x01 | 0x20);
      expect(read(IIR) >> 5).toBe(6);
    }
    write(LCR, 0);
    write(FCR, 0);
    expect(read(IIR)).toBe(0x01);
  });

  it('an enabled transmitter interrupt comes at once, and again when it is enabled again', () => {
    write(IER, 0x02);
    expect([interrupts, read(IIR)]).toEqual([1, 0x02]);
    expect(read(IIR)).toBe(0x01);
    write(IER, 0);
    write(IER, 0x02);
    expect([interrupts, read(IIR)]).toEqual([2, 0x02]);
  });
});

describe('the transmitter', () => {
  it('sends every byte, in order, and is empty again', () => {
    for (const byte of [0, 0x41, 0xff]) {
      write(THR, byte);
      expect(read(LSR)).toBe(0x60);
    }
    expect(sent).toEqual([0, 0x41, 0xff]);
    expect(interrupts).toBe(0);
  });

  it('interrupts after each byte; reading IIR takes the interrupt back', () => {
    write(IER, 0x02);
    read(IIR);
    write(THR, 0x41);
    expect([interrupts, read(IIR), read(IIR)]).toEqual([2, 0x02, 0x01]);
    write(THR, 0x42);
    write(THR, 0x43);
    expect(interrupts).toBe(4);
  });

  it('writing the same IER again is no new interrupt', () => {
    write(IER, 0x02);
    read(IIR);
    write(IER, 0x02);
    expect([interrupts, read(IIR)]).toEqual([1, 0x01]);
  });

  it('makes the guest wait while the host takes no more', async () => {
    hold = Promise.resolve();
    expect(write(THR, 0x41)).toBe(hold);
    hold = undefined;
    expect(write(THR, 0x42)).toBeUndefined();
  });
});

describe('the receiver', () => {
  it('shows data in LSR and interrupts until it is read', () => {
    write(IER, 0x01);
    type('a');
    expect([interrupts, read(IIR), read(IIR), read(LSR)]).toEqual([1, 0x04, 0x04, 0x61]);
    expect(read(RBR)).toBe(0x61);
    expect([read(IIR), read(LSR), read(RBR)]).toEqual([0x01, 0x60, 0]);
  });

  it('without FIFOs hands over one byte at a time, an interrupt each', () => {
    write(IER, 0x01);
    type('abc');
    expect(readText(3)).toBe('abc');
    expect(interrupts).toBe(3);
  });

  it.each([
    [0x01, 1],
    [0x41, 4],
    [0x81, 8],
    [0xc1, 14],
  ])('with FCR 0x%s tells data of the trigger level from fewer, which time out', (fcr, level) => {
    write(FCR, fcr);
    write(IER, 0x01);
    type('x'.repeat(level));
    expect(read(IIR)).toBe(0xc4);
    read(RBR);
    expect(read(IIR)).toBe(level === 1 ? 0xc1 : 0xcc);
  });

  it('brings more than the FIFO holds without losing any, and asks for more when all was read', () => {
    let wanted = 0;
    serial.onWanted = () => {
      wanted += 1;
    };
    write(FCR, 0x01);
    const text = Array.from({ length: 5000 }, (_, i) => String.fromCharCode(97 + (i % 26))).join('');
    expect(type('ab')).toBe(true);
    expect(type(text)).toBe(false);
    expect(readText(5002 - 17)).toBe(`ab${text}`.slice(0, -17));
    expect(wanted).toBe(0);
    expect(readText(17)).toBe(text.slice(-17));
    expect([wanted, read(LSR)]).toEqual([1, 0x60]);
    expect(type('')).toBe(true);
  });

  it('asks for more when the last of it came with a FIFO that was switched on', () => {
    let wanted = 0;
    serial.onWanted = () => {
      wanted += 1;
    };
    expect(type('x'.repeat(4100))).toBe(false);
    readText(4090);
    expect(wanted).toBe(0);
    write(FCR, 0x01);
    expect(wanted).toBe(1);
  });

  it('clearing the FIFO loses its bytes and no others', () => {
    write(FCR, 0x01);
    type('0123456789abcdefREST');
    write(FCR, 0x03);
    expect(readText(4)).toBe('REST');
  });

  it('turning FIFOs off clears them', () => {
    write(FCR, 0x01);
    type('0123456789abcdef!');
    write(FCR, 0);
    expect([readText(1), read(LSR)]).toEqual(['!', 0x60]);
  });

  it('interrupts at once when it is enabled with data there', () => {
    type('a');
    expect(interrupts).toBe(0);
    write(IER, 0x01);
    expect(interrupts).toBe(1);
  });
});

describe('loopback', () => {
  it('brings what is sent back and keeps it from the host, and the host away', () => {
    write(FCR, 0x01);
    write(MCR, 0x10);
    write(THR, 0x5a);
    type('host');
    expect([read(LSR), read(RBR), read(LSR)]).toEqual([0x61, 0x5a, 0x60]);
    write(MCR, 0);
    expect([readText(4), sent]).toEqual(['host', []]);
  });

  it('overruns when nobody reads, which is a line status interrupt until LSR is read', () => {
    write(IER, 0x05);
    write(MCR, 0x10);
    write(THR, 1);
    write(THR, 2);
    expect([read(IIR), read(LSR), read(LSR), read(IIR)]).toEqual([0x06, 0x63, 0x61, 0x04]);
  });

  it('counts a modem line that changed until MSR is read, and the trailing edge only of RI', () => {
    write(IER, 0x08);
    write(MCR, 0x1f);
    expect([interrupts, read(IIR), read(MSR), read(MSR), read(IIR)]).toEqual([0, 0x01, 0xf0, 0xf0, 0x01]);
    write(MCR, 0x10);
    expect([interrupts, read(IIR), read(MSR), read(MSR)]).toEqual([1, 0x00, 0x0f, 0x00]);
  });
});

describe('priorities', () => {
  it('line status before data before transmitter before modem', () => {
    write(MCR, 0x10);
    write(THR, 1);
    write(THR, 2);
    write(IER, 0x0f);
    expect(read(IIR)).toBe(0x06);
    read(LSR);
    expect(read(IIR)).toBe(0x04);
    read(RBR);
    expect(read(IIR)).toBe(0x02);
    expect(read(IIR)).toBe(0x00);
    read(MSR);
    expect(read(IIR)).toBe(0x01);
    expect(interrupts).toBe(1);
  });
});

it('is as new after a reset, but for what has not come over the line', () => {
  type('abc');
  write(FCR, 0x01);
  for (const [register, value] of [
    [LCR, 0x83],
    [0, 1],
    [LCR, 0x03],
    [IER, 0x0f],
    [MCR, 0x1f],
    [SCR, 0x5a],
  ] as const) {
    write(register, value);
  }
  const before = interrupts;
  serial.reset();
  expect([IER, IIR, LCR, MCR, SCR].map(read)).toEqual([0, 0x01, 0, 0, 0]);
  expect(read(MSR)).toBe(0xb0);
  write(LCR, 0x80);
  expect(read(0)).toBe(12);
  write(LCR, 0);
  expect(interrupts).toBe(before);
  // Whatever was pending before, the next cause is an edge.
  write(IER, 0x02);
  expect(interrupts).toBe(before + 1);
});
