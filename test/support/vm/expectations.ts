/** What a right run of the test guest reports, and what it leaves on a disk: guest/blk.c says it in C. */

import { closeSync, openSync, readSync } from 'node:fs';

/** The report of job=blk about a writable disk where everything went well. */
export const verifiedDisk = (sizeBytes: number): Record<string, number> => ({
  capacity: sizeBytes / 512,
  readonly: 0,
  interrupt: 1,
  flush: 0,
  failures: 0,
  mismatches: 0,
  // IOERR behind the end, UNSUPP for a type that nobody knows: VIRTIO 1.3, 5.2.6.
  beyond: 1,
  unknown: 2,
  needs_reset: 0,
});

const WORD = (1n << 64n) - 1n;
/** The same function as in guest/platform.h. */
const mix = (x: bigint): bigint => (((x + 0x9e37_79b9_7f4a_7c15n) & WORD) * 0xbf58_476d_1ce4_e5b9n) & WORD;

/** Looks into an image without the daemon: `as stamped`, or which sector is not. */
export const diskContent = (image: string, kib: number, seed: number, firstSector = 0): string => {
  const sector = Buffer.alloc(512);
  const fd = openSync(image, 'r');
  try {
    for (let n = firstSector; n < firstSector + kib * 2; n++) {
      readSync(fd, sector, 0, 512, n * 512);
      const word = mix(BigInt(n) ^ (BigInt(seed) << 40n));
      const expected = Buffer.alloc(512);
      for (let at = 0; at < 512; at += 8) expected.writeBigUInt64LE(word, at);
      expected.writeBigUInt64LE(BigInt(n), 8);
      expected.writeBigUInt64LE(word ^ WORD, 504);
      if (!sector.equals(expected)) return `sector ${n} is not as stamped: ${sector.toString('hex', 0, 24)}`;
    }
  } finally {
    closeSync(fd);
  }
  return 'as stamped';
};
