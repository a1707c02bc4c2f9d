/**
 * What CPUID tells the processors of a guest: what KVM can give (KVM_GET_SUPPORTED_CPUID), less what this machine has
 * not (performance counters, MONITOR and MWAIT, SGX, power management) or the user hides, and with the processor's own
 * place: one package of `cpuCount` cores, APIC ids from 0.
 *
 *     kvm_cpuid2: 0 nent, 4 padding, then entries of 40 bytes:
 *                 0 function, 4 index, 8 flags, 12 eax, 16 ebx, 20 ecx, 24 edx, 28 padding (12)
 *
 * Source: asm/kvm.h; Linux, Documentation/virt/kvm/api.rst 4.46; Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
 */

import { CPUID_FEATURE_NAMES, CPUID_WORDS, type CpuidRegister, withDependents } from './cpuid-features.ts';
import { VmConfigError } from './errors.ts';

/** A row of struct kvm_cpuid_entry2; every field is unsigned and 32 bits wide. */
export interface CpuidEntry {
  readonly function: number;
  readonly index: number;
  readonly flags: number;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

export interface CpuidOptions {
  readonly apicId: number;
  readonly cpuCount: number;
  /** Names as in /proc/cpuinfo, one of CPUID_FEATURE_NAMES each. */
  readonly hide: readonly string[];
  /** Whether KVM_CAP_TSC_DEADLINE_TIMER is there: KVM does not say it in the entries. */
  readonly tscDeadlineTimer: boolean;
}

type MutableEntry = { -readonly [Field in keyof CpuidEntry]: CpuidEntry[Field] };

export const KVM_CPUID2_BYTES = 8;
export const KVM_CPUID_ENTRY_BYTES = 40;
const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1;
const FIELDS = ['function', 'index', 'flags', 'eax', 'ebx', 'ecx', 'edx'] as const;

/** The rows of a struct kvm_cpuid2. @throws RangeError - it has fewer bytes than `nent` says (our mistake) */
export const decodeCpuid = (bytes: Uint8Array): CpuidEntry[] => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: view.getUint32(0, true) }, (_, row) => {
    const at = KVM_CPUID2_BYTES + row * KVM_CPUID_ENTRY_BYTES;
    const field = (index: number): number => view.getUint32(at + 4 * index, true);
    return {
      function: field(0),
      index: field(1),
      flags: field(2),
      eax: field(3),
      ebx: field(4),
      ecx: field(5),
      edx: field(6),
    };
  });
};

/** A struct kvm_cpuid2 with these rows. */
export const encodeCpuid = (entries: readonly CpuidEntry[]): Uint8Array => {
  const bytes = new Uint8Array(KVM_CPUID2_BYTES + entries.length * KVM_CPUID_ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, entries.length, true);
  for (const [row, entry] of entries.entries()) {
    const at = KVM_CPUID2_BYTES + row * KVM_CPUID_ENTRY_BYTES;
    for (const [index, name] of FIELDS.entries()) view.setUint32(at + 4 * index, entry[name], true);
  }
  return bytes;
};

const ADDRESS_SIZES = 0x8000_0008;
/** What a processor without leaf 0x80000008 has (Intel SDM volume 3, 4.1.4). */
const DEFAULT_ADDRESS_BITS = 36;

/** Width of a physical address in bits. */
export const physicalAddressBits = (entries: readonly CpuidEntry[]): number =>
  (entries.find((entry) => entry.function === ADDRESS_SIZES)?.eax ?? DEFAULT_ADDRESS_BITS) & 0xff;

/** Bits that no guest of this machine sees, with why in the order of the list. */
const ABSENT: readonly { function: number; register: CpuidRegister; bits: readonly number[] }[] = [
  // MONITOR; performance counters: DTES64, DS_CPL, PDCM; enhanced SpeedStep, thermal monitor.
  { function: 1, register: 'ecx', bits: [2, 3, 4, 7, 8, 15] },
  // DS and thermal control.
  { function: 1, register: 'edx', bits: [21, 22, 29, 31] },
  // SGX has no memory; cache monitoring and allocation; processor trace.
  { function: 7, register: 'ebx', bits: [2, 12, 15, 25] },
  { function: 7, register: 'ecx', bits: [30] },
  // Architectural last branch records.
  { function: 7, register: 'edx', bits: [19] },
  // Instruction based sampling, performance counters, MONITORX.
  { function: 0x8000_0001, register: 'ecx', bits: [10, 23, 24, 28, 29] },
];

