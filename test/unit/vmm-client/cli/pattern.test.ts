import { describe, expect, it } from 'vitest';
import { checkPattern, fillPattern, PATTERN_SECTOR_BYTES } from '../../../../vmm-client/cli/pattern.ts';

const SECTORS = 8;
const SEED = 7;
const FAR = 2 ** 33 + 5;

function pattern(sector: number, seed = SEED): Buffer {
  const bytes = Buffer.alloc(SECTORS * PATTERN_SECTOR_BYTES);
  fillPattern(bytes, sector, seed);
  return bytes;
}

const scratch = Buffer.alloc(SECTORS * PATTERN_SECTOR_BYTES);

describe('the verify pattern', () => {
  it('begins each sector with its number and the seed', () => {
    const bytes = pattern(FAR);
    expect(bytes.readBigUInt64LE(PATTERN_SECTOR_BYTES)).toBe(BigInt(FAR + 1));
    expect(bytes.readUInt32LE(PATTERN_SECTOR_BYTES + 8)).toBe(SEED);
  });

  it('differs in all sectors, and between seeds', () => {
    const halves = [pattern(0), pattern(0, SEED + 1), pattern(2 ** 32)].flatMap((bytes) =>
      Array.from({ length: SECTORS }, (_, i) => bytes.subarray(i * 512 + 256, i * 512 + 512).toString('hex')),
    );
    expect(new Set(halves).size).toBe(halves.length);
  });

  it('accepts what it made', () => {
    expect(checkPattern(pattern(FAR), scratch, FAR, SEED)).toBeUndefined();
  });

  it('names the first wrong byte, and counts sectors', () => {
    const bytes = pattern(100);
    bytes[3 * 512 + 17] = bytes[3 * 512 + 17]! ^ 1;
    bytes[5 * 512] = bytes[5 * 512]! ^ 1;
    expect(checkPattern(bytes, scratch, 100, SEED)).toEqual({
      offset: 3 * 512 + 17,
      badSectors: 2,
      holds: 'other data',
    });
  });

  it.each([
    ['zeroes', Buffer.alloc(512)],
    ['the pattern of offset 51200', pattern(100).subarray(0, 512)],
    ['the pattern of offset 512 and seed 8', pattern(1, 8).subarray(0, 512)],
  ])('recognizes %s', (holds, sector) => {
    const bytes = pattern(0);
    sector.copy(bytes, 512);
    expect(checkPattern(bytes, scratch, 0, SEED)).toMatchObject({ badSectors: 1, holds });
  });
});
