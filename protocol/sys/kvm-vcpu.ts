/**
 * One vCPU: its registers, and KVM_RUN, which blocks the calling thread until the guest does what this process has to
 * answer. Source: Linux, Documentation/virt/kvm/api.rst, "The kvm_run structure".
 *
 *     struct kvm_run   @0 request_interrupt_window u8, @1 immediate_exit u8, @8 exit_reason u32, @32 the reason's own part:
 *       io             direction u8 @32, size u8 @33, port u16 @34, count u32 @36, data_offset u64 @40
 *       mmio           phys_addr u64 @32, data u8[8] @40, len u32 @48, is_write u8 @52
 */

import { EAGAIN, EINTR, SysError } from './errors.ts';
import { kvmIoctl } from './kvm-ioctl.ts';
import { lastErrno, libc, viewMemory } from './libc.ts';
import { allocatePinned, mappedAddress } from './pinned.ts';
import { installMachineCodeHandler, machineCodeHandlersAvailable } from './signal-handler.ts';

const KVM_RUN = 0xae80;
const KVM_SET_REGS = 0x4090_ae82;
const KVM_GET_SREGS = 0x8138_ae83;
const KVM_SET_SREGS = 0x4138_ae84;
const KVM_KVMCLOCK_CTRL = 0xaead;
const KVM_SET_CPUID2 = 0x4008_ae90;
const REGS_BYTES = 144;
const SREGS_BYTES = 312;
const MAX_CPUID_BYTES = 8 + 256 * 40;

export const KVM_EXIT_IO = 2;
export const KVM_EXIT_HLT = 5;
export const KVM_EXIT_MMIO = 6;
export const KVM_EXIT_SHUTDOWN = 8;
export const KVM_EXIT_FAIL_ENTRY = 9;
export const KVM_EXIT_INTR = 10;
export const KVM_EXIT_INTERNAL_ERROR = 17;
export const KVM_EXIT_SYSTEM_EVENT = 24;

const EXIT_NAMES: ReadonlyMap<number, string> = new Map([
  [KVM_EXIT_IO, 'io'],
  [KVM_EXIT_HLT, 'hlt'],
  [KVM_EXIT_MMIO, 'mmio'],
  [KVM_EXIT_SHUTDOWN, 'shutdown'],
  [KVM_EXIT_FAIL_ENTRY, 'fail_entry'],
  [KVM_EXIT_INTR, 'intr'],
  [KVM_EXIT_INTERNAL_ERROR, 'internal_error'],
  [KVM_EXIT_SYSTEM_EVENT, 'system_event'],
]);

/** The name of an exit reason as in linux/kvm.h, in lower case and without KVM_EXIT_; its number where it is rare. */
export function exitName(reason: number): string {
  return EXIT_NAMES.get(reason) ?? `${reason}`;
}

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
/** A real-time signal above those that the C library keeps for itself (32 and 33). */
const KICK_SIGNAL = 40;
const SYS_GETTID = 186;
const SYS_TGKILL = 234;
const RET = 0xc3;

const registers = allocatePinned(SREGS_BYTES);
const cpuid = allocatePinned(MAX_CPUID_BYTES);

/** The id of the calling thread, which `kickThread` wants. */
export function threadId(): number {
  return libc.syscall(SYS_GETTID, 0, 0, 0, 0, 0, 0);
}

let kickable = false;

/** Interrupts a thread that is in KVM_RUN. What says that it is to stay out is up to the caller: `setImmediateExit`. */
export function kickThread(thread: number): void {
  if (!machineCodeHandlersAvailable) throw new Error('vCPUs are x86-64 only');
  if (!kickable) installMachineCodeHandler(KICK_SIGNAL, Uint8Array.of(RET), 'vCPU kick signal');
  kickable = true;
  libc.syscall(SYS_TGKILL, process.pid, thread, KICK_SIGNAL, 0, 0, 0);
}

/** Where a vCPU is, for a thread that is to run it: numbers that any thread of this process understands. */
export interface VcpuLocation {
  readonly fd: number;
  readonly runAddress: number;
  readonly runBytes: number;
}

