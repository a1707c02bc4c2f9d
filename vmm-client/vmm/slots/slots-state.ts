/** What the slots of a machine take along to another one. It may come from a file or a peer: checked here. */

import { VmError } from '../errors.ts';
import { MAX_VIRTIO_DEVICES } from '../layout.ts';
import { fieldsOf, flagOf, integerOf, listOf, textOf } from '../state/codec.ts';

export interface SlotState {
  readonly slot: number;
  readonly id: string;
  /** What the guest has not acknowledged: that the device came, that it is wanted back. */
  readonly isAdded: boolean;
  readonly isRemoving: boolean;
  readonly isRemovalRequested: boolean;
  /** What `VirtioMmioTransport.restore` takes. */
  readonly transport: unknown;
}

export interface SlotsState {
  /** Filled ones. */
  readonly slots: readonly SlotState[];
  /** Slots that the guest's tables have as endpoints of the IOMMU. */
  readonly endpoints: readonly number[];
  /** What the guest has not acknowledged, which is told by the registers of the slots. */
  readonly isPowerButtonPressed: boolean;
}

const SLOT = { maximum: MAX_VIRTIO_DEVICES - 1 };

/** @throws VmError - it is none, or has two devices in one slot */
export function parseSlotsState(value: unknown): SlotsState {
  const state = fieldsOf(value, 'slots');
  const slots = listOf(state.slots, 'slots.slots', MAX_VIRTIO_DEVICES).map((each, n): SlotState => {
    const what = `slots.slots[${n}]`;
    const fields = fieldsOf(each, what);
    return {
      slot: integerOf(fields.slot, `${what}.slot`, SLOT),
      id: textOf(fields.id, `${what}.id`),
      isAdded: flagOf(fields.isAdded, `${what}.isAdded`),
      isRemoving: flagOf(fields.isRemoving, `${what}.isRemoving`),
      isRemovalRequested: flagOf(fields.isRemovalRequested, `${what}.isRemovalRequested`),
      transport: fields.transport,
    };
  });
  for (const { slot } of slots) {
    if (slots.filter((other) => other.slot === slot).length > 1)
      throw new VmError(`slots: two devices in slot ${slot}`);
  }
  const endpoints = listOf(state.endpoints, 'slots.endpoints', MAX_VIRTIO_DEVICES);
  return {
    slots,
    endpoints: endpoints.map((each, n) => integerOf(each, `slots.endpoints[${n}]`, SLOT)),
    isPowerButtonPressed: flagOf(state.isPowerButtonPressed, 'slots.isPowerButtonPressed'),
  };
}
