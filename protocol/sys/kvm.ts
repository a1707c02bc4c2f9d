/**
 * /dev/kvm: a virtual machine's memory slots, interrupt controllers, and the eventfds that connect it to the world without
 * passing through this process. Numbers and layouts: linux/kvm.h, asm/kvm.h (x86-64).
 */

import type { DirtyRange } from './dirty-pages.ts';
import { SysError } from './errors.ts';
import { kvmIoctl } from './kvm-ioctl.ts';
import { MemorySlots } from './kvm-memory.ts';
import { OwnedFd, openFile } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';
import { O_RDWR } from './storage.ts';

const KVM_GET_API_VERSION = 0xae00;
const KVM_CREATE_VM = 0xae01;
const KVM_CHECK_EXTENSION = 0xae03;
const KVM_GET_VCPU_MMAP_SIZE = 0xae04;
const KVM_GET_MSR_INDEX_LIST = 0xc004_ae02;
const KVM_GET_SUPPORTED_CPUID = 0xc008_ae05;
const KVM_CREATE_VCPU = 0xae41;
const KVM_SET_TSS_ADDR = 0xae47;
const KVM_SET_IDENTITY_MAP_ADDR = 0x4008_ae48;
const KVM_CREATE_IRQCHIP = 0xae60;
const KVM_GET_IRQCHIP = 0xc208_ae62;
const KVM_SET_IRQCHIP = 0x8208_ae63;
const KVM_CREATE_PIT2 = 0x4040_ae77;
const KVM_IRQFD = 0x4020_ae76;
const KVM_IOEVENTFD = 0x4040_ae79;
const KVM_SET_CLOCK = 0x4030_ae7b;
const KVM_GET_CLOCK = 0x8030_ae7c;
const KVM_GET_PIT2 = 0x8070_ae9f;
const KVM_SET_PIT2 = 0x4070_aea0;

const KVM_API_VERSION = 12;
const KVM_PIT_SPEAKER_DUMMY = 1;
const KVM_IOEVENTFD_FLAG_DATAMATCH = 1;
const KVM_IOEVENTFD_FLAG_DEASSIGN = 4;
const KVM_IRQFD_FLAG_DEASSIGN = 1;

/** Capabilities that KVM_CHECK_EXTENSION is asked for. */
export const KVM_CAP_TSC_DEADLINE_TIMER = 72;
export const KVM_CAP_READONLY_MEM = 81;

const CPUID_ENTRY_BYTES = 40;
const MAX_CPUID_ENTRIES = 256;
const MAX_MSR_INDICES = 4096;

/** The interrupt controllers of a machine, as KVM counts them: two PICs and the I/O APIC. */
export const IRQCHIPS = [0, 1, 2] as const;
export type Irqchip = (typeof IRQCHIPS)[number];
/** Bytes of the structures that hold what a machine has besides its vCPUs. */
export const IRQCHIP_BYTES = 512;
export const PIT_BYTES = 112;
const IRQCHIP_OFFSET = 8;
const CLOCK_BYTES = 48;

const scratch = allocatePinned(IRQCHIP_OFFSET + IRQCHIP_BYTES);
const msrIndices = allocatePinned(4 + MAX_MSR_INDICES * 4);
const cpuidTable = allocatePinned(8 + MAX_CPUID_ENTRIES * CPUID_ENTRY_BYTES);

/** The KVM of this host. */
export class Kvm {
  readonly #device: OwnedFd;
  /** Bytes of the mapping of a vCPU. */
  readonly vcpuMappingBytes: number;

  private constructor(device: OwnedFd) {
    this.#device = device;
    this.vcpuMappingBytes = kvmIoctl(device.fd, KVM_GET_VCPU_MMAP_SIZE, 0, 'KVM_GET_VCPU_MMAP_SIZE');
  }

  /** @throws SysError - there is no /dev/kvm, or no right to it, or it speaks another version */
  static open(): Kvm {
    const device = openFile('/dev/kvm', O_RDWR);
    try {
      const version = kvmIoctl(device.fd, KVM_GET_API_VERSION, 0, 'KVM_GET_API_VERSION');
      if (version !== KVM_API_VERSION) throw new SysError('ioctl', 22, `KVM_GET_API_VERSION says ${version}, not 12`);
      return new Kvm(device);
    } catch (error) {
      device.close();
      throw error;
    }
  }

  /** What KVM_CHECK_EXTENSION says: 0 where it has not got it. */
  extension(capability: number): number {
    return kvmIoctl(this.#device.fd, KVM_CHECK_EXTENSION, capability, 'KVM_CHECK_EXTENSION');
  }

