/**
 * A bzImage: a boot sector with the setup header at offset 0x1f1, real-mode code that is not used, and from
 * `(setup_sects + 1) * 512` on the protected-mode code, which decompresses the kernel. Its 64-bit entry is 0x200 behind
 * where it is loaded. No field of the file is trusted. Source: Linux, Documentation/arch/x86/boot.rst; asm/bootparam.h.
 */

import { CMDLINE_MAX_BYTES, HIGH_RAM_ADDRESS } from '../layout.ts';
import type { BootFile } from './boot-file.ts';
import { hex, isFreeRam, type KernelImage, type Range } from './kernel-image.ts';

/** Byte offsets of the fields of struct setup_header, in the file and in the zero page alike. */
export const SETUP_HEADER = {
  setup_sects: 0x1f1,
  syssize: 0x1f4,
  boot_flag: 0x1fe,
  jump: 0x200,
  header: 0x202,
  version: 0x206,
  type_of_loader: 0x210,
  loadflags: 0x211,
  code32_start: 0x214,
  ramdisk_image: 0x218,
  ramdisk_size: 0x21c,
  cmd_line_ptr: 0x228,
  initrd_addr_max: 0x22c,
  kernel_alignment: 0x230,
  relocatable_kernel: 0x234,
  xloadflags: 0x236,
  cmdline_size: 0x238,
  pref_address: 0x258,
  init_size: 0x260,
} as const;

export const BOOT_FLAG = 0xaa55;
/** "HdrS", little endian. */
export const SETUP_HEADER_MAGIC = 0x5372_6448;

/** End of init_size, the last field that is read: every header with XLF_KERNEL_64 has it. */
const HEADER_END = 0x264;
/** The 2-byte jump at 0x200 skips the header: its second byte is what follows 0x202. */
const HEADER_LENGTH_BASE = 0x202;
/** End of the room for a setup header in the zero page. */
const HEADER_LIMIT = 0x290;

const MIN_VERSION = 0x0206;
const XLF_KERNEL_64 = 1;
/** Kernels before protocol 2.12 have no xloadflags. */
const XLOADFLAGS_VERSION = 0x020c;
const ENTRY_64_OFFSET = 0x200;
const SECTOR_BYTES = 512;
/** What setup_sects of 0 stands for. */
const DEFAULT_SETUP_SECTS = 4;
const PARAGRAPH_BYTES = 16;

const versionName = (version: number): string => `${version >> 8}.${String(version & 0xff).padStart(2, '0')}`;

/** Whether a file is a bzImage, judged by its first bytes. */
export const isBzImage = (file: BootFile): boolean => {
  const { boot_flag, header } = SETUP_HEADER;
  const bytes = file.peek(boot_flag, header + 4 - boot_flag);
  if (bytes.length < header + 4 - boot_flag) return false;
  const view = new DataView(bytes.buffer);
  return view.getUint16(0, true) === BOOT_FLAG && view.getUint32(header - boot_flag, true) === SETUP_HEADER_MAGIC;
};

const readBootSector = (file: BootFile): DataView => {
  const bytes = file.peek(0, HEADER_LIMIT);
  if (bytes.length < HEADER_END) {
    throw file.fault(`truncated: ${bytes.length} bytes, the setup header alone ends at ${HEADER_END}`);
  }
  const view = new DataView(bytes.buffer);
  const version = view.getUint16(SETUP_HEADER.version, true);
  if (version < MIN_VERSION) {
    throw file.fault(
      `the kernel is too old: boot protocol ${versionName(version)}, at least ${versionName(MIN_VERSION)} is needed`,
    );
  }
  if (version < XLOADFLAGS_VERSION || (view.getUint16(SETUP_HEADER.xloadflags, true) & XLF_KERNEL_64) === 0) {
    throw file.fault(`the kernel has no 64-bit entry point (boot protocol ${versionName(version)})`);
  }
  return view;
};

/**
 * Where the kernel is loaded. It moves itself to pref_address when it was loaded below, so pref_address is tried alone.
 * The memory from there is the kernel's own for init_size bytes.
 */
const place = (file: BootFile, view: DataView, imageBytes: number, ranges: readonly Range[]): Range => {
  const preferred = Number(view.getBigUint64(SETUP_HEADER.pref_address, true)) || HIGH_RAM_ADDRESS;
  const relocatable = view.getUint8(SETUP_HEADER.relocatable_kernel) !== 0;
  const alignment = view.getUint32(SETUP_HEADER.kernel_alignment, true) || 1;
  const start = relocatable ? Math.ceil(preferred / alignment) * alignment : preferred;
  const length = Math.max(imageBytes, view.getUint32(SETUP_HEADER.init_size, true));
  if (start >= 2 ** 32 || !isFreeRam(ranges, start, length)) {
    throw file.fault(`it needs ${length} bytes of memory at ${hex(start)}, which the machine does not have there`);
  }
  return { start, length };
};

/**
 * Checks a file that `isBzImage` and finds out how it is loaded and entered.
 * @throws VmConfigError - it is not a kernel that this machine can start
 */
export const parseBzImage = (file: BootFile, ranges: readonly Range[]): KernelImage => {
  const view = readBootSector(file);
  const fileOffset = ((view.getUint8(SETUP_HEADER.setup_sects) || DEFAULT_SETUP_SECTS) + 1) * SECTOR_BYTES;
  const imageBytes = view.getUint32(SETUP_HEADER.syssize, true) * PARAGRAPH_BYTES;
  if (!file.holds(fileOffset, imageBytes)) {
    const end = fileOffset + imageBytes;
    throw file.fault(`truncated: ${file.sizeBytes} bytes, by its setup header it has ${end}`);
  }
  if (imageBytes <= ENTRY_64_OFFSET) {
    throw file.fault(`its protected-mode code has ${imageBytes} bytes, too few for a 64-bit entry point`);
  }
  const room = place(file, view, imageBytes, ranges);
  const headerEnd = HEADER_LENGTH_BASE + view.getUint8(SETUP_HEADER.jump + 1);
  if (headerEnd < HEADER_END || headerEnd > HEADER_LIMIT || headerEnd > view.byteLength) {
    throw file.fault(
      `its setup header ends at ${hex(headerEnd)}, not between ${hex(HEADER_END)} and ${hex(HEADER_LIMIT)}`,
    );
  }
  return {
    protocol: 'linux64',
    entry: room.start + ENTRY_64_OFFSET,
    parts: [{ address: room.start, fileOffset, fileBytes: imageBytes, zeroBytes: 0 }],
    occupied: [room],
    initramfsAddressMax: view.getUint32(SETUP_HEADER.initrd_addr_max, true),
    cmdlineMax: Math.min(view.getUint32(SETUP_HEADER.cmdline_size, true), CMDLINE_MAX_BYTES - 1),
    setupHeader: new Uint8Array(view.buffer.slice(SETUP_HEADER.setup_sects, headerEnd)),
  };
};
