/** Puts pages that came into RAM. A peer sent them: what a record says is checked before anything is written. */

import { VmError } from '../errors.ts';
import { PAGE_BYTES } from '../layout.ts';
import { MAX_COVERED_BYTES } from './frames.ts';
import { isZero, RECORD_BYTES, RECORD_DATA, RECORD_ZERO } from './memory-sender.ts';
import type { PageRange } from './page-set.ts';

/** RAM as it is filled. */
export interface TargetMemory {
  readonly ranges: readonly PageRange[];
  /** The memory itself, of a range within one of `ranges`, at most 16 MiB. */
  bytes(range: PageRange): Buffer;
}

function checkRange(memory: TargetMemory, { guestAddress, length }: PageRange): void {
  const where = `${length} bytes at guest address 0x${guestAddress.toString(16)}`;
  if (length === 0 || length % PAGE_BYTES !== 0 || guestAddress % PAGE_BYTES !== 0) {
    throw new VmError(`the peer sends ${where}, which are no pages`);
  }
  const isRam = memory.ranges.some((range) => {
    const offset = guestAddress - range.guestAddress;
    return offset >= 0 && offset < range.length && length <= range.length - offset;
  });
  if (!isRam) throw new VmError(`the peer sends ${where}, which are not in RAM`);
}

/** Applies one PAGES frame. Returns how much memory it was about. @throws VmError - it is not one, or not of this RAM */
export function applyPages(memory: TargetMemory, payload: Buffer): number {
  let covered = 0;
  for (let at = 0; at < payload.length; ) {
    if (payload.length - at < RECORD_BYTES)
      throw new VmError(`the peer sends ${payload.length - at} bytes of a record`);
    const address = payload.readBigUInt64LE(at);
    const length = payload.readUInt32LE(at + 8);
    const kind = payload.readUInt32LE(at + 12);
    at += RECORD_BYTES;
    if (address > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new VmError(`the peer sends pages at guest address 0x${address.toString(16)}, which is no address`);
    }
    const range = { guestAddress: Number(address), length };
    checkRange(memory, range);
    covered += length;
    if (covered > MAX_COVERED_BYTES) {
      throw new VmError(`the peer sends a batch of more than ${MAX_COVERED_BYTES} bytes of memory`);
    }
    if (kind === RECORD_DATA) {
      if (length > payload.length - at) throw new VmError(`the peer sends ${payload.length - at} of ${length} bytes`);
      payload.copy(memory.bytes(range), 0, at, at + length);
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
