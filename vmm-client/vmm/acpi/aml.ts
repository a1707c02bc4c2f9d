/**
 * The part of ACPI Machine Language that describes: names, constants, packages, devices, resource templates. What computes is
 * in aml-code.ts. Every function returns the bytes of one term. Names are four characters, padded with `_`; a leading
 * backslash is the root. Source: ACPI 6.5, 20 ACPI Machine Language (AML) Specification; 6.4 Resource Data Types.
 */

const ZERO_OP = 0x00;
const ONE_OP = 0x01;
const NAME_OP = 0x08;
const BYTE_PREFIX = 0x0a;
const WORD_PREFIX = 0x0b;
const DWORD_PREFIX = 0x0c;
const STRING_PREFIX = 0x0d;
const SCOPE_OP = 0x10;
const BUFFER_OP = 0x11;
const PACKAGE_OP = 0x12;
const EXT_OP_PREFIX = 0x5b;
const DEVICE_OP = 0x82;

/** Large and small resource items: tag, and for large ones the length behind it. */
const MEMORY32_FIXED = 0x86;
const EXTENDED_INTERRUPT = 0x89;
const IO_PORT = 0x47;
const END_TAG = 0x79;

const MEMORY_READ_WRITE = 0x01;
/** Consumer, edge triggered, active high, exclusive. */
const INTERRUPT_EDGE_HIGH = 0x03;
const IO_DECODE_16 = 0x01;

/** Copies each part once: the tables are made before the guest's first instruction. */
export const concat = (...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array => {
  let length = 0;
  for (const part of parts) length += part.length;
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
};

const ascii = (text: string): number[] => Array.from(text, (character) => character.charCodeAt(0));

const u16 = (value: number): number[] => [value & 0xff, value >>> 8];
const u32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

/**
 * A package length counts itself. Up to 63 it is one byte; above, the first byte has the number of bytes that follow in
 * its top two bits and the low four bits of the length.
 */
const packageLength = (bodyBytes: number): number[] => {
  if (bodyBytes + 1 < 0x40) return [bodyBytes + 1];
  for (let following = 1; following <= 3; following += 1) {
    const length = bodyBytes + 1 + following;
    if (length >= 2 ** (4 + 8 * following)) continue;
    const rest = Array.from({ length: following }, (_, index) => (length >>> (4 + 8 * index)) & 0xff);
    return [(following << 6) | (length & 0xf), ...rest];
  }
  throw new RangeError(`an AML package of ${bodyBytes} bytes`);
};

/** An opcode, the length of the package, and its body. */
export const withLength = (opcode: readonly number[], body: Uint8Array): Uint8Array =>
  concat(opcode, packageLength(body.length), body);

/** A name of one segment, from the root where it begins with a backslash. */
export const path = (text: string): number[] => ascii(text.padEnd(text.startsWith('\\') ? 5 : 4, '_'));

/** An unsigned number below 2^32. */
export const integer = (value: number): Uint8Array => {
  if (value === 0) return concat([ZERO_OP]);
  if (value === 1) return concat([ONE_OP]);
  if (value <= 0xff) return concat([BYTE_PREFIX, value]);
  if (value <= 0xffff) return concat([WORD_PREFIX], u16(value));
  return concat([DWORD_PREFIX], u32(value));
};

export const string = (text: string): Uint8Array => concat([STRING_PREFIX], ascii(text), [0]);

/** `Name (path, value)` */
export const name = (namePath: string, value: Uint8Array): Uint8Array => concat([NAME_OP], path(namePath), value);

/** `Package () { elements }` */
export const packageOf = (...elements: readonly Uint8Array[]): Uint8Array =>
  withLength([PACKAGE_OP], concat([elements.length], ...elements));

/** `Scope (path) { terms }` */
export const scope = (namePath: string, ...terms: readonly Uint8Array[]): Uint8Array =>
  withLength([SCOPE_OP], concat(path(namePath), ...terms));

/** `Device (path) { terms }` */
export const device = (namePath: string, ...terms: readonly Uint8Array[]): Uint8Array =>
  withLength([EXT_OP_PREFIX, DEVICE_OP], concat(path(namePath), ...terms));

/** `ResourceTemplate () { resources }`: a buffer that ends with an end tag, whose checksum of zero means none. */
export const resourceTemplate = (...resources: readonly Uint8Array[]): Uint8Array => {
  const bytes = concat(...resources, [END_TAG, 0]);
  return withLength([BUFFER_OP], concat(integer(bytes.length), bytes));
};

/** `Memory32Fixed (ReadWrite, address, length)` */
export const memory32Fixed = (address: number, length: number): Uint8Array =>
  concat([MEMORY32_FIXED], u16(9), [MEMORY_READ_WRITE], u32(address), u32(length));

/** `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }` */
export const edgeInterrupt = (gsi: number): Uint8Array =>
  concat([EXTENDED_INTERRUPT], u16(6), [INTERRUPT_EDGE_HIGH, 1], u32(gsi));

/** `IO (Decode16, port, port, 1, length)` */
export const ioPorts = (port: number, length: number): Uint8Array =>
  concat([IO_PORT, IO_DECODE_16], u16(port), u16(port), [1, length]);
