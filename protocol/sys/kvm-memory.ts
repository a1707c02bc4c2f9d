/**
 * The memory slots of a virtual machine: which bytes of this process the guest has at which of its addresses, and which of
 * its pages KVM and the guest have written. Source: Linux, Documentation/virt/kvm/api.rst, 4.35
 * KVM_SET_USER_MEMORY_REGION, 4.8 KVM_GET_DIRTY_LOG; linux/kvm.h.
 *
 *     struct kvm_userspace_memory_region   slot u32 @0, flags u32 @4, guest_phys_addr @8, memory_size @16, userspace_addr @24
 *     struct kvm_dirty_log                 slot u32 @0, dirty_bitmap (address) @8
 *
 * The log is taken by KVM_GET_DIRTY_LOG as it always was: one call copies a slot's bitmap, clears it and protects the
 * pages again. KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 would split that, so that a page is protected only right before it is
 * sent: fewer pages are sent twice, but whoever takes the log would have to say page by page when it has read them, and
 * nobody else who logs (vhost-user, the VMM's own devices) can do that. Without it a page that is written between log and
 * copy is in the next log too: sent once too often, never missed.
 */

import { appendDirtyRanges, DIRTY_PAGE_BYTES, type DirtyRange } from './dirty-pages.ts';
import { kvmIoctl } from './kvm-ioctl.ts';
import { allocatePinned, discardPinned, type PinnedMemory } from './pinned.ts';

const KVM_SET_USER_MEMORY_REGION = 0x4020_ae46;
const KVM_GET_DIRTY_LOG = 0x4010_ae42;
const KVM_MEM_LOG_DIRTY_PAGES = 1;
const KVM_MEM_READONLY = 2;
/** KVM writes bitmaps in words of 64 bits. */
const PAGES_PER_BITMAP_WORD = 64;
const SMALLEST_BITMAP_BYTES = 4096;

const scratch = allocatePinned(32);

/** For the log of one slot at a time. Never freed, so it grows by doubling. */
let bitmap: PinnedMemory | undefined;

function bitmapOf(pages: number): PinnedMemory {
  const wanted = Math.ceil(pages / PAGES_PER_BITMAP_WORD) * 8;
  let length = bitmap?.length ?? SMALLEST_BITMAP_BYTES;
  if (bitmap !== undefined && wanted <= length) return bitmap;
  while (length < wanted) length *= 2;
  if (bitmap !== undefined) discardPinned(bitmap);
  bitmap = allocatePinned(length);
  return bitmap;
}

interface MemorySlot {
  readonly number: number;
  readonly guestAddress: number;
  readonly length: number;
  readonly hostAddress: number;
  readonly readOnly: boolean;
}

export class MemorySlots {
  readonly #vmFd: number;
  readonly #slots = new Map<number, MemorySlot>();
  #isLogging = false;

  constructor(vmFd: number) {
    this.#vmFd = vmFd;
  }

  /** Returns the slot's number, the first that is free. @throws SysError - KVM refuses: an overlap, no slots left */
  add(guestAddress: number, length: number, hostAddress: number, readOnly: boolean): number {
    let number = 0;
    while (this.#slots.has(number)) number += 1;
    const slot = { number, guestAddress, length, hostAddress, readOnly };
    this.#set(slot, length, this.#isLogging);
    this.#slots.set(number, slot);
    return number;
  }

  /** @throws RangeError - there is no such slot (our mistake) */
  remove(number: number): void {
    const slot = this.#slots.get(number);
    if (slot === undefined) throw new RangeError(`memory slot ${number}: not in use`);
    this.#set(slot, 0, false);
    this.#slots.delete(number);
  }

  startDirtyLog(): void {
    if (this.#isLogging) return;
    const started: MemorySlot[] = [];
    try {
      for (const slot of this.#writableSlots()) {
        this.#set(slot, slot.length, true);
        started.push(slot);
      }
    } catch (error) {
      for (const slot of started) this.#set(slot, slot.length, false);
      throw error;
    }
    this.#isLogging = true;
  }

  takeDirty(): DirtyRange[] {
    const ranges: DirtyRange[] = [];
    if (!this.#isLogging) return ranges;
    for (const { number, guestAddress, length } of this.#writableSlots()) {
      const pages = length / DIRTY_PAGE_BYTES;
      const { address, data } = bitmapOf(pages);
      scratch.bytes.fill(0);
      scratch.data.setUint32(0, number, true);
      scratch.setU64(8, address);
      // KVM writes the whole bitmap of the slot, whatever was there before.
      kvmIoctl(this.#vmFd, KVM_GET_DIRTY_LOG, scratch.address, `KVM_GET_DIRTY_LOG of slot ${number}`);
      const words = new Int32Array(data.buffer, data.byteOffset, Math.ceil(pages / PAGES_PER_BITMAP_WORD) * 2);
      appendDirtyRanges(words, pages, guestAddress, ranges);
    }
    return ranges;
  }

  stopDirtyLog(): void {
    if (!this.#isLogging) return;
    this.#isLogging = false;
    for (const slot of this.#writableSlots()) this.#set(slot, slot.length, false);
    if (bitmap !== undefined) discardPinned(bitmap);
  }

  #writableSlots(): MemorySlot[] {
    const writable = [...this.#slots.values()].filter(({ readOnly }) => !readOnly);
    return writable.sort((a, b) => a.guestAddress - b.guestAddress);
  }

  /** A length of 0 removes the slot. */
  #set({ number, guestAddress, hostAddress, readOnly }: MemorySlot, length: number, isLogged: boolean): void {
    scratch.data.setUint32(0, number, true);
    scratch.data.setUint32(4, readOnly ? KVM_MEM_READONLY : isLogged ? KVM_MEM_LOG_DIRTY_PAGES : 0, true);
    scratch.setU64(8, guestAddress);
    scratch.setU64(16, length);
    scratch.setU64(24, hostAddress);
    const what = `KVM_SET_USER_MEMORY_REGION of ${length} bytes at 0x${guestAddress.toString(16)}`;
    kvmIoctl(this.#vmFd, KVM_SET_USER_MEMORY_REGION, scratch.address, what);
  }
}
