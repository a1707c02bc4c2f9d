/**
 * The ioctls of /dev/kvm against the kernel's own headers, where they are installed (Debian: linux-libc-dev): type, number,
 * direction, and the size of the argument. Source: linux/kvm.h; asm-generic/ioctl.h (number bits 0-7, type 8-15, size
 * 16-29, direction 30-31, 1 to write and 2 to read).
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { projectDirectory } from '../support/peers.ts';

const HEADER = '/usr/include/linux/kvm.h';
const installed = existsSync(HEADER);
if (!installed) process.stderr.write('skipped: KVM ioctls: linux-libc-dev is not installed\n');

const KVMIO = 0xae;
const DIRECTIONS = { _IO: 0, _IOW: 1, _IOR: 2, _IOWR: 3 } as const;

/** Bytes of the arguments on x86-64, as a C compiler has them; those of variable length without what varies. */
const SIZES: Readonly<Record<string, number>> = {
  __u32: 4,
  __u64: 8,
  'struct kvm_clock_data': 48,
  'struct kvm_cpuid2': 8,
  'struct kvm_debugregs': 128,
  'struct kvm_dirty_log': 16,
  'struct kvm_fpu': 416,
  'struct kvm_ioeventfd': 64,
  'struct kvm_irqchip': 520,
  'struct kvm_irqfd': 32,
  'struct kvm_lapic_state': 1024,
  'struct kvm_mp_state': 4,
  'struct kvm_msr_list': 4,
  'struct kvm_msrs': 8,
  'struct kvm_nested_state': 128,
  'struct kvm_pit_config': 64,
  'struct kvm_pit_state2': 112,
  'struct kvm_regs': 144,
  'struct kvm_sregs': 312,
  'struct kvm_userspace_memory_region': 32,
  'struct kvm_vcpu_events': 64,
  'struct kvm_xcrs': 392,
  'struct kvm_xsave': 4096,
};

/** Requests by name, as the header makes them. */
const readHeader = (): Map<string, number> => {
  const pattern = /^#define\s+(KVM_\w+)\s+(_IO[WR]*)\(KVMIO,\s*(0x[0-9a-f]+)(?:,[\s\\]*([\w ]+))?\)/gm;
  const requests = new Map<string, number>();
  for (const [, name = '', direction = '', number = '', argument] of readFileSync(HEADER, 'utf8').matchAll(pattern)) {
    const size = argument === undefined ? 0 : SIZES[argument];
    if (size === undefined) continue;
    const bits = DIRECTIONS[direction as keyof typeof DIRECTIONS];
    requests.set(name, ((bits << 30) | (size << 16) | (KVMIO << 8) | Number(number)) >>> 0);
  }
  return requests;
};

/** `7`, `0x7` or `(1UL << 7)`. */
const numberOf = (text = ''): number => {
  const shift = /<< (\d+)/.exec(text)?.[1];
  return shift === undefined ? Number(text) : 2 ** Number(shift);
};

const sourceText = (): string => {
  const directory = join(projectDirectory, 'protocol/sys');
  const names = readdirSync(directory).filter((name) => name.startsWith('kvm'));
  return names.map((name) => readFileSync(join(directory, name), 'utf8')).join('\n');
};

/** Requests by name in the sources: constants, and the table of a vCPU's structures. */
const readSources = (): [string, number][] => {
  const text = sourceText();
  const constants = [...text.matchAll(/const (KVM_\w+) = (0x[0-9a-f_]*ae_?[0-9a-f]{2});/g)];
  const structures = [...text.matchAll(/name: '(\w+)', get: (0x[0-9a-f_]+), set: (0x[0-9a-f_]+)/g)];
  const number = (digits = ''): number => Number(digits.replaceAll('_', ''));
  return [
    ...constants.map(([, name = '', value]): [string, number] => [name, number(value)]),
    ...structures.flatMap(([, name = '', get, set]): [string, number][] => [
      [`KVM_GET_${name}`, number(get)],
      [`KVM_SET_${name}`, number(set)],
    ]),
  ];
};

describe.skipIf(!installed)('the ioctls agree with the kernel', () => {
  it('kvm.h: every request of protocol/sys', () => {
    const header = readHeader();
    const sources = readSources();
    const known = sources.filter(([name]) => header.has(name));
    expect(Object.fromEntries(known)).toEqual(Object.fromEntries(known.map(([name]) => [name, header.get(name)])));
    expect(known.length).toBeGreaterThanOrEqual(45);
    expect(sources.filter(([name]) => !header.has(name)).map(([name]) => name)).toEqual([]);
  });

  it('kvm.h: every capability, exit and flag of protocol/sys', () => {
    const pattern = /^#define\s+(KVM_\w+)\s+(\(1U?L? << \d+\)|0x[0-9a-f]+|\d+)\s*(?:\/\*.*)?$/gm;
    const header = new Map(
      [...readFileSync(HEADER, 'utf8').matchAll(pattern)].map(([, name = '', value]) => [name, numberOf(value)]),
    );
    const numbers = [...sourceText().matchAll(/const (KVM_(?:CAP|EXIT|MEM|IRQFD)_\w+) = (\d+);/g)].map(
      ([, name = '', value]): [string, number] => [name, Number(value)],
    );
    expect(numbers.length).toBeGreaterThanOrEqual(20);
    expect(Object.fromEntries(numbers)).toEqual(Object.fromEntries(numbers.map(([name]) => [name, header.get(name)])));
  });
});
