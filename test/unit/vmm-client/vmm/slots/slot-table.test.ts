import { describe, expect, it } from 'vitest';
import type { FilledSlot } from '../../../../../vmm-client/vmm/slots/filled-slot.ts';
import type { PlannedDevice } from '../../../../../vmm-client/vmm/slots/plan.ts';
import { SlotTable } from '../../../../../vmm-client/vmm/slots/slot-table.ts';

const anyDevice = { kind: 'disk', id: 'a' } as PlannedDevice;
const fixedAt = (slot: number): PlannedDevice => ({ ...anyDevice, id: 'fixed', slot }) as PlannedDevice;
const slotOf = (index: number, id: string): FilledSlot => ({ index, id }) as FilledSlot;
const any = (): boolean => true;

describe('slots', () => {
  it('are taken from the first, around those that somebody has to have', () => {
    const table = new SlotTable();
    expect(table.take(fixedAt(18), any)).toBe(18);
    expect(table.take(fixedAt(1), any)).toBe(1);
    expect([table.take(anyDevice, any), table.take(anyDevice, any)]).toEqual([0, 2]);
    expect(() => table.take(fixedAt(1), any)).toThrow('device "fixed": slot 1 is not free');
    expect(() => table.take(fixedAt(19), any)).toThrow('device "fixed": slot 19 is not free');
  });

  it('that were used come after those that were not, the one longest empty first', () => {
    const table = new SlotTable();
    for (let slot = 0; slot < 17; slot++) table.take(anyDevice, any);
    for (const slot of [5, 3]) table.release(slot);
    expect(Array.from({ length: 4 }, () => table.take(anyDevice, any))).toEqual([17, 18, 5, 3]);
    expect(() => table.take(anyDevice, any)).toThrow('device "a": none of the 19 slots is free');
  });

  it('are as new for a new guest, and as before when one was taken in vain', () => {
    const table = new SlotTable();
    for (let slot = 0; slot < 3; slot++) table.take(anyDevice, any);
    table.release(1);
    table.giveBack(table.take(anyDevice, any));
    expect(table.take(anyDevice, any)).toBe(3);
    table.forgetUse();
    expect(table.take(anyDevice, any)).toBe(1);
  });

  it('are found by their devices, in their order', () => {
    const table = new SlotTable();
    for (const [index, id] of [
      [4, 'b'],
      [2, 'a'],
    ] as const) {
      table.put(slotOf(table.take(fixedAt(index), any), id));
    }
    expect(table.filled.map(({ id }) => id)).toEqual(['a', 'b']);
    expect([table.find('b').index, table.at(4)?.id, table.at(3)]).toEqual([4, 'b', undefined]);
    table.empty(4);
    expect(() => table.find('b')).toThrow(expect.objectContaining({ code: 'VM_NOT_FOUND' }));
    // Empty, and not free before it is released.
    expect(() => table.take(fixedAt(4), any)).toThrow('not free');
  });

  it('are only those that suit the device', () => {
    const table = new SlotTable();
    expect(table.take(anyDevice, (slot) => slot > 6)).toBe(7);
    expect(() => table.take(anyDevice, () => false)).toThrow(/none of the 19 slots that the guest knows .* is free/);
  });
});
