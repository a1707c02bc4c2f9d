/**
 * /dev/kvm: a virtual machine's memory slots, interrupt controllers, and the eventfds that connect it to the world without
 * passing through this process. Numbers and layouts: linux/kvm.h, asm/kvm.h (x86-64).
 */

import { EINTR, SysError } from './errors.ts';
import { lastErrno, libc } from './libc.ts';
import { OwnedFd, openFile } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';
import { O_RDWR } from './storage.ts';

const KVM_GET_API_VERSION = 0xae00;
const KVM_CREATE_VM = 0xae01;
const KVM_CHECK_EXTENSION = 0xae03;
const KVM_GET_VCPU_MMAP_SIZE = 0xae04;
const KVM_GET_SUPPORTED_CPUID = 0xc008_ae05;
const KVM_CREATE_VCPU = 0xae41;
const KVM_SET_USER_MEMORY_REGION = 0x4020_ae46;
const KVM_SET_TSS_ADDR = 0xae47;
const KVM_SET_IDENTITY_MAP_ADDR = 0x4008_ae48;
const KVM_CREATE_IRQCHIP = 0xae60;
const KVM_CREATE_PIT2 = 0x4040_ae77;
const KVM_IRQFD = 0x4020_ae76;
const KVM_IOEVENTFD = 0x4040_ae79;

const KVM_API_VERSION = 12;
const KVM_MEM_READONLY = 2;
const KVM_PIT_SPEAKER_DUMMY = 1;
const KVM_IOEVENTFD_FLAG_DATAMATCH = 1;

/** Capabilities that KVM_CHECK_EXTENSION is asked for. */
export const KVM_CAP_TSC_DEADLINE_TIMER = 72;
export const KVM_CAP_READONLY_MEM = 81;

const CPUID_ENTRY_BYTES = 40;
const MAX_CPUID_ENTRIES = 256;

const scratch = allocatePinned(64);
const cpuidTable = allocatePinned(8 + MAX_CPUID_ENTRIES * CPUID_ENTRY_BYTES);

/** ioctl with an argument in memory or a number; EINTR is tried again. @throws SysError */
export function kvmIoctl(fd: number, request: number, argument: number, name: string): number {
  for (;;) {
    const result = libc.ioctl(fd, request, argument);
    if (result !== -1) return result;
    const errno = lastErrno();
    if (errno !== EINTR) throw new SysError('ioctl', errno, name);
  }
}

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
  #slots = 0;

  constructor(vm: OwnedFd) {
    this.#vm = vm;
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
   * Shows the guest `length` bytes of this process at a guest address. What is written to a read-only slot exits as a
   * device access. The memory outlives the machine.
   */
  addMemory(guestAddress: number, length: number, hostAddress: number, readOnly = false): void {
    // struct kvm_userspace_memory_region: slot u32 @0, flags u32 @4, guest_phys_addr @8, memory_size @16, userspace_addr @24.
    scratch.data.setUint32(0, this.#slots, true);
    scratch.data.setUint32(4, readOnly ? KVM_MEM_READONLY : 0, true);
    scratch.setU64(8, guestAddress);
    scratch.setU64(16, length);
    scratch.setU64(24, hostAddress);
    const what = `KVM_SET_USER_MEMORY_REGION of ${length} bytes at 0x${guestAddress.toString(16)}`;
    this.#ioctl(KVM_SET_USER_MEMORY_REGION, scratch.address, what);
    this.#slots += 1;
  }

  /** Writes of the 4-byte `value` to a guest address signal the eventfd instead of exiting. */
  addIoEventFd(eventFd: number, guestAddress: number, value: number): void {
    // struct kvm_ioeventfd: datamatch @0, addr @8, len u32 @16, fd i32 @20, flags u32 @24.
    scratch.bytes.fill(0);
    scratch.setU64(0, value);
    scratch.setU64(8, guestAddress);
    scratch.data.setUint32(16, 4, true);
    scratch.data.setInt32(20, eventFd, true);
    scratch.data.setUint32(24, KVM_IOEVENTFD_FLAG_DATAMATCH, true);
    this.#ioctl(KVM_IOEVENTFD, scratch.address, 'KVM_IOEVENTFD');
  }

  /** A signal of the eventfd is an edge on a pin of the I/O APIC. */
  addIrqFd(eventFd: number, gsi: number): void {
    // struct kvm_irqfd: fd u32 @0, gsi u32 @4, flags u32 @8, resamplefd u32 @12.
    scratch.bytes.fill(0);
    scratch.data.setUint32(0, eventFd, true);
    scratch.data.setUint32(4, gsi, true);
    this.#ioctl(KVM_IRQFD, scratch.address, `KVM_IRQFD for interrupt ${gsi}`);
  }

  /** The descriptor of a new vCPU, which the caller owns. */
  createVcpu(index: number): OwnedFd {
    return new OwnedFd(this.#ioctl(KVM_CREATE_VCPU, index, `KVM_CREATE_VCPU ${index}`));
  }

  close(): void {
    this.#vm.close();
  }
}
