/** Kernel files made by hand, with literal numbers from the ELF standard and Linux' boot.rst, and memory to load them. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach } from 'vitest';
import { GuestMemory } from '../../../../../protocol/memory/guest-memory.ts';
import type { KernelOptions } from '../../../../../vmm-client/vmm/boot/kernel.ts';
import { createMemfd } from '../../../../support/frontend/descriptors.ts';

export const MiB = 2 ** 20;
export const GiB = 2 ** 30;

const folders: string[] = [];
const memories: GuestMemory[] = [];

afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
  for (const memory of memories.splice(0)) memory.clear();
});

export const newFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'ringside-boot-'));
  folders.push(folder);
  return folder;
};

/** Path of a file with these bytes, until the end of the test. */
export const fileOf = (bytes: Uint8Array | string): string => {
  const path = join(newFolder(), 'file');
  writeFileSync(path, bytes);
  return path;
};

export interface Header {
  readonly type?: number;
  readonly offset?: bigint;
  readonly address?: bigint;
  readonly fileBytes?: bigint;
  readonly memoryBytes?: bigint;
  readonly alignment?: bigint;
}

export interface ElfOptions {
  readonly ident?: readonly number[];
  readonly type?: number;
  readonly machine?: number;
  readonly entry?: bigint;
  readonly tableOffset?: bigint;
  readonly headerBytes?: number;
  readonly headerCount?: number;
  readonly headers: readonly Header[];
  /** From offset 0x200 of the file on. */
  readonly body?: Uint8Array;
}

/** One PT_LOAD of the body at 2 MiB. */
export const load = (more: Header = {}): Header => ({
  type: 1,
  offset: 0x200n,
  address: 0x20_0000n,
  fileBytes: 16n,
  memoryBytes: 16n,
  alignment: 0x1000n,
  ...more,
});

export const elf = (options: ElfOptions): Uint8Array => {
  const body = options.body ?? Uint8Array.from({ length: 16 }, (_, index) => index + 1);
  const bytes = new Uint8Array(0x200 + body.length);
  const view = new DataView(bytes.buffer);
  bytes.set(options.ident ?? [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, options.type ?? 2, true);
  view.setUint16(18, options.machine ?? 62, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, options.entry ?? 0x20_0000n, true);
  view.setBigUint64(32, options.tableOffset ?? 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, options.headerBytes ?? 56, true);
  view.setUint16(56, options.headerCount ?? options.headers.length, true);
  for (const [index, header] of options.headers.entries()) {
    const at = 64 + 56 * index;
    view.setUint32(at, header.type ?? 0, true);
    view.setBigUint64(at + 8, header.offset ?? 0n, true);
    view.setBigUint64(at + 24, header.address ?? 0n, true);
    view.setBigUint64(at + 32, header.fileBytes ?? 0n, true);
    view.setBigUint64(at + 40, header.memoryBytes ?? 0n, true);
    view.setBigUint64(at + 48, header.alignment ?? 0n, true);
  }
  bytes.set(body, 0x200);
  return bytes;
};

export const XEN = [0x58, 0x65, 0x6e, 0];

/** A note: name (zero included) and descriptor, both padded to four bytes. */
export const note = (type: number, name: readonly number[], descriptor: readonly number[]): number[] => {
  const padded = (part: readonly number[]): number[] => [...part, ...new Array<number>(-part.length & 3).fill(0)];
  return [name.length, 0, 0, 0, descriptor.length, 0, 0, 0, type, 0, 0, 0, ...padded(name), ...padded(descriptor)];
};

/** A kernel with notes: 16 bytes of code at 2 MiB, the notes behind them in the file. */
export const elfWithNotes = (notes: readonly number[], segment: Header = {}): Uint8Array =>
  elf({
    entry: 0x20_0004n,
    headers: [load(), { type: 4, offset: 0x210n, fileBytes: BigInt(notes.length), alignment: 4n, ...segment }],
    body: Uint8Array.from([...Array.from({ length: 16 }, (_, index) => index + 1), ...notes]),
  });

export interface BzImageOptions {
  readonly version?: number;
  readonly xloadflags?: number;
  readonly setupSects?: number;
  readonly syssize?: number;
  readonly prefAddress?: bigint;
  readonly initSize?: number;
  readonly relocatable?: number;
  readonly alignment?: number;
  readonly cmdlineSize?: number;
  readonly initrdAddressMax?: number;
  readonly jump?: number;
  /** Length of the file; 2048 bytes of protected-mode code are in it when it is not cut. */
  readonly fileBytes?: number;
}

/** A bzImage with one setup sector behind the boot sector and 2048 bytes of protected-mode code, each byte its number. */
export const bzImage = (options: BzImageOptions = {}): Uint8Array => {
  const setupSects = options.setupSects ?? 1;
  const codeOffset = ((setupSects || 4) + 1) * 512;
  const bytes = new Uint8Array(codeOffset + 2048);
  const view = new DataView(bytes.buffer);
  view.setUint8(0x1f1, setupSects);
  view.setUint32(0x1f4, options.syssize ?? 128, true);
  view.setUint16(0x1fe, 0xaa55, true);
  bytes.set([0xeb, options.jump ?? 0x6a, 0x48, 0x64, 0x72, 0x53], 0x200);
  view.setUint16(0x206, options.version ?? 0x020f, true);
  view.setUint8(0x211, 1);
  view.setUint32(0x214, 0x10_0000, true);
  view.setUint32(0x22c, options.initrdAddressMax ?? 0x7fff_ffff, true);
  view.setUint32(0x230, options.alignment ?? 0x20_0000, true);
  view.setUint8(0x234, options.relocatable ?? 1);
  view.setUint16(0x236, options.xloadflags ?? 1, true);
  view.setUint32(0x238, options.cmdlineSize ?? 2047, true);
  view.setBigUint64(0x258, options.prefAddress ?? 0x100_0000n, true);
  view.setUint32(0x260, options.initSize ?? 0x10_0000, true);
  for (let index = 0; index < 2048; index += 1) bytes[codeOffset + index] = index & 0xff;
  return bytes.slice(0, options.fileBytes ?? bytes.length);
};

/** A machine with these RAM ranges, [address, size] each, every one a sparse memfd. */
export const machineOf = (...sizes: readonly (readonly [number, number])[]) => {
  const memory = new GuestMemory();
  memories.push(memory);
  for (const [guestAddress, size] of sizes) {
    const memfd = createMemfd(size);
    memory.add({ guestAddress, size, userAddress: 0x7000_0000_0000 + guestAddress, mmapOffset: 0 }, memfd);
    memfd.close();
  }
  return { memory, ranges: sizes.map(([start, length]) => ({ start, length })) };
};

type Machine = ReturnType<typeof machineOf>;

/** Options of loadKernel for a machine of one processor without devices. */
export const bootOptions = (
  machine: Machine,
  kernel: Uint8Array | string,
  more: Partial<KernelOptions> = {},
): KernelOptions => ({
  ...machine,
  kernel: typeof kernel === 'string' ? kernel : fileOf(kernel),
  cmdline: 'console=ttyS0',
  cpuCount: 1,
  hasSerial: true,
  ...more,
});

/** A copy of guest memory. */
export const bytesAt = ({ memory }: Machine, address: number, length: number): Uint8Array => {
  const bytes = new Uint8Array(length);
  if (!memory.copyOut(address, bytes)) throw new Error(`no memory at ${address}`);
  return bytes;
};

export const viewAt = (machine: Machine, address: number, length: number): DataView =>
  new DataView(bytesAt(machine, address, length).buffer);
