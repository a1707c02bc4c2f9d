/**
 * The state of one vCPU: read from KVM, checked, and set in another. Structures of KVM's are bytes that are not looked
 * into; those that a host has not got are left out.
 *
 * The order matters. Saved: MP_STATE first, because KVM acts on INIT and startup interrupts when it is asked, and events
 * last. Restored: CPUID decides what everything else may be. SREGS has EFER, CR4 and the address of the local APIC, which
 * nested state, MSRs and LAPIC need. The deadline of the timer counts only while the local APIC is in that mode and is a
 * value of the TSC, so it comes behind both. Other settings clear pending exceptions and wake the processor, so MP_STATE
 * and events are last.
 *
 * Source: Linux, Documentation/virt/kvm/api.rst.
 */

import { SysError } from '../../../protocol/sys/errors.ts';
import type { Kvm } from '../../../protocol/sys/kvm.ts';
import { getMsrs, type Msr, trySetMsrs } from '../../../protocol/sys/kvm-msrs.ts';
import { setCpuid } from '../../../protocol/sys/kvm-vcpu.ts';
import {
  getNested,
  getStructure,
  getXsave,
  maxNestedBytes,
  NESTED_HEADER_BYTES,
  setNested,
  setStructure,
  setTscKhz,
  setXsave,
  structureBytes,
  tscKhz,
  type VcpuStructure,
  xsaveBytes,
} from '../../../protocol/sys/kvm-vcpu-state.ts';
import { decodeCpuid, KVM_CPUID_ENTRY_BYTES, KVM_CPUID2_BYTES } from '../cpuid.ts';
import { VmError } from '../errors.ts';
import { bigintOf, bytesOf, fieldsOf, integerOf, listOf } from './codec.ts';
import { canNest, IA32_TSC_DEADLINE, isNestedControl, savedMsrs } from './saved-msrs.ts';

/** Plain data. What is undefined the host that saved it has not got. */
export interface VcpuState {
  /** struct kvm_cpuid2. */
  readonly cpuid: Uint8Array;
  readonly tscKhz: number | undefined;
  readonly mpState: Uint8Array | undefined;
  readonly regs: Uint8Array;
  readonly sregs: Uint8Array;
  /** Instead of `fpu` where there is XSAVE. */
  readonly xsave: Uint8Array | undefined;
  readonly fpu: Uint8Array | undefined;
  readonly xcrs: Uint8Array | undefined;
  readonly lapic: Uint8Array;
  readonly msrs: readonly Msr[];
  readonly nested: Uint8Array | undefined;
  readonly debugRegs: Uint8Array | undefined;
  readonly events: Uint8Array | undefined;
}

const MAX_MSRS = 4096;
const MAX_CPUID_ENTRIES = 256;
const MAX_MP_STATE = 9;
const MAX_TSC_KHZ = 0xffff_ffff;
/** A time stamp counter that differs by less, 250 parts per million, counts as the same: KVM's own tolerance. */
const TSC_TOLERANCE = 250e-6;

/** The state of a vCPU that is out of the guest, its last instruction finished. @throws SysError */
export function saveVcpu(kvm: Kvm, fd: number, cpuid: Uint8Array): VcpuState {
  const read = (which: VcpuStructure) => (structureBytes(kvm, which) > 0 ? getStructure(fd, which) : undefined);
  const mpState = read('mpState');
  const bytes = xsaveBytes(kvm);
  const entries = decodeCpuid(cpuid);
  const nestedBytes = canNest(entries) ? maxNestedBytes(kvm) : 0;
  return {
    cpuid,
    mpState,
    tscKhz: tscKhz(kvm, fd),
    regs: getStructure(fd, 'regs'),
    sregs: getStructure(fd, 'sregs'),
    xsave: bytes > 0 ? getXsave(fd, bytes) : undefined,
    fpu: bytes > 0 ? undefined : getStructure(fd, 'fpu'),
    xcrs: read('xcrs'),
    lapic: getStructure(fd, 'lapic'),
    msrs: getMsrs(fd, savedMsrs(kvm, fd, entries)),
    nested: nestedBytes > 0 ? getNested(fd, nestedBytes) : undefined,
    debugRegs: read('debugRegs'),
    events: read('events'),
  };
}

