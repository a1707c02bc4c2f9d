/**
 * Puts a kernel and everything that it is told into guest memory: the kernel itself, initramfs, command line, ACPI
 * tables, and what its boot protocol hands over. What results is the state with which the boot processor starts. All
 * checks come before the first byte of guest memory is written.
 */

import type { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import { type AcpiOptions, encodeAcpiTables } from '../acpi/tables.ts';
import { VmConfigError } from '../errors.ts';
import { ACPI_ADDRESS, CMDLINE_ADDRESS, HIGH_RAM_ADDRESS, PAGE_BYTES, ZERO_PAGE_ADDRESS } from '../layout.ts';
import { BootFile, fillZeros } from './boot-file.ts';
import { isBzImage, parseBzImage } from './bzimage.ts';
import { ELF_MAGIC, parseElf } from './elf.ts';
import { type KernelImage, lowRamEnd, type Range } from './kernel-image.ts';
import { encodeZeroPage } from './linux.ts';
import { buildMemoryMap } from './memory-map.ts';
import { encodePvh } from './pvh.ts';
import { RESET_VECTOR } from './reset-vector.ts';
import { type BootState, type Placed, startState, startTables } from './start-state.ts';

export interface KernelOptions extends AcpiOptions {
  /** Borrowed for the call. */
  readonly memory: GuestMemory;
  /** The RAM in `memory`: guest physical addresses, bytes. */
  readonly ranges: readonly Range[];
  /** Path of a vmlinux (ELF) or bzImage. */
  readonly kernel: string;
  readonly initramfs?: string | undefined;
  readonly cmdline: string;
}

const ASCII_MAX = 0x7f;

const encodeCmdline = (cmdline: string, { cmdlineMax }: KernelImage): Uint8Array => {
  for (let at = 0; at < cmdline.length; at += 1) {
    const code = cmdline.charCodeAt(at);
    if (code === 0 || code > ASCII_MAX) {
      throw new VmConfigError(`command line: character ${at + 1} (code ${code}) is not ASCII, or is NUL`);
    }
  }
  if (cmdline.length > cmdlineMax) {
    throw new VmConfigError(`command line: ${cmdline.length} characters, the kernel takes at most ${cmdlineMax}`);
  }
  return Buffer.from(`${cmdline}\0`, 'latin1');
};

const describeStart = (bytes: Uint8Array): string => {
  const pairs = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0'));
  return pairs.join(' ');
};

const parseKernel = (file: BootFile, ranges: readonly Range[]): KernelImage => {
  const start = file.peek(0, 4);
  if (start.length === 4 && new DataView(start.buffer).getUint32(0) === ELF_MAGIC) return parseElf(file, ranges);
  if (isBzImage(file)) return parseBzImage(file, ranges);
  throw file.fault(`neither an ELF file nor a bzImage: it starts with ${describeStart(start)}`);
};

/** As high in low RAM as the kernel allows, and not over the kernel. */
const placeInitramfs = (file: BootFile, image: KernelImage, ranges: readonly Range[]): Range => {
  const length = file.sizeBytes;
  const limit = Math.min(lowRamEnd(ranges), image.initramfsAddressMax + 1);
  let start = Math.floor((limit - length) / PAGE_BYTES) * PAGE_BYTES;
  for (const taken of [...image.occupied].sort((a, b) => b.start - a.start)) {
    const overlaps = start < taken.start + taken.length && taken.start < start + length;
    if (overlaps) start = Math.floor((taken.start - length) / PAGE_BYTES) * PAGE_BYTES;
  }
  if (start < HIGH_RAM_ADDRESS) {
    throw file.fault(
      `${length} bytes do not fit between ${HIGH_RAM_ADDRESS} and ${limit} beside a kernel of ` +
        `${image.occupied.reduce((sum, taken) => sum + taken.length, 0)} bytes`,
    );
  }
  return { start, length };
};

const put = (memory: GuestMemory, { address, bytes }: Placed): void => {
  if (!memory.copyIn(address, bytes)) throw new RangeError(`no guest memory at 0x${address.toString(16)}`);
};

const loadImage = (memory: GuestMemory, file: BootFile, image: KernelImage): void => {
  for (const { address, fileOffset, fileBytes, zeroBytes } of image.parts) {
    file.readInto(memory, address, fileOffset, fileBytes);
    fillZeros(memory, address + fileBytes, zeroBytes);
  }
};

const loadBoth = (options: KernelOptions, kernel: BootFile, initramfs: BootFile | undefined): BootState => {
  const { memory, ranges } = options;
  const image = parseKernel(kernel, ranges);
  const cmdline = encodeCmdline(options.cmdline, image);
  const room = initramfs === undefined ? undefined : placeInitramfs(initramfs, image, ranges);
  const protocol = {
    memoryMap: buildMemoryMap(ranges),
    cmdlineAddress: CMDLINE_ADDRESS,
    initramfs: room,
    rsdpAddress: ACPI_ADDRESS,
  };
  loadImage(memory, kernel, image);
  if (room !== undefined) initramfs?.readInto(memory, room.start, 0, room.length);
  put(memory, { address: CMDLINE_ADDRESS, bytes: cmdline });
  put(memory, { address: ACPI_ADDRESS, bytes: encodeAcpiTables(ACPI_ADDRESS, options) });
  const handedOver =
    image.protocol === 'pvh'
      ? encodePvh(protocol)
      : [{ address: ZERO_PAGE_ADDRESS, bytes: encodeZeroPage({ ...protocol, image }) }];
  for (const placed of [...handedOver, ...startTables(image.protocol), RESET_VECTOR]) put(memory, placed);
  return startState(image.protocol, image.entry);
};

/**
 * Loads a kernel and its initramfs, and says how the boot processor starts it.
 * @throws VmConfigError - a file cannot be loaded, or does not fit this machine; guest memory may be partly written only
 *   when a file changes while it is read
 */
export const loadKernel = (options: KernelOptions): BootState => {
  const end = lowRamEnd(options.ranges);
  if (end <= HIGH_RAM_ADDRESS) {
    throw new VmConfigError(`memory: ${end} bytes are too few to boot, more than ${HIGH_RAM_ADDRESS} are needed`);
  }
  const kernel = new BootFile('kernel', options.kernel);
  try {
    if (options.initramfs === undefined) return loadBoth(options, kernel, undefined);
    const initramfs = new BootFile('initramfs', options.initramfs);
    try {
      return loadBoth(options, kernel, initramfs);
    } finally {
      initramfs.close();
    }
  } finally {
    kernel.close();
  }
};
