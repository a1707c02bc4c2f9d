/**
 * Test data that tells on itself: every 512-byte sector begins with its own number and the seed, and the rest follows
 * from both, so that a sector that is stale, misplaced or torn is recognized as such. Pure.
 *
 *     sector number u64 @0, seed u32 @8, generated words @12
 */

export const PATTERN_SECTOR_BYTES = 512;
const WORDS = PATTERN_SECTOR_BYTES / 4;
const HEADER_WORDS = 3;

/** Spreads sector and seed over 32 bits, never 0 (the generator's fixed point). Constants: MurmurHash3's finalizer. */
function mix(sectorLow: number, sectorHigh: number, seed: number): number {
  let h = (sectorLow ^ Math.imul(sectorHigh + 1, 0x9e37_79b1) ^ Math.imul(seed + 1, 0x85eb_ca6b)) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35);
  h ^= h >>> 16;
  return h === 0 ? 1 : h;
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

/** Fills whole sectors, the first of which is number `sector`. The bytes are aligned to 4. */
export function fillPattern(bytes: Uint8Array, sector: number, seed: number): void {
  const words = wordsOf(bytes);
  for (let start = 0, number = sector; start < words.length; start += WORDS, number++) {
    const low = number >>> 0;
    const high = Math.floor(number / 0x1_0000_0000);
    words[start] = low;
    words[start + 1] = high;
    words[start + 2] = seed;
    let x = mix(low, high, seed);
    for (let i = HEADER_WORDS; i < WORDS; i++) {
      // xorshift32 (Marsaglia, 2003).
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      words[start + i] = x;
    }
  }
}

/** The first difference of a range from its pattern. */
export interface Mismatch {
  /** Byte offset into the checked range. */
  readonly offset: number;
  /** Sectors of the range that differ. */
  readonly badSectors: number;
  /** What the first bad sector seems to hold instead. */
  readonly holds: string;
}

/** Compares whole sectors with their pattern; `expected` is scratch space of at least the same length. */
export function checkPattern(bytes: Buffer, expected: Buffer, sector: number, seed: number): Mismatch | undefined {
  const wanted = expected.subarray(0, bytes.length);
  fillPattern(wanted, sector, seed);
  if (bytes.equals(wanted)) return undefined;
  let badSectors = 0;
  let offset = -1;
  for (let start = 0; start < bytes.length; start += PATTERN_SECTOR_BYTES) {
    const end = start + PATTERN_SECTOR_BYTES;
    if (bytes.compare(wanted, start, end, start, end) === 0) continue;
    badSectors += 1;
    if (offset !== -1) continue;
    offset = start;
    while (bytes[offset] === wanted[offset]) offset += 1;
  }
  const first = offset - (offset % PATTERN_SECTOR_BYTES);
  return { offset, badSectors, holds: describeSector(bytes.subarray(first, first + PATTERN_SECTOR_BYTES), seed) };
}

function describeSector(bytes: Buffer, seed: number): string {
  if (bytes.every((byte) => byte === 0)) return 'zeroes';
  const own = Buffer.alloc(PATTERN_SECTOR_BYTES);
  const heldSector = bytes.readUInt32LE(0) + bytes.readUInt32LE(4) * 0x1_0000_0000;
  const heldSeed = bytes.readUInt32LE(8);
  if (Number.isSafeInteger(heldSector)) {
    fillPattern(own, heldSector, heldSeed);
    if (own.equals(bytes)) {
      return heldSeed === seed
        ? `the pattern of offset ${heldSector * PATTERN_SECTOR_BYTES}`
        : `the pattern of offset ${heldSector * PATTERN_SECTOR_BYTES} and seed ${heldSeed}`;
    }
  }
  return 'other data';
}