/** A state that came from elsewhere, as far as it can be judged without KVM. @throws VmError */
export function parseVcpuState(value: unknown, what: string, kvm: Kvm): VcpuState {
  const fields = fieldsOf(value, what);
  const optional = <T>(name: string, parse: (field: unknown, what: string) => T): T | undefined =>
    fields[name] === undefined ? undefined : parse(fields[name], `${what}: ${name}`);
  const structure = (name: VcpuStructure): Uint8Array | undefined =>
    optional(name, (field, where) => {
      const bytes = structureBytes(kvm, name);
      if (bytes === 0) throw new VmError(`${where}: this host's KVM has not got it`);
      return bytesOf(field, where, bytes);
    });
  const required = (name: VcpuStructure): Uint8Array =>
    bytesOf(fields[name], `${what}: ${name}`, structureBytes(kvm, name));
  if (fields.xsave === undefined && fields.fpu === undefined) throw new VmError(`${what}: neither xsave nor fpu`);
  const mpState = structure('mpState');
  if (mpState !== undefined) {
    const number = new DataView(mpState.buffer, mpState.byteOffset).getUint32(0, true);
    if (number > MAX_MP_STATE) throw new VmError(`${what}: mpState: ${number}: not a state of linux/kvm.h`);
  }
  return {
    cpuid: cpuidOf(fields.cpuid, `${what}: cpuid`),
    tscKhz: optional('tscKhz', (field, where) => integerOf(field, where, { minimum: 1, maximum: MAX_TSC_KHZ })),
    mpState,
    regs: required('regs'),
    sregs: required('sregs'),
    xsave: optional('xsave', (field, where) => xsaveOf(field, where, xsaveBytes(kvm))),
    fpu: structure('fpu'),
    xcrs: structure('xcrs'),
    lapic: required('lapic'),
    msrs: listOf(fields.msrs, `${what}: msrs`, MAX_MSRS).map((each, at) => msrOf(each, `${what}: msrs ${at}`)),
    nested: optional('nested', (field, where) => nestedOf(field, where, maxNestedBytes(kvm))),
    debugRegs: structure('debugRegs'),
    events: structure('events'),
  };
}

function cpuidOf(value: unknown, what: string): Uint8Array {
  const bytes = bytesOf(value, what);
  if (bytes.length < KVM_CPUID2_BYTES) throw new VmError(`${what}: ${bytes.length} bytes: not a struct kvm_cpuid2`);
  const count = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (count > MAX_CPUID_ENTRIES)
    throw new VmError(`${what}: ${count} entries, at most ${MAX_CPUID_ENTRIES} are possible`);
  return bytesOf(value, what, KVM_CPUID2_BYTES + count * KVM_CPUID_ENTRY_BYTES);
}

function msrOf(value: unknown, what: string): Msr {
  const { index, value: content } = fieldsOf(value, what);
  return { index: integerOf(index, `${what}: index`, { maximum: 0xffff_ffff }), value: bigintOf(content, what) };
}

function xsaveOf(value: unknown, what: string, bytesHere: number): Uint8Array {
  const bytes = bytesOf(value, what);
  if (bytes.length > bytesHere)
    throw new VmError(`${what}: ${bytes.length} bytes, this host's KVM takes at most ${bytesHere}`);
  return bytes;
}

function nestedOf(value: unknown, what: string, maxBytes: number): Uint8Array {
  const bytes = bytesOf(value, what);
  if (maxBytes === 0) throw new VmError(`${what}: this host's KVM has not got it`);
  if (bytes.length < NESTED_HEADER_BYTES || bytes.length > maxBytes)
    throw new VmError(`${what}: ${bytes.length} bytes, this host's KVM takes ${NESTED_HEADER_BYTES} to ${maxBytes}`);
  return bytes;
}

/**
 * Sets the state of a vCPU that has not run yet, whose memory is there.
 * @throws VmError - this host's KVM does not take it
 */
export function restoreVcpu(kvm: Kvm, fd: number, state: VcpuState, what: string): void {
  const set = (name: string, call: () => void): void => {
    try {
      call();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      throw new VmError(`${what}: ${name}: this host's KVM does not take it: ${error.message}`);
    }
  };
  const setOne = (which: VcpuStructure): void => {
    const bytes = state[which];
    if (bytes !== undefined) set(which, () => setStructure(fd, which, bytes));
  };
  const setMsrs = (isWanted: (index: number) => boolean): void =>
    set('msrs', () => {
      const wanted = state.msrs.filter(({ index }) => isWanted(index));
      // One that is unknown here and has its first value makes no difference.
      const refused = trySetMsrs(fd, wanted).find(({ value }) => value !== 0n);
      if (refused === undefined) return;
      const [index, value] = [refused.index, refused.value].map((number) => `0x${number.toString(16)}`);
      throw new VmError(`${what}: this host's KVM does not take model-specific register ${index} with ${value}`);
    });
  const { xsave, nested } = state;
  set('cpuid', () => setCpuid(fd, state.cpuid));
  restoreTscKhz(kvm, fd, state.tscKhz, what);
  setOne('sregs');
  setMsrs(isNestedControl);
  if (nested !== undefined) set('nested', () => setNested(fd, nested));
  setOne('regs');
  setOne('fpu');
  if (xsave !== undefined) set('xsave', () => setXsave(fd, xsave, xsaveBytes(kvm)));
  setOne('xcrs');
  setOne('lapic');
  setMsrs((index) => !isNestedControl(index) && index !== IA32_TSC_DEADLINE);
  setMsrs((index) => index === IA32_TSC_DEADLINE);
  for (const last of ['debugRegs', 'mpState', 'events'] as const) setOne(last);
}

function restoreTscKhz(kvm: Kvm, fd: number, wanted: number | undefined, what: string): void {
  const here = tscKhz(kvm, fd);
  if (wanted === undefined || here === undefined || Math.abs(wanted - here) <= here * TSC_TOLERANCE) return;
  try {
    setTscKhz(fd, wanted);
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    throw new VmError(
      `${what}: the guest's time stamp counter runs at ${wanted} kHz, this host's at ${here} kHz and cannot be scaled`,
    );
  }
}
