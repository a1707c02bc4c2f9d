/**
 * The state of a vCPU that is out of KVM_RUN, one structure of KVM's at a time, each as bytes that this process does not
 * look into. Which of them there are depends on the host (KVM_CHECK_EXTENSION). Source: Linux, asm/kvm.h,
 * Documentation/virt/kvm/api.rst.
 */

import { EIO, SysError } from './errors.ts';
import type { Kvm } from './kvm.ts';
import { kvmIoctl } from './kvm-ioctl.ts';
import { allocatePinned } from './pinned.ts';

const KVM_CAP_MP_STATE = 14;
const KVM_CAP_VCPU_EVENTS = 41;
const KVM_CAP_DEBUGREGS = 50;
const KVM_CAP_XSAVE = 55;
const KVM_CAP_XCRS = 56;
const KVM_CAP_GET_TSC_KHZ = 61;
const KVM_CAP_NESTED_STATE = 157;
const KVM_CAP_XSAVE2 = 208;

const KVM_GET_XSAVE = 0x9000_aea4;
const KVM_GET_XSAVE2 = 0x9000_aecf;
const KVM_SET_XSAVE = 0x5000_aea5;
const KVM_GET_NESTED_STATE = 0xc080_aebe;
const KVM_SET_NESTED_STATE = 0x4080_aebf;
const KVM_SET_TSC_KHZ = 0xaea2;
const KVM_GET_TSC_KHZ = 0xaea3;

/** How one structure is read and written: ioctls, bytes, and the capability that says that the host has it. */
interface Structure {
  readonly name: string;
  readonly get: number;
  readonly set: number;
  readonly bytes: number;
  readonly capability?: number;
}

/** The structures of one size. `fpu` is part of `xsave` where that is. */
const STRUCTURES = {
  regs: { name: 'REGS', get: 0x8090_ae81, set: 0x4090_ae82, bytes: 144 },
  sregs: { name: 'SREGS', get: 0x8138_ae83, set: 0x4138_ae84, bytes: 312 },
  fpu: { name: 'FPU', get: 0x81a0_ae8c, set: 0x41a0_ae8d, bytes: 416 },
  lapic: { name: 'LAPIC', get: 0x8400_ae8e, set: 0x4400_ae8f, bytes: 1024 },
  mpState: { name: 'MP_STATE', get: 0x8004_ae98, set: 0x4004_ae99, bytes: 4, capability: KVM_CAP_MP_STATE },
  events: { name: 'VCPU_EVENTS', get: 0x8040_ae9f, set: 0x4040_aea0, bytes: 64, capability: KVM_CAP_VCPU_EVENTS },
  debugRegs: { name: 'DEBUGREGS', get: 0x8080_aea1, set: 0x4080_aea2, bytes: 128, capability: KVM_CAP_DEBUGREGS },
  xcrs: { name: 'XCRS', get: 0x8188_aea6, set: 0x4188_aea7, bytes: 392, capability: KVM_CAP_XCRS },
} as const satisfies Record<string, Structure>;

export type VcpuStructure = keyof typeof STRUCTURES;

/** struct kvm_xsave, without what KVM_CAP_XSAVE2 adds. */
const XSAVE_BYTES = 4096;
/** struct kvm_nested_state: size u32 @4 with the header, whose length this is. */
export const NESTED_HEADER_BYTES = 128;
const NESTED_SIZE_OFFSET = 4;

/** Grown when a structure is larger: at most a few times, since sizes are the host's. */
let scratch = allocatePinned(16 * 1024);

function scratchOf(bytes: number) {
  if (scratch.length < bytes) scratch = allocatePinned(bytes);
  scratch.bytes.fill(0, 0, bytes);
  return scratch;
}

/** Bytes of a structure; 0 where this host's KVM has not got it. */
export function structureBytes(kvm: Kvm, which: VcpuStructure): number {
  const { bytes, capability }: Structure = STRUCTURES[which];
  return capability === undefined || kvm.extension(capability) > 0 ? bytes : 0;
}

