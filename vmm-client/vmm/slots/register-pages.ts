/**
 * The memory of all pages of registers: those of the slots, one after the other as the guest sees them, and the one of
 * hotplug. One machine at a time runs in a process, and memory with a fixed address is not given back: its pages are used
 * again.
 */

import type { KvmVm } from '../../../protocol/sys/kvm.ts';
import { allocatePinned, PinnedMemory } from '../../../protocol/sys/pinned.ts';
import { HOTPLUG_ADDRESS, MAX_VIRTIO_DEVICES, PAGE_BYTES, VIRTIO_MMIO_ADDRESS } from '../layout.ts';

const SLOTS_BYTES = MAX_VIRTIO_DEVICES * PAGE_BYTES;
// So large that it is a mapping of its own, and begins where a page does.
const all = allocatePinned(SLOTS_BYTES + PAGE_BYTES);

function pageAt(offset: number): PinnedMemory {
  return new PinnedMemory(all.address + offset, all.bytes.buffer as ArrayBuffer, offset, PAGE_BYTES);
}

/** By slot. */
export const SLOT_PAGES: readonly PinnedMemory[] = Array.from({ length: MAX_VIRTIO_DEVICES }, (_, slot) =>
  pageAt(slot * PAGE_BYTES),
);
export const HOTPLUG_PAGE = pageAt(SLOTS_BYTES);

/** Lets a virtual machine read all of them without an exit; what it writes exits. */
export function showPages(vm: KvmVm): void {
  vm.addMemory(VIRTIO_MMIO_ADDRESS, SLOTS_BYTES, all.address, true);
  vm.addMemory(HOTPLUG_ADDRESS, PAGE_BYTES, HOTPLUG_PAGE.address, true);
}

/** What a read of `size` bytes (1, 2 or 4) finds, which is inside the page. */
export function readPage({ data }: PinnedMemory, offset: number, size: number): number {
  if (size === 4) return data.getUint32(offset, true);
  return size === 2 ? data.getUint16(offset, true) : data.getUint8(offset);
}
