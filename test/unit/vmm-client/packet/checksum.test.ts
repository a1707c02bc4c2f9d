import { describe, expect, it } from 'vitest';
import { addToSum, checksumOf, foldSum } from '../../../../vmm-client/packet/checksum.ts';

/** The example of RFC 1071, 3. */
const EXAMPLE = Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7);

describe('the Internet checksum', () => {
  it('is that of RFC 1071', () => {
    const sum = addToSum(EXAMPLE, 0, EXAMPLE.length);
    expect([sum, foldSum(sum), checksumOf(sum)]).toEqual([0x2ddf0, 0xddf2, 0x220d]);
  });

  it('counts an odd last byte as the upper half of a word', () => {
    expect(addToSum(Uint8Array.of(1, 2, 3), 0, 3)).toBe(0x0102 + 0x0300);
  });

  it('goes on from a sum, in the middle of the bytes', () => {
    expect(addToSum(EXAMPLE, 2, 4, 5)).toBe(0xf203 + 5);
  });

  it.each([
    [0, 0xffff],
    [0xffff, 0],
    [0x1_fffe, 0],
    // 64 KiB of ones, which do not fit into 31 bits.
    [0xffff * 0x8000, 0],
  ])('of the sum %d is %d', (sum, checksum) => {
    expect(checksumOf(sum)).toBe(checksum);
  });
});