  /** struct kvm_cpuid2 with everything that guests can be shown. */
  supportedCpuid(): Uint8Array {
    cpuidTable.data.setUint32(0, MAX_CPUID_ENTRIES, true);
    kvmIoctl(this.#device.fd, KVM_GET_SUPPORTED_CPUID, cpuidTable.address, 'KVM_GET_SUPPORTED_CPUID');
    return cpuidTable.bytes.slice(0, 8 + cpuidTable.data.getUint32(0, true) * CPUID_ENTRY_BYTES);
  }

  /** The model-specific registers that KVM says are to be saved (struct kvm_msr_list). @throws SysError */
  msrIndices(): number[] {
    msrIndices.data.setUint32(0, MAX_MSR_INDICES, true);
    kvmIoctl(this.#device.fd, KVM_GET_MSR_INDEX_LIST, msrIndices.address, 'KVM_GET_MSR_INDEX_LIST');
    const count = msrIndices.data.getUint32(0, true);
    return Array.from({ length: count }, (_, at) => msrIndices.data.getUint32(4 + 4 * at, true));
  }

  /** A new virtual machine without memory and processors. @throws SysError */
  createVm(): KvmVm {
    return new KvmVm(new OwnedFd(kvmIoctl(this.#device.fd, KVM_CREATE_VM, 0, 'KVM_CREATE_VM')));
  }

  close(): void {
    this.#device.close();
  }
}

/**
 * One virtual machine. It ends when its descriptor and those of its vCPUs are closed; memory and eventfds that it was given
 * stay the caller's, and may be closed before or after.
 */
export class KvmVm {
  readonly #vm: OwnedFd;
  readonly #memory: MemorySlots;

  constructor(vm: OwnedFd) {
    this.#vm = vm;
    this.#memory = new MemorySlots(vm.fd);
  }

  #ioctl(request: number, argument: number, name: string): number {
    return kvmIoctl(this.#vm.fd, request, argument, name);
  }

  /**
   * PIC, I/O APIC, PIT, and local APICs for vCPUs to come. `tssAddress` (3 pages) and `identityMapAddress` (1 page) are
   * guest addresses that KVM takes for itself.
   */
  createInterruptControllers(tssAddress: number, identityMapAddress: number): void {
    this.#ioctl(KVM_SET_TSS_ADDR, tssAddress, 'KVM_SET_TSS_ADDR');
    scratch.setU64(0, identityMapAddress);
    this.#ioctl(KVM_SET_IDENTITY_MAP_ADDR, scratch.address, 'KVM_SET_IDENTITY_MAP_ADDR');
    this.#ioctl(KVM_CREATE_IRQCHIP, 0, 'KVM_CREATE_IRQCHIP');
    // struct kvm_pit_config: flags u32 @0, the rest zero.
    scratch.bytes.fill(0);
    scratch.data.setUint32(0, KVM_PIT_SPEAKER_DUMMY, true);
    this.#ioctl(KVM_CREATE_PIT2, scratch.address, 'KVM_CREATE_PIT2');
  }

  /**
   * Shows the guest `length` bytes of this process at a guest address, both in whole pages. What is written to a
   * read-only slot exits as a device access. The memory outlives the machine, or `removeMemory`. Returns the slot.
   * @throws SysError - KVM refuses: an overlap, or there are no slots left
   */
  addMemory(guestAddress: number, length: number, hostAddress: number, readOnly = false): number {
    return this.#memory.add(guestAddress, length, hostAddress, readOnly);
  }

  /**
   * Takes a slot from the guest, whose accesses exit from here on; its number may be given again. What the guest wrote
   * there since the last `takeDirty` is in no log any more.
   */
  removeMemory(slot: number): void {
    this.#memory.remove(slot);
  }

  /**
   * Notes from now on which pages of memory are written, by the guest or by KVM for it; also in memory that is added
   * later. Read-only slots are left out. Idempotent. @throws SysError - the host has no memory left; nothing is noted
   */
  startDirtyLog(): void {
    this.#memory.startDirtyLog();
  }

  /** What was written since the last call, in order of addresses, as few ranges as can be. Nothing while it is off. */
  takeDirty(): DirtyRange[] {
    return this.#memory.takeDirty();
  }

  /** Ends the log; what was not taken is gone. Idempotent. */
  stopDirtyLog(): void {
    this.#memory.stopDirtyLog();
  }

  /** Writes of the 4-byte `value` to a guest address signal the eventfd instead of exiting. */
  addIoEventFd(eventFd: number, guestAddress: number, value: number): void {
    this.#ioEventFd(eventFd, guestAddress, value, 0);
  }

  /** The reverse of `addIoEventFd` with the same arguments. The eventfd is still open. */
  removeIoEventFd(eventFd: number, guestAddress: number, value: number): void {
    this.#ioEventFd(eventFd, guestAddress, value, KVM_IOEVENTFD_FLAG_DEASSIGN);
  }

  #ioEventFd(eventFd: number, guestAddress: number, value: number, flags: number): void {
    // struct kvm_ioeventfd: datamatch @0, addr @8, len u32 @16, fd i32 @20, flags u32 @24.
    scratch.bytes.fill(0);
    scratch.setU64(0, value);
    scratch.setU64(8, guestAddress);
    scratch.data.setUint32(16, 4, true);
    scratch.data.setInt32(20, eventFd, true);
    scratch.data.setUint32(24, KVM_IOEVENTFD_FLAG_DATAMATCH | flags, true);
    this.#ioctl(KVM_IOEVENTFD, scratch.address, `KVM_IOEVENTFD of ${value} at 0x${guestAddress.toString(16)}`);
  }

  /** A signal of the eventfd is an edge on a pin of the I/O APIC. */
  addIrqFd(eventFd: number, gsi: number): void {
    this.#irqFd(eventFd, gsi, 0);
  }

  /** The reverse of `addIrqFd`. The eventfd is still open; an edge that it made already stays one. */
  removeIrqFd(eventFd: number, gsi: number): void {
    this.#irqFd(eventFd, gsi, KVM_IRQFD_FLAG_DEASSIGN);
  }

  #irqFd(eventFd: number, gsi: number, flags: number): void {
    // struct kvm_irqfd: fd u32 @0, gsi u32 @4, flags u32 @8, resamplefd u32 @12.
    scratch.bytes.fill(0);
    scratch.data.setUint32(0, eventFd, true);
    scratch.data.setUint32(4, gsi, true);
    scratch.data.setUint32(8, flags, true);
    this.#ioctl(KVM_IRQFD, scratch.address, `KVM_IRQFD for interrupt ${gsi}`);
  }

  /** The state of an interrupt controller, as KVM lays it out: IRQCHIP_BYTES. */
  irqchip(chip: Irqchip): Uint8Array {
    // struct kvm_irqchip: chip_id u32 @0, the chip's own @8.
    scratch.bytes.fill(0);
    scratch.data.setUint32(0, chip, true);
    this.#ioctl(KVM_GET_IRQCHIP, scratch.address, `KVM_GET_IRQCHIP ${chip}`);
    return scratch.bytes.slice(IRQCHIP_OFFSET);
  }

  setIrqchip(chip: Irqchip, state: Uint8Array): void {
    scratch.bytes.fill(0);
    scratch.data.setUint32(0, chip, true);
    scratch.bytes.set(state.subarray(0, IRQCHIP_BYTES), IRQCHIP_OFFSET);
    this.#ioctl(KVM_SET_IRQCHIP, scratch.address, `KVM_SET_IRQCHIP ${chip}`);
  }

  /** The state of the timer (struct kvm_pit_state2): PIT_BYTES. */
  pit(): Uint8Array {
    this.#ioctl(KVM_GET_PIT2, scratch.address, 'KVM_GET_PIT2');
    return scratch.bytes.slice(0, PIT_BYTES);
  }

  setPit(state: Uint8Array): void {
    scratch.bytes.set(state.subarray(0, PIT_BYTES));
    this.#ioctl(KVM_SET_PIT2, scratch.address, 'KVM_SET_PIT2');
  }

  /** Nanoseconds of the guest's KVM clock. */
  clock(): bigint {
    // struct kvm_clock_data: clock u64 @0, flags u32 @8.
    scratch.bytes.fill(0, 0, CLOCK_BYTES);
    this.#ioctl(KVM_GET_CLOCK, scratch.address, 'KVM_GET_CLOCK');
    return scratch.data.getBigUint64(0, true);
  }

  /** Lets the guest's KVM clock go on from a value, as if no time had passed. */
  setClock(nanoseconds: bigint): void {
    // Without KVM_CLOCK_REALTIME, which would add the time since the clock was read.
    scratch.bytes.fill(0, 0, CLOCK_BYTES);
    scratch.data.setBigUint64(0, nanoseconds, true);
    this.#ioctl(KVM_SET_CLOCK, scratch.address, 'KVM_SET_CLOCK');
  }

  /** The descriptor of a new vCPU, which the caller owns. */
  createVcpu(index: number): OwnedFd {
    return new OwnedFd(this.#ioctl(KVM_CREATE_VCPU, index, `KVM_CREATE_VCPU ${index}`));
  }

  close(): void {
    this.#vm.close();
  }
}