/** Maps the shared part of a vCPU. It stays mapped until `unmapVcpu`. @throws SysError */
export function mapVcpu(fd: number, runBytes: number): VcpuLocation {
  const runAddress = mappedAddress(libc.mmap(0, runBytes, PROT_READ_WRITE, MAP_SHARED, fd, 0), 'vCPU');
  return { fd, runAddress, runBytes };
}

/** Ends the mapping. No thread runs the vCPU any more, and no VcpuRun of it is used again. */
export function unmapVcpu({ runAddress, runBytes }: VcpuLocation): void {
  libc.munmap(runAddress, runBytes);
}

/** Sets what the guest's CPUID instruction says: a struct kvm_cpuid2. Before the first run. @throws SysError */
export function setCpuid(fd: number, table: Uint8Array): void {
  cpuid.bytes.set(table);
  kvmIoctl(fd, KVM_SET_CPUID2, cpuid.address, 'KVM_SET_CPUID2');
}

/** Sets struct kvm_regs. @throws SysError */
export function setRegisters(fd: number, regs: Uint8Array): void {
  registers.bytes.fill(0, 0, REGS_BYTES);
  registers.bytes.set(regs);
  kvmIoctl(fd, KVM_SET_REGS, registers.address, 'KVM_SET_REGS');
}

/** Replaces struct kvm_sregs by what `change` makes of the present one. @throws SysError */
export function changeSpecialRegisters(fd: number, change: (sregs: Uint8Array) => Uint8Array): void {
  kvmIoctl(fd, KVM_GET_SREGS, registers.address, 'KVM_GET_SREGS');
  registers.bytes.set(change(registers.bytes.slice()));
  kvmIoctl(fd, KVM_SET_SREGS, registers.address, 'KVM_SET_SREGS');
}

/** Tells the guest's clock that the guest was held, so that it does not take the time for a hang. Best effort. */
export function noteGuestPaused(fd: number): void {
  // EINVAL: the guest has no KVM clock.
  libc.ioctl(fd, KVM_KVMCLOCK_CTRL, 0);
}

/** A vCPU as one thread sees it. `data` and `bytes` are struct kvm_run and what follows it. */
export class VcpuRun {
  readonly data: DataView;
  readonly bytes: Uint8Array;
  readonly #fd: number;

  constructor({ fd, runAddress, runBytes }: VcpuLocation) {
    this.#fd = fd;
    const view = viewMemory(runAddress, runBytes);
    this.data = new DataView(view);
    this.bytes = new Uint8Array(view);
  }

  /** Makes KVM_RUN return at once, now and until it is cleared. */
  setImmediateExit(value: boolean): void {
    this.data.setUint8(1, value ? 1 : 0);
  }

  /**
   * Runs the guest on the calling thread. Returns the exit reason; KVM_EXIT_INTR when the thread was kicked.
   * @throws SysError - the vCPU cannot run
   */
  run(): number {
    if (libc.ioctl(this.#fd, KVM_RUN, 0) === 0) return this.data.getUint32(8, true);
    const errno = lastErrno();
    if (errno === EINTR || errno === EAGAIN) return KVM_EXIT_INTR;
    throw new SysError('ioctl', errno, 'KVM_RUN');
  }

  get ioIsWrite(): boolean {
    return this.data.getUint8(32) === 1;
  }
  get ioSize(): number {
    return this.data.getUint8(33);
  }
  get ioPort(): number {
    return this.data.getUint16(34, true);
  }
  get ioCount(): number {
    return this.data.getUint32(36, true);
  }
  /** Offset in `bytes` of `ioCount` values of `ioSize` bytes. */
  get ioDataOffset(): number {
    return this.data.getUint32(40, true);
  }
  get mmioIsWrite(): boolean {
    return this.data.getUint8(52) === 1;
  }
  get mmioAddress(): number {
    return this.data.getUint32(36, true) * 0x1_0000_0000 + this.data.getUint32(32, true);
  }
  get mmioSize(): number {
    return this.data.getUint32(48, true);
  }
}

/** Offset in `VcpuRun.bytes` of the data of a memory access. */
export const MMIO_DATA_OFFSET = 40;
