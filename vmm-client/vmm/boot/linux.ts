/**
 * The zero page (struct boot_params), which the 64-bit boot protocol of Linux hands over in rsi: the kernel's own setup
 * header with the loader's answers in it, the memory map and where the ACPI tables are. A vmlinux has no setup header: it
 * gets one that says what the loader knows. Source: Linux, Documentation/arch/x86/{boot,zero-page}.rst; asm/bootparam.h.
 */

import { BOOT_FLAG, SETUP_HEADER, SETUP_HEADER_MAGIC } from './bzimage.ts';
import type { KernelImage, Range } from './kernel-image.ts';
import { encodeMemoryMap, type MemoryMapEntry } from './memory-map.ts';

export const ZERO_PAGE_BYTES = 4096;

/** Byte offsets in struct boot_params, besides those of the setup header. */
export const BOOT_PARAMS = { acpi_rsdp_addr: 0x070, e820_entries: 0x1e8, hdr: 0x1f1, e820_table: 0x2d0 } as const;

/** E820_MAX_ENTRIES_ZEROPAGE: entries that the zero page has room for. */
export const E820_MAX_ENTRIES = 128;

const E820_ENTRY_BYTES = 20;
/** A loader without an assigned number. */
const LOADER_UNDEFINED = 0xff;
const LOADED_HIGH = 1;
/** What a vmlinux is told that its own header would be: protocol 2.15, aligned at 16 MiB. */
const VMLINUX_PROTOCOL = 0x020f;
const VMLINUX_ALIGNMENT = 0x100_0000;

export interface ZeroPageOptions {
  readonly image: KernelImage;
  readonly memoryMap: readonly MemoryMapEntry[];
  readonly cmdlineAddress: number;
  readonly initramfs: Range | undefined;
  readonly rsdpAddress: number;
}

/** The 4096 bytes of the zero page. */
export const encodeZeroPage = (options: ZeroPageOptions): Uint8Array => {
  const { image, memoryMap, cmdlineAddress, initramfs, rsdpAddress } = options;
  if (memoryMap.length > E820_MAX_ENTRIES) throw new RangeError(`${memoryMap.length} entries of a memory map`);
  const page = new Uint8Array(ZERO_PAGE_BYTES);
  const view = new DataView(page.buffer);
  if (image.setupHeader === undefined) {
    view.setUint16(SETUP_HEADER.boot_flag, BOOT_FLAG, true);
    view.setUint32(SETUP_HEADER.header, SETUP_HEADER_MAGIC, true);
    view.setUint16(SETUP_HEADER.version, VMLINUX_PROTOCOL, true);
    view.setUint8(SETUP_HEADER.loadflags, LOADED_HIGH);
    view.setUint32(SETUP_HEADER.kernel_alignment, VMLINUX_ALIGNMENT, true);
    view.setUint32(SETUP_HEADER.cmdline_size, image.cmdlineMax, true);
  } else {
    page.set(image.setupHeader, BOOT_PARAMS.hdr);
    view.setUint32(SETUP_HEADER.code32_start, image.parts[0]?.address ?? 0, true);
  }
  view.setUint8(SETUP_HEADER.type_of_loader, LOADER_UNDEFINED);
  view.setUint32(SETUP_HEADER.cmd_line_ptr, cmdlineAddress, true);
  view.setUint32(SETUP_HEADER.ramdisk_image, initramfs?.start ?? 0, true);
  view.setUint32(SETUP_HEADER.ramdisk_size, initramfs?.length ?? 0, true);
  view.setBigUint64(BOOT_PARAMS.acpi_rsdp_addr, BigInt(rsdpAddress), true);
  view.setUint8(BOOT_PARAMS.e820_entries, memoryMap.length);
  page.set(encodeMemoryMap(memoryMap, E820_ENTRY_BYTES), BOOT_PARAMS.e820_table);
  return page;
};
