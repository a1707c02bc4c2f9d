/**
 * The part of ACPI Machine Language that computes: fields of memory, and methods that read them, decide, write and notify.
 * Every function returns the bytes of one term; terms that only describe are in aml.ts.
 * Source: ACPI 6.5, 20.2.5.2 Named Objects Encoding, 20.2.5.3 Statement Opcodes, 20.2.5.4 Expression Opcodes.
 */

import { concat, integer, path, withLength } from './aml.ts';

const METHOD_OP = 0x14;
const LOCAL0_OP = 0x60;
const STORE_OP = 0x70;
const AND_OP = 0x7b;
const NOTIFY_OP = 0x86;
const IF_OP = 0xa0;
const RETURN_OP = 0xa4;
const EXT_OP_PREFIX = 0x5b;
const OPERATION_REGION_OP = 0x80;
const FIELD_OP = 0x81;

const SYSTEM_MEMORY = 0;
/** DWordAcc, NoLock, Preserve. */
const FIELD_FLAGS = 3;
const METHOD_SERIALIZED = 1 << 3;
/** In the place of a target: the result is only used. */
const NULL_NAME = 0;

/** `OperationRegion (name, SystemMemory, address, length)` */
export const memoryRegion = (name: string, address: number, length: number): Uint8Array =>
  concat([EXT_OP_PREFIX, OPERATION_REGION_OP], path(name), [SYSTEM_MEMORY], integer(address), integer(length));

/** `Field (region, DWordAcc, NoLock, Preserve) { name, 32, ... }`: words of 32 bits, the first at the region's start. */
export const wordFields = (region: string, ...names: readonly string[]): Uint8Array => {
  // The length of a field is encoded as that of a package, which does not count itself here.
  const fields = names.map((name) => concat(path(name), [32]));
  return withLength([EXT_OP_PREFIX, FIELD_OP], concat(path(region), [FIELD_FLAGS], ...fields));
};

/** `Method (name, argumentCount, Serialized) { terms }`, or `NotSerialized`. */
export const method = (
  name: string,
  argumentCount: number,
  isSerialized: boolean,
  ...terms: readonly Uint8Array[]
): Uint8Array => {
  const flags = argumentCount | (isSerialized ? METHOD_SERIALIZED : 0);
  return withLength([METHOD_OP], concat(path(name), [flags], ...terms));
};

/** What stands for a value or a place: a named object, or `Local0`. */
export const named = (name: string): Uint8Array => concat(path(name));
export const LOCAL0: Uint8Array = concat([LOCAL0_OP]);

/** `place = value` */
export const store = (value: Uint8Array, place: Uint8Array): Uint8Array => concat([STORE_OP], value, place);

/** `If (value & mask) { terms }` */
export const ifAnySet = (value: Uint8Array, mask: number, ...terms: readonly Uint8Array[]): Uint8Array =>
  withLength([IF_OP], concat([AND_OP], value, integer(mask), [NULL_NAME], ...terms));

/** `Return (value)` */
export const returnValue = (value: Uint8Array): Uint8Array => concat([RETURN_OP], value);

/** `Notify (object, value)` */
export const notify = (object: string, value: number): Uint8Array => concat([NOTIFY_OP], path(object), integer(value));