/** @throws SysError */
export function getStructure(fd: number, which: VcpuStructure): Uint8Array {
  const { name, get, bytes } = STRUCTURES[which];
  const { address, bytes: memory } = scratchOf(bytes);
  kvmIoctl(fd, get, address, `KVM_GET_${name}`);
  return memory.slice(0, bytes);
}

/** Sets a structure of `structureBytes`. @throws SysError - KVM does not take it */
export function setStructure(fd: number, which: VcpuStructure, value: Uint8Array): void {
  const { name, set, bytes } = STRUCTURES[which];
  const { address, bytes: memory } = scratchOf(bytes);
  memory.set(value.subarray(0, bytes));
  kvmIoctl(fd, set, address, `KVM_SET_${name}`);
}

/** Bytes of the area that XSAVE fills on this host; 0 without KVM_CAP_XSAVE. */
export function xsaveBytes(kvm: Kvm): number {
  if (kvm.extension(KVM_CAP_XSAVE) === 0) return 0;
  return Math.max(XSAVE_BYTES, kvm.extension(KVM_CAP_XSAVE2));
}

/** Reads the extended state of a vCPU, `bytes` of it as `xsaveBytes` says. @throws SysError */
export function getXsave(fd: number, bytes: number): Uint8Array {
  const { address, bytes: memory } = scratchOf(bytes);
  if (bytes > XSAVE_BYTES) kvmIoctl(fd, KVM_GET_XSAVE2, address, 'KVM_GET_XSAVE2');
  else kvmIoctl(fd, KVM_GET_XSAVE, address, 'KVM_GET_XSAVE');
  return memory.slice(0, bytes);
}

/** Sets the extended state; KVM reads `bytes`, and what `value` has not is zero. @throws SysError - KVM does not take it */
export function setXsave(fd: number, value: Uint8Array, bytes: number): void {
  const { address, bytes: memory } = scratchOf(bytes);
  memory.set(value.subarray(0, bytes));
  kvmIoctl(fd, KVM_SET_XSAVE, address, 'KVM_SET_XSAVE');
}

/** Most bytes that the state of a guest's own guests has; 0 where guests have none. */
export function maxNestedBytes(kvm: Kvm): number {
  return kvm.extension(KVM_CAP_NESTED_STATE);
}

/** What the vCPU keeps for guests of the guest: a struct kvm_nested_state of its own size. @throws SysError */
export function getNested(fd: number, maxBytes: number): Uint8Array {
  const { address, bytes, data } = scratchOf(maxBytes);
  data.setUint32(NESTED_SIZE_OFFSET, maxBytes, true);
  kvmIoctl(fd, KVM_GET_NESTED_STATE, address, 'KVM_GET_NESTED_STATE');
  return bytes.slice(0, data.getUint32(NESTED_SIZE_OFFSET, true));
}

/** Sets a struct kvm_nested_state, whose size field is set to its length. @throws SysError - KVM does not take it */
export function setNested(fd: number, value: Uint8Array): void {
  const { address, bytes, data } = scratchOf(value.length);
  bytes.set(value);
  data.setUint32(NESTED_SIZE_OFFSET, value.length, true);
  kvmIoctl(fd, KVM_SET_NESTED_STATE, address, 'KVM_SET_NESTED_STATE');
}

/** How fast the vCPU's time stamp counter runs; undefined where the host cannot say. @throws SysError */
export function tscKhz(kvm: Kvm, fd: number): number | undefined {
  if (kvm.extension(KVM_CAP_GET_TSC_KHZ) === 0) return undefined;
  try {
    return kvmIoctl(fd, KVM_GET_TSC_KHZ, 0, 'KVM_GET_TSC_KHZ');
  } catch (error) {
    // The host's own is not constant.
    if (error instanceof SysError && error.errno === EIO) return undefined;
    throw error;
  }
}

/** Lets the vCPU's time stamp counter run at another speed. @throws SysError - the host cannot scale it */
export function setTscKhz(fd: number, khz: number): void {
  kvmIoctl(fd, KVM_SET_TSC_KHZ, khz, 'KVM_SET_TSC_KHZ');
}
