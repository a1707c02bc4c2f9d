/** States as bytes, and what is not one. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  bigintOf,
  bytesOf,
  decodeState,
  encodeState,
  fieldsOf,
  flagOf,
  integerOf,
  listOf,
  textOf,
} from '../../../../../vmm-client/vmm/state/codec.ts';

const text = (value: string) => Buffer.from(value);

describe('a state', () => {
  it('is JSON with tagged numbers of 64 bits and bytes', () => {
    const bytes = encodeState({
      a: 1,
      b: 0xffff_ffff_ffff_ffffn,
      c: Uint8Array.of(1, 2),
      d: [null, true],
      e: undefined,
    });

    expect(bytes.toString()).toBe('{"a":1,"b":{"$n":"18446744073709551615"},"c":{"$b":"AQI="},"d":[null,true]}');
    expect(decodeState(bytes)).toEqual({ a: 1, b: 0xffff_ffff_ffff_ffffn, c: Uint8Array.of(1, 2), d: [null, true] });
  });

  it('of any plain data comes back as it was', () => {
    const { state } = fc.letrec((tie) => ({
      state: fc.oneof(
        { depthSize: 'small' },
        fc.bigInt(-(1n << 63n), (1n << 64n) - 1n),
        fc.uint8Array(),
        fc.integer(),
        fc.string(),
        fc.boolean(),
        fc.constant(null),
        fc.array(tie('state')),
        fc.dictionary(fc.stringMatching(/^[a-z_]{1,8}$/), tie('state')),
      ),
    }));
    fc.assert(
      fc.property(state, (value) => {
        expect(decodeState(encodeState(value))).toStrictEqual(structuredClone(value));
      }),
    );
  });

  it('has a limited number of values, whose memory a peer would make us take', () => {
    expect(() => decodeState(text(`[${'{},'.repeat(3_000_000)}0]`))).toThrow(/^the state has more than \d+ values$/);
  });

  it.each([
    ['a function', { f: () => 1 }],
    ['an object of a class', { d: new Map() }],
    ['a number that is none', [Number.NaN]],
    ['a key that looks like a tag', { $n: 'x' }],
  ])('is not made of %s', (_what, value) => {
    expect(() => encodeState(value)).toThrow(TypeError);
  });

  it.each([
    ['no JSON', '{"a":', /is not JSON/],
    ['a number of 21 digits', `{"$n":"${'9'.repeat(21)}"}`, /none of 64 bits/],
    ['a number with letters', '{"$n":"0x10"}', /none of 64 bits/],
    ['bytes that are not base64', '{"$b":"AQI"}', /not base64/],
    ['a tag that is no text', '{"$b":[1]}', /no value/],
    ['a tag and something else', '{"$n":"1","x":2}', /no value/],
    ['nesting without end', '['.repeat(1_000_000), /is not JSON/],
    ['deep nesting', '['.repeat(1_000_000) + ']'.repeat(1_000_000), /is not JSON/],
  ])('is refused: %s', (_what, json, sentence) => {
    expect(() => decodeState(text(json))).toThrow(
      expect.objectContaining({ code: 'VM', message: expect.stringMatching(sentence) }),
    );
  });
});

describe('a check of a decoded value', () => {
  it('passes what is right', () => {
    expect(fieldsOf({ a: 1 }, 'x')).toEqual({ a: 1 });
    expect(listOf([1, 2], 'x', 2)).toEqual([1, 2]);
    expect(integerOf(7, 'x', { minimum: 7, maximum: 7 })).toBe(7);
    expect(bigintOf(255n, 'x', 8)).toBe(255n);
    expect(bytesOf(Uint8Array.of(1), 'x', 1)).toEqual(Uint8Array.of(1));
    expect(textOf('t', 'x')).toBe('t');
    expect(flagOf(false, 'x')).toBe(false);
  });

  it.each<[string, () => unknown]>([
    ['x: [1]: not an object', () => fieldsOf([1], 'x')],
    ['x: null: not an object', () => fieldsOf(null, 'x')],
    ['x: 1 bytes: not an object', () => fieldsOf(Uint8Array.of(1), 'x')],
    ['x: nothing: not a list', () => listOf(undefined, 'x', 1)],
    ['x: 2 elements, at most 1 are possible', () => listOf([1, 2], 'x', 1)],
    ['x: 1.5: not a whole number between 0 and 9', () => integerOf(1.5, 'x', { maximum: 9 })],
    ['x: -1: not a whole number between 0 and 9', () => integerOf(-1, 'x', { maximum: 9 })],
    ['x: 10: not a whole number between 0 and 9', () => integerOf(10, 'x', { maximum: 9 })],
    ['x: 256: not a number of 8 bits', () => bigintOf(256n, 'x', 8)],
    ['x: -1: not a number of 64 bits', () => bigintOf(-1n, 'x')],
    ['x: "AQ==": not bytes', () => bytesOf('AQ==', 'x')],
    ['x: 2 bytes: not 3 bytes', () => bytesOf(Uint8Array.of(1, 2), 'x', 3)],
    ['x: 1: not text', () => textOf(1, 'x')],
    ['x: "true": not true or false', () => flagOf('true', 'x')],
  ])('says %s', (sentence, check) => {
    expect(check).toThrow(expect.objectContaining({ code: 'VM', message: sentence }));
  });
});