/**
 * Leaves that are all zero: MONITOR, performance counters, cache monitoring (two), SGX, processor trace, last branch
 * records, and AMD's performance counters. Intel's topology leaves are made anew, AMD's newest is left out.
 */
const ZEROED = new Set([0x5, 0xa, 0xf, 0x10, 0x12, 0x14, 0x1c, 0x8000_0022]);
const TOPOLOGY = [0xb, 0x1f] as const;
const AMD_EXTENDED_TOPOLOGY = 0x8000_0026;

const HYPERVISOR = 31;
const TSC_DEADLINE_TIMER = 24;
const HTT = 28;
const CMP_LEGACY = 1;
/** Always running APIC timer: all that is left of the leaf of power management. */
const ARAT = 2;

const clearBits = (entry: MutableEntry, register: CpuidRegister, mask: number): void => {
  entry[register] = (entry[register] & ~mask) >>> 0;
};

const setBit = (entry: MutableEntry, register: CpuidRegister, bit: number, on: boolean): void => {
  clearBits(entry, register, 1 << bit);
  if (on) entry[register] = (entry[register] | (1 << bit)) >>> 0;
};

/** Replaces bits `low` to `high` of a value. */
const withField = (value: number, low: number, high: number, field: number): number => {
  const mask = (2 ** (high - low + 1) - 1) * 2 ** low;
  return ((value & ~mask) | ((field * 2 ** low) & mask)) >>> 0;
};

/** Bits that number `count` cores. */
const coreBits = (count: number): number => Math.ceil(Math.log2(count));

const isAmd = (entries: readonly CpuidEntry[]): boolean => {
  const vendor = entries.find((entry) => entry.function === 0)?.ebx;
  // "Auth"enticAMD and "Hygo"nGenuine.
  return vendor === 0x6874_7541 || vendor === 0x6f67_7948;
};

const removeAbsent = (entry: MutableEntry): void => {
  for (const { function: leaf, register, bits } of ABSENT) {
    if (entry.function !== leaf || entry.index !== 0) continue;
    clearBits(
      entry,
      register,
      bits.reduce((mask, bit) => mask | (1 << bit), 0),
    );
  }
  if (ZEROED.has(entry.function)) Object.assign(entry, { eax: 0, ebx: 0, ecx: 0, edx: 0 });
  if (entry.function === 0x6) Object.assign(entry, { eax: entry.eax & (1 << ARAT), ebx: 0, ecx: 0, edx: 0 });
};

const hideFeatures = (entry: MutableEntry, hidden: ReadonlySet<string>): void => {
  for (const { function: leaf, index, register, bits } of CPUID_WORDS) {
    if (entry.function !== leaf || entry.index !== index) continue;
    for (const [name, bit] of Object.entries(bits)) if (hidden.has(name)) setBit(entry, register, bit, false);
  }
};

/** The processor's place in leaves that both vendors or one of them have. */
const placeProcessor = (
  entry: MutableEntry,
  { apicId, cpuCount, tscDeadlineTimer }: CpuidOptions,
  amd: boolean,
): void => {
  const bits = coreBits(cpuCount);
  const last = 2 ** bits - 1;
  switch (entry.function) {
    case 0x1:
      entry.ebx = withField(withField(entry.ebx, 24, 31, apicId), 16, 23, Math.min(2 ** bits, 0xff));
      setBit(entry, 'ecx', HYPERVISOR, true);
      setBit(entry, 'ecx', TSC_DEADLINE_TIMER, tscDeadlineTimer);
      setBit(entry, 'edx', HTT, cpuCount > 1);
      break;
    case 0x4:
    case 0x8000_001d: {
      if ((entry.eax & 0x1f) === 0) break;
      const level = (entry.eax >>> 5) & 0x7;
      entry.eax = withField(entry.eax, 14, 25, level >= 3 ? last : 0);
      if (entry.function === 0x4) entry.eax = withField(entry.eax, 26, 31, Math.min(last, 0x3f));
      break;
    }
    case 0x8000_0001:
      if (amd) setBit(entry, 'ecx', CMP_LEGACY, cpuCount > 1);
      break;
    case ADDRESS_SIZES:
      if (amd) entry.ecx = withField(withField(entry.ecx, 0, 7, cpuCount - 1), 12, 15, bits);
      break;
    case 0x8000_001e:
      Object.assign(entry, { eax: apicId, ebx: apicId & 0xff, ecx: 0, edx: 0 });
      break;
    default:
  }
};

