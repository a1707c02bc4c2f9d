/**
 * States as bytes: JSON, in which what JSON has not is an object with one tagged key.
 *
 *     10n                      {"$n":"10"}
 *     Uint8Array.of(1, 2)      {"$b":"AQI="}
 *
 * What is decoded came from a file or a peer and is anything; the other functions here are for those who check it, each
 * its own part. They throw a VmError that says what, and what it is instead.
 */

import { VmError } from '../errors.ts';

const BIGINT = '$n';
const BYTES = '$b';
const SHOWN_CHARACTERS = 40;
/**
 * Values of a state, in which an empty one takes three bytes and becomes a hundred here. The largest that there are are
 * mappings of an IOMMU: four numbers for each of 131,072.
 */
const MAX_VALUES = 2 ** 20;
/** Every value but the first of all stands behind one of these. */
const BEFORE_VALUES = [',', '[', '{'].map((character) => character.charCodeAt(0));

/**
 * Encodes plain data: objects, arrays, numbers, strings, booleans, null, bigint, Uint8Array. Fields that are undefined are
 * left out.
 * @throws TypeError - something else (our mistake)
 */
export function encodeState(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(toPlain(value)));
}

function toPlain(value: unknown): unknown {
  switch (typeof value) {
    case 'bigint':
      return { [BIGINT]: value.toString() };
    case 'number':
      if (!Number.isFinite(value)) throw new TypeError(`a state with the number ${value}`);
      return value;
    case 'function':
    case 'symbol':
      throw new TypeError(`a state with a ${typeof value}`);
    case 'object': {
      if (value === null) return null;
      if (value instanceof Uint8Array) return { [BYTES]: bufferOf(value).toString('base64') };
      if (Array.isArray(value)) return value.map(toPlain);
      const prototype: unknown = Object.getPrototypeOf(value);
      if (prototype !== Object.prototype && prototype !== null)
        throw new TypeError('a state with an object of a class');
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [plainKey(key), toPlain(each)]));
    }
    default:
      return value;
  }
}

function plainKey(key: string): string {
  if (key.startsWith('$')) throw new TypeError(`a state with the key "${key}"`);
  return key;
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The reverse of `encodeState`. What comes out is of any shape. @throws VmError - these are not the bytes of a state */
export function decodeState(bytes: Uint8Array): unknown {
  checkCount(bytes);
  try {
    return fromPlain(JSON.parse(bufferOf(bytes).toString()));
  } catch (error) {
    throw error instanceof VmError ? error : new VmError(`the state is not JSON: ${(error as Error).message}`);
  }
}

/** Text with characters that stand before values counts for more than it is. @throws VmError - these are too many */
function checkCount(bytes: Uint8Array): void {
  const buffer = bufferOf(bytes);
  let count = 1;
  for (const character of BEFORE_VALUES) {
    for (let at = buffer.indexOf(character); at !== -1; at = buffer.indexOf(character, at + 1)) {
      count += 1;
      if (count > MAX_VALUES) throw new VmError(`the state has more than ${MAX_VALUES} values`);
    }
  }
}

function fromPlain(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(fromPlain);
  const entries = Object.entries(value);
  const [key, inner] = entries[0] ?? [];
  if (key === BIGINT || key === BYTES) {
    if (entries.length !== 1 || typeof inner !== 'string') throw new VmError(`the state has a ${key} that is no value`);
    return key === BIGINT ? parseBigint(inner) : parseBytes(inner);
  }
  return Object.fromEntries(entries.map(([name, each]) => [name, fromPlain(each)]));
}

function parseBigint(text: string): bigint {
  // 64 bits have at most 20 digits.
  if (!/^-?\d{1,20}$/.test(text))
    throw new VmError(`the state has the number ${shown(text)}, which is none of 64 bits`);
  return BigInt(text);
}

function parseBytes(text: string): Uint8Array {
  const bytes = Buffer.from(text, 'base64');
  if (bytes.toString('base64') !== text) throw new VmError(`the state has bytes that are not base64: ${shown(text)}`);
  return new Uint8Array(bytes);
}

function shown(value: unknown): string {
  const text = typeof value === 'bigint' ? `${value}` : (JSON.stringify(value) ?? 'nothing');
  return text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}...` : text;
}

function fail(what: string, value: unknown, wanted: string): never {
  throw new VmError(`${what}: ${value instanceof Uint8Array ? `${value.length} bytes` : shown(value)}: not ${wanted}`);
}

/** The fields of an object. */
export function fieldsOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  const isObject = typeof value === 'object' && value !== null;
  if (!isObject || Array.isArray(value) || value instanceof Uint8Array) fail(what, value, 'an object');
  return value as Record<string, unknown>;
}

/** The elements of a list of at most `most`. */
export function listOf(value: unknown, what: string, most: number): readonly unknown[] {
  if (!Array.isArray(value)) fail(what, value, 'a list');
  if (value.length > most) throw new VmError(`${what}: ${value.length} elements, at most ${most} are possible`);
  return value;
}

/** A whole number between two that are possible too. */
export function integerOf(
  value: unknown,
  what: string,
  { minimum = 0, maximum = Number.MAX_SAFE_INTEGER }: { readonly minimum?: number; readonly maximum?: number } = {},
): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < minimum || value > maximum) {
    fail(what, value, `a whole number between ${minimum} and ${maximum}`);
  }
  return value;
}

/** A number of so many bits without a sign. */
export function bigintOf(value: unknown, what: string, bits = 64): bigint {
  if (typeof value !== 'bigint' || value < 0n || value >= 1n << BigInt(bits))
    fail(what, value, `a number of ${bits} bits`);
  return value;
}

/** Bytes, `length` of them where that is given. */
export function bytesOf(value: unknown, what: string, length?: number): Uint8Array {
  if (!(value instanceof Uint8Array)) fail(what, value, 'bytes');
  if (length !== undefined && value.length !== length) fail(what, value, `${length} bytes`);
  return value;
}

export function textOf(value: unknown, what: string): string {
  if (typeof value !== 'string') fail(what, value, 'text');
  return value;
}

export function flagOf(value: unknown, what: string): boolean {
  if (typeof value !== 'boolean') fail(what, value, 'true or false');
  return value;
}
