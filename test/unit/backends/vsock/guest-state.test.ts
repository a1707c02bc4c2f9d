/** What another host is told of a guest: there and back, and bytes that nobody wrote. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeGuestState, encodeGuestState } from '../../../../backends/vsock/guest-state.ts';
import { dump, hex } from '../../../support/hex.ts';

const STATE = '52 56 53 4b  01 00  00 00  03 00 00 00 00 00 00 00';

describe('the state of a guest', () => {
  it('has this form', () => {
    expect(dump(encodeGuestState(3))).toBe(dump(hex(STATE)));
  });

  it.each([3, 4, 0xffff_fffe])('comes back with CID %i', (cid) => {
    expect(decodeGuestState(encodeGuestState(cid))).toBe(cid);
  });

  it.each<[string, number, number[]]>([
    ['another magic', 0, [0]],
    ['version 2', 4, [2]],
    ['a reserved bit', 7, [0x80]],
    ["the host's CID", 8, [2]],
    ['the CID of nobody', 8, [0xff, 0xff, 0xff, 0xff]],
    ['a CID of 33 bits', 12, [1]],
  ])('with %s is refused', (_, at, bytes) => {
    const state = hex(STATE);
    state.set(bytes, at);
    expect(decodeGuestState(state)).toBeTypeOf('string');
  });

  it('of another length is refused', () => {
    fc.assert(
      fc.property(fc.nat(40), (length) => {
        const bytes = new Uint8Array(length);
        bytes.set(hex(STATE).subarray(0, length));
        expect(typeof decodeGuestState(bytes)).toBe(length === 16 ? 'number' : 'string');
      }),
    );
  });
});
