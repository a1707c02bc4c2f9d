/**
 * The memory map that a kernel is told, whatever the boot protocol: RAM without what is below 1 MiB and not RAM on a PC.
 * Devices in the hole are not listed: an address that the map does not have is free for them.
 *
 *     0 .. 639 KiB RAM | .. 896 KiB reserved | .. 1 MiB ACPI tables | .. end of low RAM | (hole) | 4 GiB .. end RAM
 *
 * Source: ACPI 6.5, 15 System Address Map Interfaces (the types); Linux's e820 and Xen's hvm_memmap_table_entry have them.
 */

import { ACPI_ADDRESS, ACPI_END, EBDA_ADDRESS, HIGH_RAM_ADDRESS } from '../layout.ts';
import type { Range } from './kernel-image.ts';

export const MEMORY_RAM = 1;
export const MEMORY_RESERVED = 2;
export const MEMORY_ACPI = 3;

/** Guest physical address, size in bytes, and one of MEMORY_*. */
export interface MemoryMapEntry {
  readonly address: number;
  readonly size: number;
  readonly type: number;
}

/** The map of a machine whose RAM is `ranges`, sorted by address. The range at 0 must reach beyond 1 MiB. */
export const buildMemoryMap = (ranges: readonly Range[]): MemoryMapEntry[] => {
  const map: MemoryMapEntry[] = [
    { address: 0, size: EBDA_ADDRESS, type: MEMORY_RAM },
    { address: EBDA_ADDRESS, size: ACPI_ADDRESS - EBDA_ADDRESS, type: MEMORY_RESERVED },
    { address: ACPI_ADDRESS, size: ACPI_END - ACPI_ADDRESS, type: MEMORY_ACPI },
  ];
  for (const { start, length } of [...ranges].sort((a, b) => a.start - b.start)) {
    const address = Math.max(start, HIGH_RAM_ADDRESS);
    map.push({ address, size: start + length - address, type: MEMORY_RAM });
  }
  return map;
};

/**
 * Entries as Linux' struct boot_e820_entry (20 bytes) and Xen's struct hvm_memmap_table_entry (24 bytes, the last four
 * zero) have them: address, size, type.
 */
export const encodeMemoryMap = (map: readonly MemoryMapEntry[], entryBytes: 20 | 24): Uint8Array => {
  const bytes = new Uint8Array(map.length * entryBytes);
  const view = new DataView(bytes.buffer);
  for (const [index, { address, size, type }] of map.entries()) {
    view.setBigUint64(index * entryBytes, BigInt(address), true);
    view.setBigUint64(index * entryBytes + 8, BigInt(size), true);
    view.setUint32(index * entryBytes + 16, type, true);
  }
  return bytes;
};
