import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type KernelOptions, loadKernel } from '../../../../../vmm-client/vmm/boot/kernel.ts';
import { VmConfigError } from '../../../../../vmm-client/vmm/errors.ts';
import {
  bootOptions,
  bytesAt,
  bzImage,
  elf,
  elfWithNotes,
  fileOf,
  GiB,
  load,
  MiB,
  machineOf,
  newFolder,
  note,
  viewAt,
  XEN,
} from './kernel-files.ts';

const PVH = elfWithNotes(note(18, XEN, [8, 0, 0x20, 0]));
const BIG = [
  [0, 3 * GiB],
  [4 * GiB, 77 * GiB],
] as const;

/** Rows of a memory map: address, size, type. */
const mapOf = (view: DataView, count: number, entryBytes: number): number[][] =>
  Array.from({ length: count }, (_, index) => [
    Number(view.getBigUint64(index * entryBytes, true)),
    Number(view.getBigUint64(index * entryBytes + 8, true)),
    view.getUint32(index * entryBytes + 16, true),
  ]);

const BIG_MAP = [
  [0, 0x9_fc00, 1],
  [0x9_fc00, 0x4_0400, 2],
  [0xe_0000, 0x2_0000, 3],
  [0x10_0000, 0xbff0_0000, 1],
  [0x1_0000_0000, 77 * GiB, 1],
];

const failure = (options: KernelOptions): string => {
  try {
    loadKernel(options);
  } catch (error) {
    expect(error).toBeInstanceOf(VmConfigError);
    return (error as Error).message;
  }
  throw new Error('the kernel was loaded');
};

describe('what a kernel is told', () => {
  it('64-bit protocol: memory beyond 64 GiB, ACPI tables and command line are in the zero page', () => {
    const machine = machineOf(...BIG);

    loadKernel(bootOptions(machine, bzImage(), { cmdline: 'root=/dev/vda quiet' }));

    const page = viewAt(machine, 0x7000, 4096);
    expect(page.getUint8(0x1e8)).toBe(5);
    expect(mapOf(viewAt(machine, 0x72d0, 100), 5, 20)).toEqual(BIG_MAP);
    expect(page.getBigUint64(0x70, true)).toBe(0xe_0000n);
    expect(Buffer.from(bytesAt(machine, 0xe_0000, 8)).toString()).toBe('RSD PTR ');
    expect(Buffer.from(bytesAt(machine, 0x2_0000, 20)).toString()).toBe('root=/dev/vda quiet\0');
  });

  it('PVH: the start info leads to all of it', () => {
    const machine = machineOf(...BIG);

    loadKernel(bootOptions(machine, PVH, { cmdline: 'quiet' }));

    const info = viewAt(machine, 0x6000, 56);
    expect([0, 4, 8, 12].map((at) => info.getUint32(at, true))).toEqual([0x336e_c578, 1, 0, 0]);
    expect([16, 24, 32, 40].map((at) => Number(info.getBigUint64(at, true)))).toEqual([0, 0x2_0000, 0xe_0000, 0x6200]);
    expect([info.getUint32(48, true), info.getUint32(52, true)]).toEqual([5, 0]);
    expect(mapOf(viewAt(machine, 0x6200, 120), 5, 24)).toEqual(BIG_MAP);
    expect(Buffer.from(bytesAt(machine, 0x2_0000, 6)).toString()).toBe('quiet\0');
  });

  it('PVH: the initramfs is the only module', () => {
    const machine = machineOf([0, 16 * MiB]);

    loadKernel(bootOptions(machine, PVH, { initramfs: fileOf('0123456789') }));

    expect(viewAt(machine, 0x6000, 56).getUint32(12, true)).toBe(1);
    expect(viewAt(machine, 0x6000, 56).getBigUint64(16, true)).toBe(0x6100n);
    const module = viewAt(machine, 0x6100, 32);
    expect([0, 8, 16, 24].map((at) => module.getBigUint64(at, true))).toEqual([0xff_f000n, 10n, 0n, 0n]);
    expect(Buffer.from(bytesAt(machine, 0xff_f000, 10)).toString()).toBe('0123456789');
  });
});

