import { beforeEach, describe, expect, it } from 'vitest';
import { allocatePinned } from '../../../../../protocol/sys/pinned.ts';
import { HotplugRegisters } from '../../../../../vmm-client/vmm/hotplug/hotplug-registers.ts';

const page = allocatePinned(4096);
let raised: number;
let ejected: number[];
let registers: HotplugRegisters;

/** PRESENT, ADDED and REMOVING as a guest reads them, from the page. */
const bitmaps = (): number[] => [0x00, 0x04, 0x08].map((offset) => page.data.getUint32(offset, true));

beforeEach(() => {
  raised = 0;
  ejected = [];
  page.bytes.fill(0xff);
  registers = new HotplugRegisters(page, { raise: () => (raised += 1), eject: (slot) => void ejected.push(slot) });
});

describe('the registers of hotplug', () => {
  it('are zero in an empty machine', () => {
    expect(page.bytes.every((byte) => byte === 0)).toBe(true);
    expect(raised).toBe(0);
  });

  it('show what a guest finds at its start without an interrupt', () => {
    registers.showPresent(0);
    registers.showPresent(18);
    expect(bitmaps()).toEqual([0x40001, 0, 0]);
    expect(raised).toBe(0);
  });

  it('tell of a device that came until the guest has acknowledged it', () => {
    registers.add(3);
    registers.add(18);
    expect(bitmaps()).toEqual([0x40008, 0x40008, 0]);
    expect([raised, registers.isAdded(3), registers.isAdded(4)]).toEqual([2, true, false]);
    registers.write(0x0c, 4, 8);
    expect(bitmaps()).toEqual([0x40008, 0x40000, 0]);
    expect(registers.isAdded(3)).toBe(false);
  });

  it('tell of a device that is wanted back, each time anew', () => {
    registers.showPresent(2);
    registers.requestRemoval(2);
    registers.write(0x10, 4, 0xffff_ffff);
    expect([bitmaps(), registers.isRemoving(2), raised]).toEqual([[4, 0, 0], false, 1]);
    registers.requestRemoval(2);
    expect([bitmaps(), registers.isRemoving(2), raised]).toEqual([[4, 0, 4], true, 2]);
  });

  it('tell that the power button was pressed until the guest has acknowledged it', () => {
    const buttons = (): number => page.data.getUint32(0x18, true);
    registers.pressPowerButton();
    registers.pressPowerButton();
    expect([buttons(), registers.isPowerButtonPressed, raised]).toEqual([1, true, 2]);
    registers.write(0x1c, 4, 2);
    expect(registers.isPowerButtonPressed).toBe(true);
    registers.write(0x1c, 4, 1);
    expect([buttons(), registers.isPowerButtonPressed]).toEqual([0, false]);
    registers.pressPowerButton();
    registers.reset();
    expect([buttons(), registers.isPowerButtonPressed]).toEqual([0, false]);
  });

  it('pass on which slot is ejected, and forget it when it is empty', () => {
    registers.add(2);
    registers.requestRemoval(2);
    registers.write(0x14, 4, 2);
    registers.write(0x14, 4, 0xffff_ffff);
    expect(ejected).toEqual([2, 0xffff_ffff]);
    registers.remove(2);
    expect(bitmaps()).toEqual([0, 0, 0]);
  });

  it('keep a vCPU waiting that ejects until the device is gone', async () => {
    const gone = Promise.resolve();
    const slow = new HotplugRegisters(page, { raise: () => undefined, eject: () => gone });
    expect(slow.write(0x14, 4, 0)).toBe(gone);
  });

  it('keep what is there over a reset, and not what was told of it', () => {
    registers.add(1);
    registers.requestRemoval(1);
    registers.reset();
    expect(bitmaps()).toEqual([2, 0, 0]);
  });

  it.each<[string, number, number, number]>([
    ['PRESENT', 0x00, 4, 0],
    ['ADDED', 0x04, 4, 0xffff_ffff],
    ['REMOVING', 0x08, 4, 0xffff_ffff],
    ['what lies behind them', 0x18, 4, 1],
    ['the end of the page', 0xffc, 4, 1],
    ['a byte of ACKNOWLEDGE_ADDED', 0x0c, 1, 2],
    ['two bytes of EJECT', 0x14, 2, 1],
    ['EJECT beside its start', 0x16, 4, 1],
  ])('do not change by a write to %s', (_, offset, size, value) => {
    registers.add(1);
    registers.requestRemoval(1);
    registers.write(offset, size, value);
    expect([bitmaps(), ejected]).toEqual([[2, 2, 2], []]);
  });

  it('are read in pieces where the page cannot be shown', () => {
    registers.add(9);
    expect([registers.read(0, 4), registers.read(0, 2), registers.read(1, 1)]).toEqual([0x200, 0x200, 2]);
  });
});
