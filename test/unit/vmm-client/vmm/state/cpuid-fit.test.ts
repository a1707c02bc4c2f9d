import { describe, expect, it } from 'vitest';
import type { CpuidEntry } from '../../../../../vmm-client/vmm/cpuid.ts';
import { checkCpuidFits } from '../../../../../vmm-client/vmm/state/cpuid-fit.ts';

const entry = (leaf: number, values: Partial<CpuidEntry>, index = 0): CpuidEntry => ({
  function: leaf,
  index,
  flags: 0,
  eax: 0,
  ebx: 0,
  ecx: 0,
  edx: 0,
  ...values,
});

/** "GenuineIntel" and "AuthenticAMD" in ebx, edx, ecx. */
const INTEL = entry(0, { eax: 0x1f, ebx: 0x756e_6547, edx: 0x4965_6e69, ecx: 0x6c65_746e });
const AMD = entry(0, { eax: 0x10, ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163 });
const host = (...entries: CpuidEntry[]): CpuidEntry[] => [INTEL, ...entries];

describe('the CPUID that a guest was told', () => {
  it('fits a host that has all of it, and more', () => {
    const told = host(entry(1, { ecx: 1 << 26 }), entry(0x8000_0008, { eax: 0x3027 }));
    const here = host(entry(1, { ecx: (1 << 26) | (1 << 28) }), entry(0x8000_0008, { eax: 0x302e }));
    expect(() => checkCpuidFits(told, here, false)).not.toThrow();
  });

  it.each([
    ['avx', entry(1, { ecx: 1 << 28 }), 'avx'],
    ['the highest bit', entry(7, { ebx: (1 << 31) >>> 0 }), 'avx512vl'],
    ['several', entry(7, { ebx: (1 << 5) | (1 << 16) }), 'avx2, avx512f'],
    ['a leaf with an index', entry(0xd, { eax: 0b1000 }, 1), 'xsaves'],
    ['a component of the extended state', entry(0xd, { eax: 0x204 }), 'XCR0 bit 2, XCR0 bit 9'],
    ['one of the upper half', entry(0xd, { edx: 0x4000_0000 }), 'XCR0 bit 62'],
    ['what KVM has for guests', entry(0x4000_0001, { eax: 0x2 }), 'KVM feature bit 1'],
    ['the timer, which KVM tells of elsewhere', entry(1, { ecx: 1 << 24 }), 'tsc_deadline_timer'],
  ])('does not fit without %s', (_, told, names) => {
    expect(() => checkCpuidFits(host(told), host(), false)).toThrow(
      `processors: the guest uses features that this host has not got: ${names}`,
    );
  });

  it('may have the timer where KVM has it', () => {
    expect(() => checkCpuidFits(host(entry(1, { ecx: 1 << 24 })), host(), true)).not.toThrow();
  });

  it('may have what only says where a processor is', () => {
    expect(() => checkCpuidFits(host(entry(1, { ebx: 0x0300_0800, edx: 1 << 28 })), host(), false)).not.toThrow();
  });

  it('does not fit a host of another vendor', () => {
    expect(() => checkCpuidFits([AMD], host(), false)).toThrow(
      "processors: the guest's are of AuthenticAMD, this host's of GenuineIntel",
    );
  });

  it('does not fit a host with shorter addresses', () => {
    const told = host(entry(0x8000_0008, { eax: 0x3030 }));
    expect(() => checkCpuidFits(told, host(entry(0x8000_0008, { eax: 0x3027 })), false)).toThrow(
      "processors: the guest's have addresses of 48 bits, this host's of 39",
    );
  });
});