describe('the initramfs', () => {
  const addressOf = (machine: ReturnType<typeof machineOf>): number[] => {
    const page = viewAt(machine, 0x7000, 4096);
    return [page.getUint32(0x218, true), page.getUint32(0x21c, true)];
  };

  it('is as high in low RAM as whole pages go', () => {
    const machine = machineOf([0, 64 * MiB], [4 * GiB, GiB]);

    loadKernel(bootOptions(machine, bzImage(), { initramfs: fileOf(new Uint8Array(4097).fill(7)) }));

    expect(addressOf(machine)).toEqual([64 * MiB - 8192, 4097]);
    expect([...bytesAt(machine, 64 * MiB - 8192, 4098)]).toEqual([...new Array<number>(4097).fill(7), 0]);
  });

  it('is below the highest address that the kernel takes', () => {
    const machine = machineOf([0, 64 * MiB]);
    const kernel = bzImage({ initrdAddressMax: 0x37f_ffff });

    loadKernel(bootOptions(machine, kernel, { initramfs: fileOf(new Uint8Array(4096)) }));

    expect(addressOf(machine)).toEqual([0x37f_f000, 4096]);
  });

  it('is below a kernel that has the end of the memory', () => {
    const machine = machineOf([0, 17 * MiB]);

    loadKernel(bootOptions(machine, bzImage(), { initramfs: fileOf(new Uint8Array(4096)) }));

    expect(addressOf(machine)).toEqual([16 * MiB - 4096, 4096]);
  });

  it('is between two segments when it fits nowhere above', () => {
    const machine = machineOf([0, 8 * MiB]);
    const kernel = elf({ headers: [load(), load({ address: 0x70_0000n, memoryBytes: 0x10_0000n })] });

    loadKernel(bootOptions(machine, kernel, { initramfs: fileOf(new Uint8Array(2 * MiB)) }));

    expect(addressOf(machine)).toEqual([5 * MiB, 2 * MiB]);
  });

  it.each([
    ['that is larger than the memory', 64 * MiB],
    ['that fits only over the kernel', 47 * MiB + 1],
  ])('%s is refused with the sizes', (_, size) => {
    const initramfs = fileOf(new Uint8Array(size));

    expect(failure(bootOptions(machineOf([0, 64 * MiB]), bzImage(), { initramfs }))).toBe(
      `initramfs ${initramfs}: ${size} bytes do not fit between 1048576 and 67108864 beside a kernel of 1048576 bytes`,
    );
  });

  it('that does not fit leaves guest memory as it was', () => {
    const machine = machineOf([0, 64 * MiB]);

    failure(bootOptions(machine, bzImage(), { initramfs: fileOf(new Uint8Array(64 * MiB)) }));

    expect(bytesAt(machine, 0, 2 * MiB).some((byte) => byte !== 0)).toBe(false);
    expect(bytesAt(machine, 16 * MiB, 4096).some((byte) => byte !== 0)).toBe(false);
  });
});

describe('files that are no kernels', () => {
  it.each([
    ['a script', '#!/bin/sh\n', 'neither an ELF file nor a bzImage: it starts with 23 21 2f 62'],
    ['a byte', 'x', 'neither an ELF file nor a bzImage: it starts with 78'],
    ['nothing', '', 'the file is empty'],
  ])('%s', (_, content, sentence) => {
    const kernel = fileOf(content);

    expect(failure(bootOptions(machineOf([0, 16 * MiB]), kernel))).toBe(`kernel ${kernel}: ${sentence}`);
  });

  it('a path that is not there, a folder, a FIFO, a device', () => {
    const folder = newFolder();
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const missing = join(folder, 'none');
    const machine = machineOf([0, 16 * MiB]);

    const sentences = [missing, `${missing}\0`, folder, fifo, '/dev/null'].map((path) =>
      failure(bootOptions(machine, path)),
    );

    expect(sentences).toEqual([
      `kernel ${missing}: no such file`,
      `kernel ${missing}\0: no such file`,
      `kernel ${folder}: not a regular file`,
      `kernel ${fifo}: not a regular file`,
      'kernel /dev/null: not a regular file',
    ]);
  });

  it('an initramfs that is not there', () => {
    const initramfs = join(newFolder(), 'none');

    expect(failure(bootOptions(machineOf([0, 64 * MiB]), bzImage(), { initramfs }))).toBe(
      `initramfs ${initramfs}: no such file`,
    );
  });
});

describe('the command line', () => {
  it('may have as many characters as the kernel takes', () => {
    const machine = machineOf([0, 64 * MiB]);

    loadKernel(bootOptions(machine, bzImage({ cmdlineSize: 10 }), { cmdline: '0123456789' }));

    expect(Buffer.from(bytesAt(machine, 0x2_0000, 11)).toString()).toBe('0123456789\0');
  });

  it.each<[string, Uint8Array, string, string]>([
    [
      'longer than the kernel takes',
      bzImage({ cmdlineSize: 10 }),
      '01234567890',
      '11 characters, the kernel takes at most 10',
    ],
    ['longer than there is room', PVH, 'x'.repeat(65536), '65536 characters, the kernel takes at most 65535'],
    ['with an umlaut', PVH, 'root=/dev/käse', 'character 12 (code 228) is not ASCII, or is NUL'],
    ['with a NUL', PVH, 'a\0b', 'character 2 (code 0) is not ASCII, or is NUL'],
  ])('%s is refused', (_, kernel, cmdline, sentence) => {
    expect(failure(bootOptions(machineOf([0, 64 * MiB]), kernel, { cmdline }))).toBe(`command line: ${sentence}`);
  });
});

it('a machine of 1 MiB is too small', () => {
  expect(failure(bootOptions(machineOf([0, MiB]), PVH))).toBe(
    'memory: 1048576 bytes are too few to boot, more than 1048576 are needed',
  );
});
