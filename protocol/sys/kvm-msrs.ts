/**
 * Model-specific registers of a vCPU. Source: Linux, Documentation/virt/kvm/api.rst, 4.18 KVM_GET_MSRS.
 *
 *     struct kvm_msrs   nmsrs u32 @0, then entries of 16 bytes from @8: index u32 @0, data u64 @8
 *
 * Both calls go through the entries in order, end before the first that KVM does not take, and return how many they took.
 */

import { kvmIoctl } from './kvm-ioctl.ts';
import { allocatePinned } from './pinned.ts';

const KVM_GET_MSRS = 0xc008_ae88;
const KVM_SET_MSRS = 0x4008_ae89;
const HEADER_BYTES = 8;
const ENTRY_BYTES = 16;
/** MAX_IO_MSRS of Linux, less one: the kernel takes fewer than that. */
const MAX_ENTRIES = 255;

const table = allocatePinned(HEADER_BYTES + MAX_ENTRIES * ENTRY_BYTES);

export interface Msr {
  readonly index: number;
  readonly value: bigint;
}

function fillTable(msrs: readonly Msr[]): void {
  table.data.setUint32(0, msrs.length, true);
  table.data.setUint32(4, 0, true);
  for (const [at, { index, value }] of msrs.entries()) {
    const entry = HEADER_BYTES + at * ENTRY_BYTES;
    table.data.setUint32(entry, index, true);
    table.data.setUint32(entry + 4, 0, true);
    table.data.setBigUint64(entry + 8, value, true);
  }
}

/** The values of those registers that can be read, in the order of `indices`. @throws SysError */
export function getMsrs(fd: number, indices: readonly number[]): Msr[] {
  const found: Msr[] = [];
  for (let from = 0; from < indices.length; ) {
    const part = indices.slice(from, from + MAX_ENTRIES);
    fillTable(part.map((index) => ({ index, value: 0n })));
    const read = kvmIoctl(fd, KVM_GET_MSRS, table.address, 'KVM_GET_MSRS');
    for (const [at, index] of part.slice(0, read).entries()) {
      found.push({ index, value: table.data.getBigUint64(HEADER_BYTES + at * ENTRY_BYTES + 8, true) });
    }
    // Goes on behind the one that cannot be read.
    from += read < part.length ? read + 1 : read;
  }
  return found;
}

/** Sets registers in order. Returns those that KVM does not take, or not with that value. @throws SysError */
export function trySetMsrs(fd: number, msrs: readonly Msr[]): Msr[] {
  const refused: Msr[] = [];
  for (let from = 0; from < msrs.length; ) {
    const part = msrs.slice(from, from + MAX_ENTRIES);
    fillTable(part);
    const taken = kvmIoctl(fd, KVM_SET_MSRS, table.address, 'KVM_SET_MSRS');
    const next = part[taken];
    if (next !== undefined) refused.push(next);
    from += next === undefined ? taken : taken + 1;
  }
  return refused;
}

/**
 * Sets registers.
 * @throws SysError
 * @throws RangeError - KVM does not take one of them
 */
export function setMsrs(fd: number, msrs: readonly Msr[]): void {
  const refused = trySetMsrs(fd, msrs)[0];
  if (refused !== undefined)
    throw new RangeError(`KVM does not take model-specific register 0x${refused.index.toString(16)}`);
}
