import { describe, expect, it } from 'vitest';
import { VmError } from '../../../../../vmm-client/vmm/errors.ts';
import type { HotplugRegisters } from '../../../../../vmm-client/vmm/hotplug/hotplug-registers.ts';
import type { FilledSlot } from '../../../../../vmm-client/vmm/slots/filled-slot.ts';
import { restoreSlots } from '../../../../../vmm-client/vmm/slots/moving.ts';
import { parseSlotsState } from '../../../../../vmm-client/vmm/slots/slots-state.ts';

const slot = { slot: 3, id: 'a', isAdded: true, isRemoving: false, isRemovalRequested: true, transport: { x: 1n } };

describe('a state of slots', () => {
  it('is what it was', () => {
    const state = { slots: [slot, { ...slot, slot: 18, id: 'b' }], endpoints: [0, 18], isPowerButtonPressed: true };
    expect(parseSlotsState(state)).toEqual(state);
    expect(parseSlotsState({ slots: [], endpoints: [], isPowerButtonPressed: false })).toEqual({
      slots: [],
      endpoints: [],
      isPowerButtonPressed: false,
    });
  });

  it.each<[string, unknown]>([
    ['nothing', undefined],
    ['a list', []],
    ['no slots', { endpoints: [], isPowerButtonPressed: false }],
    ['no endpoints', { slots: [], isPowerButtonPressed: false }],
    ['no button', { slots: [], endpoints: [] }],
    ['a slot that is none', { slots: [{ ...slot, slot: 19 }], endpoints: [], isPowerButtonPressed: false }],
    ['half a slot', { slots: [{ ...slot, slot: 0.5 }], endpoints: [], isPowerButtonPressed: false }],
    ['two in one', { slots: [slot, { ...slot, id: 'b' }], endpoints: [], isPowerButtonPressed: false }],
    ['an id that is no text', { slots: [{ ...slot, id: 1 }], endpoints: [], isPowerButtonPressed: false }],
    ['a flag that is none', { slots: [{ ...slot, isRemoving: 0 }], endpoints: [], isPowerButtonPressed: false }],
    [
      'twenty slots',
      {
        slots: Array.from({ length: 20 }, (_, n) => ({ ...slot, slot: n })),
        endpoints: [],
        isPowerButtonPressed: false,
      },
    ],
    ['an endpoint that is no slot', { slots: [], endpoints: [-1] }],
    ['null', { slots: [null], endpoints: [], isPowerButtonPressed: false }],
  ])('with %s is refused', (_, state) => {
    expect(() => parseSlotsState(state)).toThrow(
      expect.objectContaining({ code: 'VM', message: expect.stringMatching(/^slots/) }),
    );
  });
});

describe('slots that are restored', () => {
  it('are all done with it when one fails', async () => {
    let done = false;
    const of = (index: number, id: string, restore: () => Promise<void>) =>
      ({ index, id, planned: { kind: 'disk' }, transport: { restore } }) as unknown as FilledSlot;
    const slots = [
      of(3, 'a', async () => {
        throw new VmError('not this disk');
      }),
      of(4, 'b', async () => {
        await new Promise((resolve) => setImmediate(resolve));
        done = true;
      }),
    ];
    const { slots: states } = parseSlotsState({
      slots: [slot, { ...slot, slot: 4, id: 'b' }],
      endpoints: [],
      isPowerButtonPressed: false,
    });

    await expect(restoreSlots(slots, states, {} as HotplugRegisters)).rejects.toThrow('not this disk');

    expect(done).toBe(true);
  });
});
