import { describe, expect, it } from 'vitest';
import {
  type CpuidEntry,
  type CpuidOptions,
  decodeCpuid,
  encodeCpuid,
  filterCpuid,
  physicalAddressBits,
} from '../../../../vmm-client/vmm/cpuid.ts';
import { CPUID_FEATURE_NAMES } from '../../../../vmm-client/vmm/cpuid-features.ts';
import { VmConfigError } from '../../../../vmm-client/vmm/errors.ts';

const ALL = 0xffff_ffff;

const row = (leaf: number, index: number, eax: number, ebx: number, ecx: number, edx: number): CpuidEntry => ({
  function: leaf,
  index,
  flags: index > 0 || [4, 7, 0xb, 0xd].includes(leaf) ? 1 : 0,
  eax,
  ebx,
  ecx,
  edx,
});

/** A processor with everything: every feature bit set, and the topology of another machine. */
const INTEL = [
  row(0, 0, 0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
  row(1, 0, 0x806f8, 0x4d80_0800, ALL, ALL),
  row(4, 0, 0xfc00_4121, 0x02c0_003f, 0x3f, 0),
  row(4, 3, 0xfc1f_c163, 0x0380_003f, 0x1_bfff, 4),
  row(4, 4, 0, 0, 0, 0),
  row(5, 0, 0x40, 0x40, 3, 0x2020),
  row(6, 0, ALL, 2, 9, 0),
  row(7, 0, 1, ALL, ALL, ALL),
  row(7, 1, ALL, 0, 0, 0),
  row(0xa, 0, 0x0730_0805, 0, 0xf, 0x8604),
  row(0xb, 0, 1, 2, 0x100, 0x4d),
  row(0xb, 1, 7, 0x60, 0x201, 0x4d),
  row(0xd, 0, 0x6_02e7, 0x2b00, 0x2b00, 0),
  row(0xd, 1, 0x1f, 0x2b48, 0x1800, 0),
  row(0xd, 2, 0x100, 0x240, 0, 0),
  row(0xd, 5, 0x40, 0x440, 0, 0),
  row(0xd, 6, 0x200, 0x480, 0, 0),
  row(0xd, 7, 0x400, 0x680, 0, 0),
  row(0xd, 9, 8, 0xa80, 0, 0),
  row(0xd, 17, 0x40, 0xac0, 2, 0),
  row(0xd, 18, 0x2000, 0xb00, 6, 0),
  row(0x12, 0, 3, 0, 0, 0x3633),
  row(0x14, 0, 1, 0x1f, 7, 0),
  row(0x1f, 0, 1, 2, 0x100, 0x4d),
  row(0x4000_0000, 0, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
  row(0x4000_0001, 0, 0x0100_7efb, 0, 0, 0),
  row(0x8000_0000, 0, 0x8000_0008, 0, 0, 0),
  row(0x8000_0001, 0, 0, 0, ALL, ALL),
  row(0x8000_0008, 0, 0x3934, 0, 0, 0),
];

const AMD = [
  row(0, 0, 0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
  row(1, 0, 0xa2_0f12, 0x0d10_0800, ALL, ALL),
  row(0xb, 0, 1, 2, 0x100, 0xd),
  row(0x8000_0001, 0, 0xa2_0f12, 0, ALL, ALL),
  row(0x8000_0008, 0, 0x3030, 0, 0x700f, 0),
  row(0x8000_001d, 0, 0x4121, 0, 0, 0),
  row(0x8000_001d, 3, 0x3c163, 0, 0, 0),
  row(0x8000_001e, 0, 0xd, 0x106, 0x100, 0),
  row(0x8000_0022, 0, 1, 6, 0, 0),
  row(0x8000_0026, 0, 1, 2, 0x100, 0xd),
];

const ONE: CpuidOptions = { apicId: 0, cpuCount: 1, hide: [], tscDeadlineTimer: true };

const find = (entries: readonly CpuidEntry[], leaf: number, index = 0): CpuidEntry => {
  const found = entries.filter((entry) => entry.function === leaf && entry.index === index);
  if (found.length !== 1 || found[0] === undefined) throw new Error(`${found.length} rows of leaf ${leaf}`);
  return found[0];
};

const registers = ({ eax, ebx, ecx, edx }: CpuidEntry): number[] => [eax, ebx, ecx, edx];
const bit = (value: number, index: number): number => (value >>> index) & 1;

describe('struct kvm_cpuid2', () => {
  const BYTES = Buffer.from(
    '0200000000000000' +
      '0d000000010000000100000004030201080706050c0b0a09100f0e0d000000000000000000000000' +
      '0800008000000000000000003039000000000000000000000000000000000000' +
      '0000000000000000',
    'hex',
  );
  const ROWS = [
    { function: 0xd, index: 1, flags: 1, eax: 0x0102_0304, ebx: 0x0506_0708, ecx: 0x090a_0b0c, edx: 0x0d0e_0f10 },
    { function: 0x8000_0008, index: 0, flags: 0, eax: 0x3930, ebx: 0, ecx: 0, edx: 0 },
  ];

  it('is read row by row, as many as it says', () => {
    const longer = Buffer.concat([Buffer.alloc(3), BYTES, Buffer.alloc(40, 0xff)]).subarray(3);

    expect(decodeCpuid(longer)).toEqual(ROWS);
  });

  it('is written row by row', () => {
    expect(Buffer.from(encodeCpuid(ROWS)).toString('hex')).toBe(BYTES.toString('hex'));
  });
});

describe('the place of a processor', () => {
  it('has its APIC id and one package of cores, at Intel', () => {
    const entries = filterCpuid(INTEL, { ...ONE, apicId: 5, cpuCount: 6 });

    expect(find(entries, 1).ebx).toBe(0x0508_0800);
    expect(bit(find(entries, 1).edx, 28)).toBe(1);
    for (const leaf of [0xb, 0x1f]) {
      expect(registers(find(entries, leaf, 0))).toEqual([0, 1, 0x100, 5]);
      expect(registers(find(entries, leaf, 1))).toEqual([3, 6, 0x201, 5]);
      expect(registers(find(entries, leaf, 2))).toEqual([0, 0, 2, 5]);
      expect(find(entries, leaf, 2).flags).toBe(1);
    }
    expect(find(entries, 4, 0).eax).toBe(0x1c00_0121);
    expect(find(entries, 4, 3).eax).toBe(0x1c01_c163);
    expect(find(entries, 4, 4).eax).toBe(0);
    expect(find(entries, 0x8000_0008).ecx).toBe(0);
  });

  it('has its APIC id and one package of cores, at AMD', () => {
    const entries = filterCpuid(AMD, { ...ONE, apicId: 5, cpuCount: 6 });

    expect(find(entries, 1).ebx).toBe(0x0508_0800);
    expect(registers(find(entries, 0xb, 1))).toEqual([3, 6, 0x201, 5]);
    expect(find(entries, 0x8000_0008).ecx).toBe(0x3005);
    expect(bit(find(entries, 0x8000_0001).ecx, 1)).toBe(1);
    expect(find(entries, 0x8000_001d, 0).eax).toBe(0x121);
    expect(find(entries, 0x8000_001d, 3).eax).toBe(0x1_c163);
    expect(registers(find(entries, 0x8000_001e))).toEqual([5, 5, 0, 0]);
    expect(entries.some((entry) => entry.function === 0x1f || entry.function === 0x8000_0026)).toBe(false);
  });

  it('is alone in a machine of one', () => {
    const entries = filterCpuid(AMD, ONE);

    expect(find(entries, 1).ebx).toBe(0x0001_0800);
    expect(bit(find(entries, 1).edx, 28)).toBe(0);
    expect(registers(find(entries, 0xb, 1))).toEqual([0, 1, 0x201, 0]);
    expect([find(entries, 0x8000_0008).ecx, bit(find(entries, 0x8000_0001).ecx, 1)]).toEqual([0, 0]);
  });

  it('may be the last of 254', () => {
    const entries = filterCpuid(INTEL, { ...ONE, apicId: 253, cpuCount: 254 });

    expect(find(entries, 1).ebx).toBe(0xfdff_0800);
    expect(registers(find(entries, 0xb, 1))).toEqual([8, 254, 0x201, 253]);
    expect(find(entries, 4, 3).eax).toBe(0xfc3f_c163);
  });
});

describe('what no guest sees', () => {
  it('the hypervisor bit is set, MONITOR and the counters are not, the rest is', () => {
    const entries = filterCpuid(INTEL, { ...ONE, cpuCount: 2 });

    // Cleared: 2, 3, 4, 7, 8, 15 and OSXSAVE (27).
    expect(find(entries, 1).ecx).toBe(0xf7ff_7e63);
    expect(find(entries, 1).edx).toBe(0x5f9f_ffff);
    expect(find(entries, 7).ebx).toBe(0xfdff_6ffb);
    expect(find(entries, 7).ecx).toBe(0xbfff_ffff);
    expect(find(entries, 7).edx).toBe(0xfff7_ffff);
    expect(registers(find(entries, 6))).toEqual([4, 0, 0, 0]);
    for (const leaf of [5, 0xa, 0x12, 0x14]) expect(registers(find(entries, leaf))).toEqual([0, 0, 0, 0]);
  });

  it('AMD counters and MONITORX', () => {
    const entries = filterCpuid(AMD, { ...ONE, cpuCount: 2 });

    expect(find(entries, 0x8000_0001).ecx).toBe(0xce7f_fbff);
    expect(registers(find(entries, 0x8000_0022))).toEqual([0, 0, 0, 0]);
  });

  it('the TSC deadline timer is there when KVM has it', () => {
    const without = INTEL.map((entry) => (entry.function === 1 ? { ...entry, ecx: 0 } : entry));

    expect(find(filterCpuid(without, ONE), 1).ecx).toBe(0x8100_0000);
    expect(bit(find(filterCpuid(INTEL, { ...ONE, tscDeadlineTimer: false }), 1).ecx, 24)).toBe(0);
  });

  it('what KVM says about itself and the features of nested guests stay as they are', () => {
    const entries = filterCpuid(INTEL, ONE);

    expect(find(entries, 0x4000_0001)).toEqual(find(INTEL, 0x4000_0001));
    expect(bit(find(entries, 1).ecx, 5)).toBe(1);
  });

  it('the entries given are left alone', () => {
    const before = structuredClone(INTEL);

    filterCpuid(INTEL, { ...ONE, hide: ['xsave'] });

    expect(INTEL).toEqual(before);
  });
});

describe('features that the user hides', () => {
  const hide = (...names: string[]): CpuidEntry[] => filterCpuid(INTEL, { ...ONE, hide: names });

  it('cx16 is one bit', () => {
    const plain = filterCpuid(INTEL, ONE);
    const entries = hide('cx16');

    expect((find(plain, 1).ecx ^ find(entries, 1).ecx) >>> 0).toBe(0x2000);
    const others = (rows: CpuidEntry[]): CpuidEntry[] => rows.filter((entry) => entry.function !== 1);
    expect(others(entries)).toEqual(others(plain));
  });

  it('xsave takes everything with it that needs it', () => {
    const entries = hide('xsave');

    // FMA, XSAVE, OSXSAVE, AVX, F16C.
    expect([12, 26, 27, 28, 29].map((index) => bit(find(entries, 1).ecx, index))).toEqual([0, 0, 0, 0, 0]);
    // AVX2, MPX, and AVX-512: F, DQ, IFMA, CD, BW, VL.
    expect([5, 14, 16, 17, 21, 28, 30, 31].some((index) => bit(find(entries, 7).ebx, index) === 1)).toBe(false);
    // VBMI, PKU, VBMI2, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ.
    expect([1, 3, 6, 9, 10, 11, 12, 14].some((index) => bit(find(entries, 7).ecx, index) === 1)).toBe(false);
    // AMX and FP16.
    expect([22, 23, 24, 25].some((index) => bit(find(entries, 7).edx, index) === 1)).toBe(false);
    expect([4, 5].some((index) => bit(find(entries, 7, 1).eax, index) === 1)).toBe(false);
    const state = entries.filter((entry) => entry.function === 0xd);
    expect(state.map((entry) => [entry.index, ...registers(entry)])).toEqual([
      [0, 0, 0, 0, 0],
      [1, 0, 0, 0, 0],
    ]);
  });

  it('avx512f leaves the AVX part of the extended state', () => {
    const entries = hide('avx512f');

    expect(registers(find(entries, 0xd, 0))).toEqual([0x6_0207, 0x2b00, 0x2b00, 0]);
    const state = entries.filter((entry) => entry.function === 0xd);
    expect(state.map((entry) => entry.index)).toEqual([0, 1, 2, 9, 17, 18]);
  });

  it('the size of the extended state shrinks with what was at its end', () => {
    const entries = hide('avx512f', 'amx_tile', 'pku', 'user_shstk');

    expect(registers(find(entries, 0xd, 0))).toEqual([7, 0x340, 0x340, 0]);
    expect(registers(find(entries, 0xd, 1))).toEqual([0x1f, 0x2b48, 0, 0]);
  });

  it('x2apic and the deadline timer can be hidden too', () => {
    const { ecx } = find(hide('x2apic', 'tsc_deadline_timer'), 1);

    expect([bit(ecx, 21), bit(ecx, 24)]).toEqual([0, 0]);
  });

  it('a name that is not known is refused with those that are', () => {
    expect(() => hide('cx16', 'sse')).toThrow(VmConfigError);
    expect(() => hide('cx16', 'sse')).toThrow(
      /^cpus: no feature "sse" can be hidden, known are 3dnowprefetch, .*, cx16, .*, xsaves$/,
    );
  });

  it('no name is in the table twice', () => {
    expect(new Set(CPUID_FEATURE_NAMES).size).toBe(CPUID_FEATURE_NAMES.length);
  });
});

describe('the width of physical addresses', () => {
  it.each([
    ['52 bits', INTEL, 52],
    ['48 bits', AMD, 48],
    ['36 bits where the leaf is missing', [], 36],
  ])('%s', (_, entries, expected) => {
    expect(physicalAddressBits(entries)).toBe(expected);
    expect(physicalAddressBits(filterCpuid(entries, ONE))).toBe(expected);
  });
});
