import { describe, expect, it } from 'vitest';
import {
  blocksOf,
  checkPieces,
  hotplugRegion,
  MAX_PIECES,
  pieceAt,
  piecesOf,
} from '../../../../../../vmm-client/vmm/devices/mem/region.ts';

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const LIMIT = 2 ** 46;

describe('hotplugRegion', () => {
  it('begins at 4 GiB where RAM ends below the hole', () => {
    expect(hotplugRegion({ size: 512 * MiB, hotplug_size: GiB }, LIMIT)).toEqual({
      start: 0x1_0000_0000,
      size: GiB,
      hotplugBytes: GiB,
      pieceBytes: 256 * MiB,
    });
  });

  it.each([
    ['a memory block of 128 MiB', 3 * GiB + 6 * MiB, 2 * MiB, 0x1_0800_0000, 128 * MiB],
    ['a memory block of 2 GiB, where RAM is large', 96 * GiB, 2 * MiB, 0x18_8000_0000, 2 * GiB],
  ])('consists of whole blocks of Linux: %s', (_, size, hotplug_size, start, bytes) => {
    const region = hotplugRegion({ size, hotplug_size }, LIMIT);

    expect(region).toMatchObject({ start, size: bytes, hotplugBytes: hotplug_size });
    // RAM of 96 GiB ends at 97 GiB, which is 0x18_4000_0000.
    expect(start % bytes).toBe(0);
  });

  it('has few pieces, however much it is', () => {
    for (const hotplug_size of [2 * MiB, 128 * MiB, GiB, 7 * GiB - 2 * MiB, 1000 * GiB, 2 ** 44]) {
      const region = hotplugRegion({ size: GiB, hotplug_size }, LIMIT);
      const count = piecesOf(region, region.size);
      const last = pieceAt(region, count - 1);

      expect(count).toBeLessThanOrEqual(MAX_PIECES);
      expect(region.size).toBeGreaterThanOrEqual(hotplug_size);
      expect(last.start + last.length).toBe(region.start + region.size);
      expect(region.pieceBytes % (128 * MiB)).toBe(0);
    }
  });

  it('refuses what the processors do not reach', () => {
    expect(() => hotplugRegion({ size: GiB, hotplug_size: 8 * GiB }, 2 ** 33)).toThrow(
      /hotplug_size 8589934592 ends at guest address 0x300000000, above the 0x200000000/,
    );
  });
});

describe('blocksOf', () => {
  it('counts blocks of 2 MiB through the region', () => {
    const region = hotplugRegion({ size: GiB, hotplug_size: GiB }, LIMIT);

    expect(blocksOf(region, 0)).toEqual({ first: 0, count: 128 });
    expect(blocksOf(region, 3)).toEqual({ first: 384, count: 128 });
  });
});

describe('checkPieces', () => {
  const region = hotplugRegion({ size: GiB, hotplug_size: GiB }, LIMIT);
  const piece = (index: number) => pieceAt(region, index);

  it('takes pieces of the region', () => {
    expect(checkPieces([], undefined)).toEqual([]);
    expect(checkPieces([piece(0), piece(2)], region)).toEqual([
      { start: 0x1_0000_0000, length: 256 * MiB },
      { start: 0x1_2000_0000, length: 256 * MiB },
    ]);
  });

  it.each([
    ['no list', {}, region, /pieces of memory: {}: not a list/],
    ['one where there is no region', [piece(0)], undefined, /1 elements, at most 0/],
    ['one twice', [piece(1), piece(1)], region, /are not one of this machine's/],
    ['one out of order', [piece(1), piece(0)], region, /268435456 bytes at 0x100000000 are not one of this machine's/],
    ['one of another length', [{ start: 0x1_0000_0000, length: 4096 }], region, /4096 bytes/],
    ['one below', [{ start: 0, length: 256 * MiB }], region, /at 0x0/],
    ['a fraction', [{ start: 0.5, length: 1 }], region, /not a whole number/],
    ['a text', ['piece'], region, /not an object/],
  ])('refuses %s', (_, value, where, sentence) => {
    expect(() => checkPieces(value, where)).toThrow(sentence);
  });
});
