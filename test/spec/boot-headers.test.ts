/**
 * What a guest and KVM are handed at start against the headers of the kernel, where they are installed (Debian:
 * linux-libc-dev): offsets are computed from the fields that the headers list, not taken from the code.
 */

import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SETUP_HEADER, SETUP_HEADER_MAGIC } from '../../vmm-client/vmm/boot/bzimage.ts';
import { BOOT_PARAMS, E820_MAX_ENTRIES } from '../../vmm-client/vmm/boot/linux.ts';
import { KVM_REGS, KVM_REGS_BYTES, KVM_SREGS, KVM_SREGS_BYTES } from '../../vmm-client/vmm/boot/registers.ts';
import { KVM_CPUID_ENTRY_BYTES } from '../../vmm-client/vmm/cpuid.ts';

const INCLUDE = '/usr/include/x86_64-linux-gnu/asm';
const installed = existsSync(`${INCLUDE}/bootparam.h`);
if (!installed) process.stderr.write('skipped: boot headers: linux-libc-dev for x86-64 is not installed\n');

const textOf = (header: string): string =>
  readFileSync(`${INCLUDE}/${header}`, 'utf8').replace(/\/\*[\s\S]*?\*\//g, '');

interface Layout {
  readonly offsets: Readonly<Record<string, number>>;
  readonly size: number;
}

/** Offsets of the fields of a structure without padding of the compiler's: packed, or naturally aligned as it stands. */
const layoutOf = (text: string, name: string, start: number, known: Readonly<Record<string, number>> = {}): Layout => {
  const sizes: Readonly<Record<string, number>> = { __u8: 1, __u16: 2, __u32: 4, __u64: 8, ...known };
  const body = new RegExp(`struct ${name} \\{([^}]*)\\}`).exec(text)?.[1];
  if (body === undefined) throw new Error(`no struct ${name}`);
  const offsets: Record<string, number> = {};
  let at = start;
  for (const [, type = '', fields = ''] of body.matchAll(/(?:struct\s+)?(\w+)\s+([^;]+);/g)) {
    const size = sizes[type];
    if (size === undefined) throw new Error(`struct ${name}: size of ${type}`);
    for (const field of fields.split(',')) {
      const [, fieldName = '', count = '1'] = /^\s*(\w+)(?:\[(.+)\])?\s*$/.exec(field) ?? [];
      offsets[fieldName] = at;
      at += size * (/^\d+$/.test(count) ? Number(count) : 4);
    }
  }
  return { offsets, size: at - start };
};

const same = (ours: Readonly<Record<string, number>>, theirs: Layout): void => {
  const names = Object.keys(ours);
  expect(ours).toEqual(Object.fromEntries(names.map((name) => [name, theirs.offsets[name]])));
};

describe.skipIf(!installed)('the layouts agree with the kernel', () => {
  it('asm/bootparam.h: struct setup_header at 0x1f1 of the zero page', () => {
    same({ ...SETUP_HEADER }, layoutOf(textOf('bootparam.h'), 'setup_header', 0x1f1));
  });

  it('asm/bootparam.h: struct boot_params, whose offsets are in its comments', () => {
    const text = readFileSync(`${INCLUDE}/bootparam.h`, 'utf8');
    const body = text.slice(text.indexOf('struct boot_params {'));
    const offsets = Object.fromEntries(
      [...body.matchAll(/\b(\w+)(?:\[\w+\])?;[^\n]*\/\* 0x([0-9a-f]{3}) \*\//g)].map(([, name = '', at = '']) => [
        name,
        Number.parseInt(at, 16),
      ]),
    );

    same({ ...BOOT_PARAMS }, { offsets, size: 4096 });
    expect(body.match(/e820_table\[(\w+)\]/)?.[1]).toBe('E820_MAX_ENTRIES_ZEROPAGE');
    expect(text).toMatch(new RegExp(`#define E820_MAX_ENTRIES_ZEROPAGE ${E820_MAX_ENTRIES}\\n`));
  });

  it('asm/kvm.h: struct kvm_regs and struct kvm_sregs', () => {
    const text = textOf('kvm.h');
    const regs = layoutOf(text, 'kvm_regs', 0);
    const segment = layoutOf(text, 'kvm_segment', 0);
    const table = layoutOf(text, 'kvm_dtable', 0);
    const sregs = layoutOf(text, 'kvm_sregs', 0, { kvm_segment: segment.size, kvm_dtable: table.size });

    same({ ...KVM_REGS }, regs);
    same({ ...KVM_SREGS }, sregs);
    expect([regs.size, segment.size, table.size, sregs.size]).toEqual([KVM_REGS_BYTES, 24, 16, KVM_SREGS_BYTES]);
    const { base, limit, selector, type, present, unusable } = segment.offsets;
    expect([base, limit, selector, type, present, unusable]).toEqual([0, 8, 12, 14, 15, 22]);
  });

  it('asm/kvm.h: struct kvm_cpuid_entry2', () => {
    const { offsets, size } = layoutOf(textOf('kvm.h'), 'kvm_cpuid_entry2', 0);

    expect(offsets).toEqual({ function: 0, index: 4, flags: 8, eax: 12, ebx: 16, ecx: 20, edx: 24, padding: 28 });
    expect(size).toBe(KVM_CPUID_ENTRY_BYTES);
  });
});

it('the magic of a setup header is HdrS', () => {
  expect(Buffer.from(new Uint32Array([SETUP_HEADER_MAGIC]).buffer).toString()).toBe('HdrS');
});
