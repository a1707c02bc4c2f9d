/**
 * Which model-specific registers belong to the state of a vCPU: those that KVM lists, and two groups that it leaves out,
 * memory types and machine check banks. Those of features that the guest was not told of are left out: they are constants
 * of this host's processor or kernel, which another may not take. Source: Linux, Documentation/virt/kvm/api.rst, 4.3
 * KVM_GET_MSR_INDEX_LIST; Intel SDM volume 4, volume 3, 11.11 Memory Type Range Registers; AMD APM volume 2, appendix A.
 */

import type { Kvm } from '../../../protocol/sys/kvm.ts';
import { getMsrs } from '../../../protocol/sys/kvm-msrs.ts';
import type { CpuidEntry } from '../cpuid.ts';
import type { CpuidRegister } from '../cpuid-features.ts';

const IA32_FEATURE_CONTROL = 0x3a;
const IA32_MCG_CAP = 0x179;
const IA32_MC0_CTL = 0x400;
const MCG_CAP_BANKS = 0xffn;
const REGISTERS_PER_BANK = 4;
const IA32_VMX_BASIC = 0x480;
const IA32_VMX_EXIT_CTLS2 = 0x493;
export const IA32_TSC_DEADLINE = 0x6e0;

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, at) => first + at);
}

/** Memory types: 8 variable ranges, the fixed ones, and the default. */
const MTRRS = [...range(0x200, 16), 0x250, 0x258, 0x259, ...range(0x268, 8), 0x2ff];

interface Feature {
  readonly leaf: number;
  readonly register: CpuidRegister;
  readonly bit: number;
}

const VMX: Feature = { leaf: 1, register: 'ecx', bit: 5 };
const SVM: Feature = { leaf: 0x8000_0001, register: 'ecx', bit: 2 };
const ARCH_CAPABILITIES: Feature = { leaf: 7, register: 'edx', bit: 29 };

/** Registers from the first to the last that are there for the guest only with a feature, or never in this VMM. */
const CONDITIONAL: readonly { readonly first: number; readonly last: number; readonly feature?: Feature }[] = [
  { first: 0x10a, last: 0x10a, feature: ARCH_CAPABILITIES },
  { first: IA32_VMX_BASIC, last: IA32_VMX_EXIT_CTLS2, feature: VMX },
  // Hyper-V.
  { first: 0x4000_0000, last: 0x4000_0fff },
  // Performance counters of Intel, and of AMD.
  { first: 0xc1, last: 0xc8 },
  { first: 0x186, last: 0x18d },
  { first: 0x309, last: 0x30c },
  { first: 0x345, last: 0x345 },
  { first: 0x38d, last: 0x3f2 },
  { first: 0x4c1, last: 0x4c8 },
  { first: 0x600, last: 0x600 },
  { first: 0xc000_0300, last: 0xc000_0303 },
  { first: 0xc001_0000, last: 0xc001_0007 },
  { first: 0xc001_0200, last: 0xc001_020b },
];

function has(told: readonly CpuidEntry[], { leaf, register, bit }: Feature): boolean {
  const value = told.find((entry) => entry.function === leaf && entry.index === 0)?.[register] ?? 0;
  return ((value >>> bit) & 1) === 1;
}

/** Whether a guest that was told this can have guests itself. */
export function canNest(told: readonly CpuidEntry[]): boolean {
  return has(told, VMX) || has(told, SVM);
}

/** What nested state needs to be there before it: the lock of VMX and its capabilities. */
export function isNestedControl(index: number): boolean {
  return index === IA32_FEATURE_CONTROL || (index >= IA32_VMX_BASIC && index <= IA32_VMX_EXIT_CTLS2);
}

/** Those of a vCPU whose guest was told this CPUID. Some of them may not be readable. @throws SysError */
export function savedMsrs(kvm: Kvm, fd: number, told: readonly CpuidEntry[]): number[] {
  const [capabilities] = getMsrs(fd, [IA32_MCG_CAP]);
  const banks = capabilities === undefined ? 0 : Number(capabilities.value & MCG_CAP_BANKS);
  const all = new Set([...kvm.msrIndices(), ...MTRRS, ...range(IA32_MC0_CTL, banks * REGISTERS_PER_BANK)]);
  const absent = CONDITIONAL.filter(({ feature }) => feature === undefined || !has(told, feature));
  return [...all].filter((index) => !absent.some(({ first, last }) => index >= first && index <= last));
}
