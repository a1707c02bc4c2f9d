import { describe, expect, it } from 'vitest';
import { encodeRegs, patchSregs } from '../../../../../vmm-client/vmm/boot/registers.ts';
import {
  encodePageTables,
  START_MSRS,
  startState,
  startTables,
} from '../../../../../vmm-client/vmm/boot/start-state.ts';

const words = (bytes: Uint8Array): bigint[] => [...new BigUint64Array(bytes.slice().buffer)];

describe('the tables in memory', () => {
  // Intel SDM volume 3, 3.4.5: flat code (0x9b) and data (0x93) of 4 GiB, busy TSS (0x8b) of 0x68 bytes.
  it.each([
    ['linux64', 0x00af_9b00_0000_ffffn],
    ['pvh', 0x00cf_9b00_0000_ffffn],
  ] as const)('%s: a GDT with code at 0x10, data at 0x18 and a TSS at 0x20', (protocol, code) => {
    const gdt = startTables(protocol)[0];

    expect(gdt?.address).toBe(0x500);
    expect(words(gdt?.bytes ?? new Uint8Array())).toEqual([
      0n,
      0n,
      code,
      0x00cf_9300_0000_ffffn,
      0x0000_8b00_0000_0067n,
      0n,
    ]);
  });

  it('page tables map the first 4 GiB to themselves', () => {
    const entries = words(encodePageTables(0x9000));

    expect(entries.length).toBe(6 * 512);
    expect(entries.slice(0, 2)).toEqual([0xa003n, 0n]);
    expect(entries.slice(512, 517)).toEqual([0xb003n, 0xc003n, 0xd003n, 0xe003n, 0n]);
    expect([entries[1024], entries[1025], entries[1536], entries[3071]]).toEqual([
      0x83n,
      0x20_0083n,
      0x4000_0083n,
      0xffe0_0083n,
    ]);
  });

  it('PVH has no page tables', () => {
    expect(startTables('pvh').map(({ address }) => address)).toEqual([0x500]);
    expect(startTables('linux64').map(({ address }) => address)).toEqual([0x500, 0x9000]);
  });
});

describe('the registers as KVM takes them', () => {
  const at = (bytes: Uint8Array, offset: number): bigint => new DataView(bytes.buffer).getBigUint64(offset, true);

  it('general registers', () => {
    const regs = encodeRegs(startState('linux64', 0x100_0200));

    expect(regs.length).toBe(144);
    const expected = new Map([
      [32, 0x7000n],
      [48, 0x8ff0n],
      [128, 0x100_0200n],
      [136, 2n],
    ]);
    for (let offset = 0; offset < 144; offset += 8) {
      expect([offset, at(regs, offset)]).toEqual([offset, expected.get(offset) ?? 0n]);
    }
  });

  it('PVH: ebx leads to the start info', () => {
    const regs = encodeRegs(startState('pvh', 0x100_07d0));

    expect([at(regs, 8), at(regs, 32), at(regs, 128)]).toEqual([0x6000n, 0n, 0x100_07d0n]);
  });

  const hexOf = (bytes: Uint8Array, offset: number, length: number): string =>
    Buffer.from(bytes.slice(offset, offset + length)).toString('hex');

  // base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
  const CODE64 = `${'00'.repeat(8)}ffffffff10000b010000010101000000`;
  const CODE32 = `${'00'.repeat(8)}ffffffff10000b010001010001000000`;
  const DATA = `${'00'.repeat(8)}ffffffff180003010001010001000000`;
  const TSS = `${'00'.repeat(8)}6700000020000b010000000000000000`;
  const NO_LDT = `${'00'.repeat(8)}00000000000002000000000000000100`;

  it('64-bit protocol: long mode with paging, and what it does not name as it was', () => {
    const current = new Uint8Array(312).fill(0xaa);

    const sregs = patchSregs(current, startState('linux64', 0x100_0200));

    const segments = Array.from({ length: 8 }, (_, index) => hexOf(sregs, 24 * index, 24));
    expect(segments).toEqual([CODE64, DATA, DATA, DATA, DATA, DATA, TSS, NO_LDT]);
    expect([hexOf(sregs, 192, 10), hexOf(sregs, 208, 10)]).toEqual(['00050000000000002f00', '00'.repeat(10)]);
    expect(current.every((byte) => byte === 0xaa)).toBe(true);
    expect([224, 232, 240, 248, 264].map((offset) => at(sregs, offset))).toEqual([
      0x8000_0011n,
      0n,
      0x9000n,
      0x20n,
      0x500n,
    ]);
    expect(hexOf(sregs, 256, 8)).toBe('aa'.repeat(8));
    expect(hexOf(sregs, 272, 40)).toBe('aa'.repeat(40));
  });

  it('PVH: protected mode of 32 bits without paging', () => {
    const sregs = patchSregs(new Uint8Array(312), startState('pvh', 0x100_07d0));

    expect([hexOf(sregs, 0, 24), hexOf(sregs, 24, 24)]).toEqual([CODE32, DATA]);
    expect([224, 232, 240, 248, 264].map((offset) => at(sregs, offset))).toEqual([0x11n, 0n, 0n, 0n, 0n]);
  });
});

it('fast strings and write-back memory', () => {
  expect(START_MSRS).toEqual([
    { index: 0x1a0, value: 1n },
    { index: 0x2ff, value: 0x806n },
  ]);
});
