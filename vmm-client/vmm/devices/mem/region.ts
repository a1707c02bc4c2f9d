/**
 * Where memory that comes later is in the guest's address space: a region above RAM, cut into pieces. A piece is there as a
 * whole or not at all: one file, one slot of KVM, one region of each back end. Pure.
 *
 *     RAM |  ..  | piece 0 | piece 1 | .. | last piece |
 *         start  ^ aligned                             ^ at most 6 pieces
 *
 * Linux adds memory in blocks, of 128 MiB, or where RAM ends above 64 GiB of up to 2 GiB (arch/x86/mm/init_64.c,
 * probe_memory_block_size), and leaves what is not a whole block: so region and pieces consist of whole ones. It takes the
 * region from the device alone: no memory map, no SRAT. Without an SRAT its node is 0, and physical memory padding of the
 * direct mapping (CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING, 10 TiB) has room for it.
 */

import { HOTPLUG_BLOCK_BYTES } from '../../config-limits.ts';
import { VmConfigError, VmError } from '../../errors.ts';
import { type RamRange, ramRanges } from '../../guest-ram.ts';
import { HOLE_END } from '../../layout.ts';
import { fieldsOf, integerOf, listOf } from '../../state/codec.ts';

const MEMORY_BLOCK_BYTES = 128 * 2 ** 20;
const LARGE_MEMORY_BLOCK_BYTES = 2 * 2 ** 30;
/** RAM that ends above has large blocks. */
const LARGE_MEMORY_BYTES = 64 * 2 ** 30;

/** Back ends can have as few as 8 regions (a memory table of vhost-user), of which RAM takes two. */
export const MAX_PIECES = 6;

export interface HotplugRegion {
  /** Guest address. */
  readonly start: number;
  /** Bytes; at least `hotplugBytes`. */
  readonly size: number;
  /** What can be plugged of it. */
  readonly hotplugBytes: number;
  /** Bytes of a piece; the last one is shorter where the region is. */
  readonly pieceBytes: number;
}

interface MemorySizes {
  readonly size: number;
  readonly hotplug_size: number;
}

const roundUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit;

/**
 * The region of a machine of so much memory. It ends below `addressLimit` (bytes that a guest physical address can reach).
 * @throws VmConfigError - the host's processors do not reach that far
 */
export function hotplugRegion({ size, hotplug_size }: MemorySizes, addressLimit: number): HotplugRegion {
  const ramEnd = Math.max(HOLE_END, ...ramRanges(size).map(({ start, length }) => start + length));
  const unit = ramEnd >= LARGE_MEMORY_BYTES ? LARGE_MEMORY_BLOCK_BYTES : MEMORY_BLOCK_BYTES;
  const start = roundUp(ramEnd, unit);
  const bytes = roundUp(hotplug_size, unit);
  if (start + bytes > addressLimit) {
    throw new VmConfigError(
      `memory: hotplug_size ${hotplug_size} ends at guest address 0x${(start + bytes).toString(16)}, ` +
        `above the 0x${addressLimit.toString(16)} that this host's processors reach`,
    );
  }
  return { start, size: bytes, hotplugBytes: hotplug_size, pieceBytes: roundUp(Math.ceil(bytes / MAX_PIECES), unit) };
}

/** How many pieces the first `bytes` of the region are in. */
export function piecesOf(region: HotplugRegion, bytes: number): number {
  return Math.ceil(bytes / region.pieceBytes);
}

/** The piece of a number. */
export function pieceAt({ start, size, pieceBytes }: HotplugRegion, index: number): RamRange {
  const offset = index * pieceBytes;
  return { start: start + offset, length: Math.min(pieceBytes, size - offset) };
}

/** Blocks of a piece, by number: the first, and how many. */
export function blocksOf(region: HotplugRegion, index: number): { readonly first: number; readonly count: number } {
  const { start, length } = pieceAt(region, index);
  return { first: (start - region.start) / HOTPLUG_BLOCK_BYTES, count: length / HOTPLUG_BLOCK_BYTES };
}

/**
 * The pieces that a machine elsewhere had, `[{ start, length }]`, in the order of their addresses.
 * @throws VmError - it cannot have had these
 */
export function checkPieces(value: unknown, region: HotplugRegion | undefined): RamRange[] {
  const most = region === undefined ? 0 : piecesOf(region, region.size);
  let next = 0;
  return listOf(value, 'pieces of memory', most).map((each) => {
    const fields = fieldsOf(each, 'piece of memory');
    const start = integerOf(fields.start, 'start of a piece of memory');
    const length = integerOf(fields.length, 'length of a piece of memory');
    const isPiece = (index: number): boolean => {
      const piece = pieceAt(region as HotplugRegion, index);
      return piece.start === start && piece.length === length;
    };
    while (next < most && !isPiece(next)) next += 1;
    if (next === most) {
      throw new VmError(`piece of memory: ${length} bytes at 0x${start.toString(16)} are not one of this machine's`);
    }
    next += 1;
    return { start, length };
  });
}
