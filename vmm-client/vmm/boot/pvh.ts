/**
 * What the PVH boot protocol hands over in ebx: struct hvm_start_info (version 1), with the list of modules (the
 * initramfs is the only one) and the memory map that it points to.
 *
 *     hvm_start_info (56):    0 magic, 4 version, 8 flags, 12 nr_modules, 16 modlist, 24 cmdline, 32 rsdp, 40 memmap,
 *                             48 memmap_entries, 52 reserved
 *     hvm_modlist_entry (32): 0 address, 8 size, 16 cmdline, 24 reserved
 *
 * Source: Xen, public/arch-x86/hvm/start_info.h (Linux: include/xen/interface/hvm/start_info.h).
 */

import { PVH_MEMORY_MAP_ADDRESS, PVH_MODULES_ADDRESS, PVH_START_INFO_ADDRESS, ZERO_PAGE_ADDRESS } from '../layout.ts';
import type { Range } from './kernel-image.ts';
import { encodeMemoryMap, type MemoryMapEntry } from './memory-map.ts';
import type { Placed } from './start-state.ts';

export const XEN_HVM_START_MAGIC_VALUE = 0x336e_c578;
const START_INFO_VERSION = 1;
const START_INFO_BYTES = 56;
const MODULE_BYTES = 32;
const MEMORY_MAP_ENTRY_BYTES = 24;

export interface PvhOptions {
  readonly memoryMap: readonly MemoryMapEntry[];
  readonly cmdlineAddress: number;
  readonly initramfs: Range | undefined;
  readonly rsdpAddress: number;
}

const encodeStartInfo = ({ memoryMap, cmdlineAddress, initramfs, rsdpAddress }: PvhOptions): Uint8Array => {
  const bytes = new Uint8Array(START_INFO_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, XEN_HVM_START_MAGIC_VALUE, true);
  view.setUint32(4, START_INFO_VERSION, true);
  view.setUint32(12, initramfs === undefined ? 0 : 1, true);
  view.setBigUint64(16, BigInt(initramfs === undefined ? 0 : PVH_MODULES_ADDRESS), true);
  view.setBigUint64(24, BigInt(cmdlineAddress), true);
  view.setBigUint64(32, BigInt(rsdpAddress), true);
  view.setBigUint64(40, BigInt(PVH_MEMORY_MAP_ADDRESS), true);
  view.setUint32(48, memoryMap.length, true);
  return bytes;
};

const encodeModule = ({ start, length }: Range): Uint8Array => {
  const bytes = new Uint8Array(MODULE_BYTES);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(start), true);
  view.setBigUint64(8, BigInt(length), true);
  return bytes;
};

/** The start info and what it points to, each with its place in guest memory. */
export const encodePvh = (options: PvhOptions): Placed[] => {
  const map = encodeMemoryMap(options.memoryMap, MEMORY_MAP_ENTRY_BYTES);
  if (map.length > ZERO_PAGE_ADDRESS - PVH_MEMORY_MAP_ADDRESS)
    throw new RangeError(`a memory map of ${map.length} bytes`);
  const placed = [
    { address: PVH_START_INFO_ADDRESS, bytes: encodeStartInfo(options) },
    { address: PVH_MEMORY_MAP_ADDRESS, bytes: map },
  ];
  if (options.initramfs !== undefined) {
    placed.push({ address: PVH_MODULES_ADDRESS, bytes: encodeModule(options.initramfs) });
  }
  return placed;
};
