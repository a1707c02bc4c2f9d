/**
 * The CPUID features that can be kept from a guest, by the names that Linux has for them in /proc/cpuinfo, and which of
 * them cannot be without which other. Features that every 64-bit kernel needs are not in the table. Source: Linux,
 * arch/x86/include/asm/cpufeatures.h (names and bits) and arch/x86/kernel/cpu/cpuid-deps.c (dependencies).
 */

export type CpuidRegister = 'eax' | 'ebx' | 'ecx' | 'edx';

export interface CpuidWord {
  readonly function: number;
  readonly index: number;
  readonly register: CpuidRegister;
  /** Bit number by name. */
  readonly bits: Readonly<Record<string, number>>;
}

export const CPUID_WORDS: readonly CpuidWord[] = [
  {
    function: 1,
    index: 0,
    register: 'ecx',
    bits: {
      pni: 0,
      pclmulqdq: 1,
      vmx: 5,
      ssse3: 9,
      fma: 12,
      cx16: 13,
      pcid: 17,
      sse4_1: 19,
      sse4_2: 20,
      x2apic: 21,
      movbe: 22,
      popcnt: 23,
      tsc_deadline_timer: 24,
      aes: 25,
      xsave: 26,
      avx: 28,
      f16c: 29,
      rdrand: 30,
    },
  },
  {
    function: 1,
    index: 0,
    register: 'edx',
    bits: { vme: 1, mce: 7, mtrr: 12, mca: 14, pat: 16, pse36: 17, clflush: 19 },
  },
  {
    function: 7,
    index: 0,
    register: 'ebx',
    bits: {
      fsgsbase: 0,
      tsc_adjust: 1,
      bmi1: 3,
      hle: 4,
      avx2: 5,
      smep: 7,
      bmi2: 8,
      erms: 9,
      invpcid: 10,
      rtm: 11,
      mpx: 14,
      avx512f: 16,
      avx512dq: 17,
      rdseed: 18,
      adx: 19,
      smap: 20,
      avx512ifma: 21,
      clflushopt: 23,
      clwb: 24,
      avx512cd: 28,
      sha_ni: 29,
      avx512bw: 30,
      avx512vl: 31,
    },
  },
  {
    function: 7,
    index: 0,
    register: 'ecx',
    bits: {
      avx512vbmi: 1,
      umip: 2,
      pku: 3,
      waitpkg: 5,
      avx512_vbmi2: 6,
      user_shstk: 7,
      gfni: 8,
      vaes: 9,
      vpclmulqdq: 10,
      avx512_vnni: 11,
      avx512_bitalg: 12,
      avx512_vpopcntdq: 14,
      la57: 16,
      rdpid: 22,
      bus_lock_detect: 24,
      cldemote: 25,
      movdiri: 27,
      movdir64b: 28,
    },
  },
  {
    function: 7,
    index: 0,
    register: 'edx',
    bits: {
      fsrm: 4,
      avx512_vp2intersect: 8,
      md_clear: 10,
      serialize: 14,
      tsxldtrk: 16,
      ibt: 20,
      amx_bf16: 22,
      avx512_fp16: 23,
      amx_tile: 24,
      amx_int8: 25,
      flush_l1d: 28,
      arch_capabilities: 29,
    },
  },
  { function: 7, index: 1, register: 'eax', bits: { avx_vnni: 4, avx512_bf16: 5, lam: 26 } },
  { function: 0xd, index: 1, register: 'eax', bits: { xsaveopt: 0, xsavec: 1, xgetbv1: 2, xsaves: 3, xfd: 4 } },
  {
    function: 0x8000_0001,
    index: 0,
    register: 'ecx',
    bits: {
      svm: 2,
      abm: 5,
      sse4a: 6,
      misalignsse: 7,
      '3dnowprefetch': 8,
      osvw: 9,
      xop: 11,
      fma4: 16,
      tbm: 21,
      topoext: 22,
      bpext: 26,
    },
  },
  { function: 0x8000_0001, index: 0, register: 'edx', bits: { mmxext: 22, fxsr_opt: 25, pdpe1gb: 26, rdtscp: 27 } },
  { function: 0x8000_0008, index: 0, register: 'ebx', bits: { clzero: 0, xsaveerptr: 2, wbnoinvd: 9, virt_ssbd: 25 } },
];

/** Features that go when the one in front goes. */
const DEPENDENTS: Readonly<Record<string, readonly string[]>> = {
  xsave: ['xsaveopt', 'xsavec', 'xgetbv1', 'xsaves', 'avx', 'pku', 'mpx'],
  xsaves: ['xfd', 'user_shstk', 'ibt'],
  xgetbv1: ['xfd'],
  xfd: ['amx_tile'],
  amx_tile: ['amx_bf16', 'amx_int8'],
  avx: ['fma', 'f16c', 'vaes', 'vpclmulqdq', 'avx2', 'avx512f', 'avx_vnni', 'xop', 'fma4'],
  avx512f: [
    'avx512ifma',
    'avx512cd',
    'avx512dq',
    'avx512bw',
    'avx512vl',
    'avx512vbmi',
    'avx512_vpopcntdq',
    'avx512_vp2intersect',
  ],
  avx512vl: ['avx512_vbmi2', 'avx512_vnni', 'avx512_bitalg', 'avx512_bf16', 'avx512_vp2intersect'],
  avx512bw: ['avx512_fp16'],
};

/** Every name that can be hidden, sorted. */
export const CPUID_FEATURE_NAMES: readonly string[] = CPUID_WORDS.flatMap(({ bits }) => Object.keys(bits)).sort();

/** The names with all that cannot be without them. */
export const withDependents = (names: readonly string[]): ReadonlySet<string> => {
  const all = new Set(names);
  // What is added while a set is iterated is visited too.
  for (const name of all) for (const dependent of DEPENDENTS[name] ?? []) all.add(dependent);
  return all;
};
