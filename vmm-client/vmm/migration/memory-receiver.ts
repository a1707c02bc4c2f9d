/** Puts pages that came into RAM. A peer sent them: what a record says is checked before anything is written. */

import { VmError } from '../errors.ts';
import { PAGE_BYTES } from '../layout.ts';
import { MAX_COVERED_BYTES } from './frames.ts';
import { isZero, RECORD_BYTES, RECORD_DATA, RECORD_ZERO } from './memory-sender.ts';
import type { PageRange } from './page-set.ts';

const HIGH_WORD = 2 ** 32;
/** From here on an address is no exact number. */
const MAX_HIGH_WORD = 2 ** 21;

/** RAM as it is filled. */
export interface TargetMemory {
  readonly ranges: readonly PageRange[];
  /** The memory itself, of a range within one of `ranges`, at most 16 MiB. */
  bytes(range: PageRange): Buffer;
  /** Puts whole pages, at most 1 MiB, into such a range. @throws SysError - the host has no memory for them */
  write(guestAddress: number, pages: Buffer): void;
}

function isWithin(ranges: readonly PageRange[], { guestAddress, length }: PageRange): boolean {
  for (const range of ranges) {
    const offset = guestAddress - range.guestAddress;
    if (offset >= 0 && offset < range.length) return length <= range.length - offset;
  }
  return false;
}

function checkRange(ranges: readonly PageRange[], range: PageRange): void {
  const { guestAddress, length } = range;
  const isPages = length > 0 && length % PAGE_BYTES === 0 && guestAddress % PAGE_BYTES === 0;
  if (isPages && isWithin(ranges, range)) return;
  const where = `${length} bytes at guest address 0x${guestAddress.toString(16)}`;
  throw new VmError(`the peer sends ${where}, which are ${isPages ? 'not in RAM' : 'no pages'}`);
}

/** Applies one PAGES frame. Returns how much memory it was about. @throws VmError - it is not one, or not of this RAM */
export function applyPages(memory: TargetMemory, payload: Buffer): number {
  const { ranges } = memory;
  let covered = 0;
  for (let at = 0; at < payload.length; ) {
    if (payload.length - at < RECORD_BYTES)
      throw new VmError(`the peer sends ${payload.length - at} bytes of a record`);
    const highWord = payload.readUInt32LE(at + 4);
    const guestAddress = highWord * HIGH_WORD + payload.readUInt32LE(at);
    const length = payload.readUInt32LE(at + 8);
    const kind = payload.readUInt32LE(at + 12);
    if (highWord >= MAX_HIGH_WORD) {
      const text = payload.readBigUInt64LE(at).toString(16);
      throw new VmError(`the peer sends pages at guest address 0x${text}, which is no address`);
    }
    at += RECORD_BYTES;
    const range = { guestAddress, length };
    checkRange(ranges, range);
    covered += length;
    if (covered > MAX_COVERED_BYTES) {
      throw new VmError(`the peer sends a batch of more than ${MAX_COVERED_BYTES} bytes of memory`);
    }
    if (kind === RECORD_DATA) {
      if (length > payload.length - at) throw new VmError(`the peer sends ${payload.length - at} of ${length} bytes`);
      memory.write(range.guestAddress, payload.subarray(at, at + length));
      at += length;
    } else if (kind === RECORD_ZERO) {
      clear(memory.bytes(range));
    } else {
      throw new VmError(`the peer sends a record of kind ${kind}, which there is not`);
    }
  }
  return covered;
}

/** Makes pages zero, and touches none that is. */
function clear(bytes: Buffer): void {
  for (let offset = 0; offset < bytes.length; offset += PAGE_BYTES) {
    if (!isZero(bytes, offset, PAGE_BYTES)) bytes.fill(0, offset, offset + PAGE_BYTES);
  }
}
