/** The Internet checksum: the complement of the sum of 16-bit words, carries added in again. Source: RFC 1071. */

/**
 * Adds the bytes from `start` to `end` to a sum that is not folded yet; an odd last byte counts as the upper half of a
 * word. Only the last of several parts may have an odd length. Exact for 64 KiB of bytes and some.
 */
export function addToSum(bytes: Uint8Array, start: number, end: number, sum = 0): number {
  let total = sum;
  let at = start;
  for (; at + 1 < end; at += 2) total += (bytes[at]! << 8) | bytes[at + 1]!;
  if (at < end) total += bytes[at]! << 8;
  return total;
}

/** The sum in 16 bits: what a checksum field holds that somebody else is to complete. */
export function foldSum(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded & 0xffff) + Math.floor(folded / 0x1_0000);
  return folded;
}

/** The checksum of a sum. */
export function checksumOf(sum: number): number {
  return ~foldSum(sum) & 0xffff;
}
