/**
 * What a kernel file says about itself once it was checked, whichever format it has: what goes where, how it is entered,
 * and what it asks of what is loaded beside it. Addresses are guest physical, sizes bytes.
 */

import { HIGH_RAM_ADDRESS } from '../layout.ts';

export interface Range {
  readonly start: number;
  readonly length: number;
}

/** A part of the file and where it goes. */
export interface KernelPart {
  readonly address: number;
  readonly fileOffset: number;
  readonly fileBytes: number;
  /** Zeros behind the bytes of the file. */
  readonly zeroBytes: number;
}

export interface KernelImage {
  readonly protocol: 'pvh' | 'linux64';
  readonly entry: number;
  readonly parts: readonly KernelPart[];
  /** What the kernel takes for itself before it looks at its memory map. */
  readonly occupied: readonly Range[];
  /** Highest address that the last byte of an initramfs may have. */
  readonly initramfsAddressMax: number;
  /** Characters of a command line, terminating zero not counted. */
  readonly cmdlineMax: number;
  /** From offset 0x1f1 of the file; absent where the format has none. */
  readonly setupHeader?: Uint8Array;
}

export const hex = (value: number): string => `0x${value.toString(16)}`;

/** The RAM that begins at address 0: where the boot structures and most kernels are. Its end, or 0. */
export const lowRamEnd = (ranges: readonly Range[]): number => ranges.find(({ start }) => start === 0)?.length ?? 0;

/** Whether `[start, start + length)` is RAM of one range at or above 1 MiB, free for a kernel. */
export const isFreeRam = (ranges: readonly Range[], start: number, length: number): boolean =>
  start >= HIGH_RAM_ADDRESS &&
  ranges.some((range) => start >= range.start && start - range.start <= range.length - length);
