/**
 * What is done to all devices of a machine at once, mostly because it moves or grows. Where one fails the others are as
 * before.
 */

import type { SharedRegion } from '../../frontend/hand-over.ts';
import { VmError } from '../errors.ts';
import type { HotplugRegisters } from '../hotplug/hotplug-registers.ts';
import type { FilledSlot } from './filled-slot.ts';
import { isLocal } from './plan.ts';
import type { SlotState } from './slots-state.ts';

type Slots = readonly FilledSlot[];

/** Does `step` to all of them, and where one fails `undo` to those that it was done to. @throws - what the first threw */
async function allOrNone<T>(
  slots: Slots,
  step: (slot: FilledSlot) => Promise<T>,
  undo: (slot: FilledSlot) => Promise<void>,
): Promise<T[]> {
  const results = await Promise.allSettled(slots.map(step));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) {
    await Promise.allSettled(slots.filter((_, n) => results[n]?.status === 'fulfilled').map(undo));
    throw failed.reason;
  }
  return results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
}

/** Stops all devices. @throws VmError - one does not stop; the others have gone on */
export async function suspendSlots(slots: Slots, hotplug: HotplugRegisters): Promise<SlotState[]> {
  const states = await allOrNone<unknown>(
    slots,
    ({ transport }) => transport.suspend(),
    ({ transport }) => transport.resume(),
  );
  return slots.map(({ index, id, isRemovalRequested }, n) => ({
    slot: index,
    id,
    isAdded: hotplug.isAdded(index),
    isRemoving: hotplug.isRemoving(index),
    isRemovalRequested,
    transport: states[n],
  }));
}

/**
 * Lets devices that were only opened go on where others were suspended: an IOMMU first, as the others need what it maps.
 * @throws VmError - a state is of a device that is not there, or does not fit; none is being restored any more
 */
export async function restoreSlots(
  slots: Slots,
  states: readonly SlotState[],
  hotplug: HotplugRegisters,
): Promise<void> {
  const pairs = states.map((state) => {
    const slot = slots.find(({ index }) => index === state.slot);
    if (slot?.id === state.id) return { slot, state };
    throw new VmError(`slot ${state.slot}: the state is of device "${state.id}", which is not there`);
  });
  const restore = async (isIommu: boolean): Promise<void> => {
    const these = pairs.filter(({ slot }) => (slot.planned.kind === 'iommu') === isIommu);
    const results = await Promise.allSettled(these.map(({ slot, state }) => slot.transport.restore(state.transport)));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  };
  await restore(true);
  await restore(false);
  for (const { slot, state } of pairs) {
    slot.isRemovalRequested = state.isRemovalRequested;
    if (state.isAdded) hotplug.add(slot.index);
    if (state.isRemoving) hotplug.requestRemoval(slot.index);
  }
}

/** @throws VmError - a device cannot note what it writes; none does */
export async function startDirtyLogs(slots: Slots): Promise<void> {
  await allOrNone(
    slots,
    ({ transport }) => transport.startDirtyLog(),
    ({ transport }) => transport.stopDirtyLog(),
  );
}

/** Those that the VMM serves itself map memory for the others. The memory device, where it comes from, is not told. */
function byDepth(slots: Slots): [remote: Slots, local: Slots] {
  const told = slots.filter(({ planned }) => planned.kind !== 'mem');
  return [told.filter(({ planned }) => !isLocal(planned)), told.filter(({ planned }) => isLocal(planned))];
}

/** Tells all devices of RAM that was added to the guest's. @throws VmError - one cannot have it; none has it then */
export async function addMemoryToAll(slots: Slots, region: SharedRegion): Promise<void> {
  const add = ({ transport }: FilledSlot): Promise<void> => transport.addMemory(region);
  const remove = ({ transport }: FilledSlot): Promise<void> => transport.removeMemory(region);
  const [remote, local] = byDepth(slots);
  await allOrNone(remote, add, remove);
  try {
    await allOrNone(local, add, remove);
  } catch (error) {
    await Promise.all(remote.map(remove));
    throw error;
  }
}

export async function removeMemoryFromAll(slots: Slots, region: SharedRegion): Promise<void> {
  const [remote, local] = byDepth(slots);
  for (const each of [local, remote]) await Promise.all(each.map(({ transport }) => transport.removeMemory(region)));
}