/** The levels of an extended topology leaf: threads (one a core), cores, and the level that ends the list. */
const topologyEntries = (leaf: number, { apicId, cpuCount }: CpuidOptions): CpuidEntry[] => {
  const common = { function: leaf, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, edx: apicId };
  return [
    { ...common, index: 0, eax: 0, ebx: 1, ecx: 0x100 },
    { ...common, index: 1, eax: coreBits(cpuCount), ebx: cpuCount, ecx: 0x201 },
    { ...common, index: 2, eax: 0, ebx: 0, ecx: 2 },
  ];
};

/** x87 and SSE, and the legacy region with the header of an XSAVE area. */
const XSTATE_LEGACY = 0x3;
const XSAVE_LEGACY_BYTES = 576;
/** XSAVE components by the feature that they save: bits of XCR0 and IA32_XSS. */
const XSTATE_COMPONENTS: readonly (readonly [feature: string, bits: readonly number[]])[] = [
  ['avx', [2]],
  ['mpx', [3, 4]],
  ['avx512f', [5, 6, 7]],
  ['pku', [9]],
  ['user_shstk', [11, 12]],
  ['amx_tile', [17, 18]],
];

/** Takes hidden features out of leaf 0xd: their components, and their part of the size of an XSAVE area. */
const hideExtendedState = (entries: readonly MutableEntry[], hidden: ReadonlySet<string>): CpuidEntry[] => {
  const gone = new Set(XSTATE_COMPONENTS.flatMap(([feature, bits]) => (hidden.has(feature) ? bits : [])));
  if (gone.size === 0) return [...entries];
  const mask = [...gone].reduce((all, bit) => all | (1 << bit), 0);
  const kept = entries.filter((entry) => entry.function !== 0xd || !gone.has(entry.index));
  const rows = kept.filter((entry) => entry.function === 0xd);
  const main = rows.find((entry) => entry.index === 0);
  if (main === undefined) return kept;
  if (hidden.has('xsave')) {
    for (const row of rows) Object.assign(row, { eax: 0, ebx: 0, ecx: 0, edx: 0 });
    return kept;
  }
  clearBits(main, 'eax', mask);
  const user = rows.filter(
    (row) => row.index >= 2 && row.index < 32 && (main.eax & ~XSTATE_LEGACY & (1 << row.index)) !== 0,
  );
  main.ecx = user.reduce((size, row) => Math.max(size, row.ebx + row.eax), XSAVE_LEGACY_BYTES);
  main.ebx = Math.min(main.ebx, main.ecx);
  const supervisor = rows.find((entry) => entry.index === 1);
  if (supervisor !== undefined) clearBits(supervisor, 'ecx', mask);
  return kept;
};

const checkNames = (names: readonly string[]): void => {
  const unknown = names.find((name) => !CPUID_FEATURE_NAMES.includes(name));
  if (unknown !== undefined) {
    throw new VmConfigError(`cpus: no feature "${unknown}" can be hidden, known are ${CPUID_FEATURE_NAMES.join(', ')}`);
  }
};

/**
 * What one processor of the guest is told, from what KVM supports. The entries given are left alone.
 * @throws VmConfigError - a name to hide is not known
 */
export const filterCpuid = (supported: readonly CpuidEntry[], options: CpuidOptions): CpuidEntry[] => {
  checkNames(options.hide);
  const amd = isAmd(supported);
  const hidden = withDependents(options.hide);
  const maxLeaf = supported.find((entry) => entry.function === 0)?.eax ?? 0;
  const topology = TOPOLOGY.filter((leaf) => leaf <= maxLeaf);
  const made = new Set<number>([...TOPOLOGY, AMD_EXTENDED_TOPOLOGY]);
  const entries = supported.filter((entry) => !made.has(entry.function)).map((entry): MutableEntry => ({ ...entry }));
  for (const entry of entries) {
    removeAbsent(entry);
    placeProcessor(entry, options, amd);
    hideFeatures(entry, hidden);
  }
  // KVM sets OSXSAVE by the guest's CR4 where XSAVE is; the filter's input never means it.
  for (const entry of entries) if (entry.function === 0x1) clearBits(entry, 'ecx', 1 << 27);
  return [...hideExtendedState(entries, hidden), ...topology.flatMap((leaf) => topologyEntries(leaf, options))];
};
