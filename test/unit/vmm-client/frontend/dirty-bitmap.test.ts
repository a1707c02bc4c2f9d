import { readSync, writeSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DirtyBitmap } from '../../../../vmm-client/frontend/dirty-bitmap.ts';

const MiB = 1 << 20;

describe('DirtyBitmap', () => {
  let bitmap: DirtyBitmap;

  beforeEach(() => {
    bitmap = new DirtyBitmap(256 * MiB);
  });

  afterEach(() => bitmap.close());

  it('has a bit for every page, in whole pages of bits', () => {
    expect([bitmap.length, bitmap.coveredBytes]).toEqual([8192, 256 * MiB]);
    const tiny = new DirtyBitmap(1);
    expect([tiny.length, tiny.coveredBytes]).toEqual([4096, 128 * MiB]);
    tiny.close();
  });

  it('takes the bits that a peer set in its file, once', () => {
    // Page 3 and 4, page 8, and the last of all.
    writeSync(bitmap.memfd.fd, Uint8Array.of(0b0001_1000, 0b1), 0, 2, 0);
    writeSync(bitmap.memfd.fd, Uint8Array.of(0x80), 0, 1, 8191);
    expect(bitmap.take()).toEqual([
      { guestAddress: 0x3000, length: 0x2000 },
      { guestAddress: 0x8000, length: 0x1000 },
      { guestAddress: 256 * MiB - 4096, length: 0x1000 },
    ]);
    expect(bitmap.take()).toEqual([]);
    const byte = new Uint8Array(1);
    readSync(bitmap.memfd.fd, byte, 0, 1, 0);
    expect(byte[0]).toBe(0);
  });

  it('joins pages over the borders of words', () => {
    writeSync(bitmap.memfd.fd, Uint8Array.of(0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), 0, 7, 3);
    expect(bitmap.take()).toEqual([{ guestAddress: 31 * 4096, length: 42 * 4096 }]);
  });

  it('marks every page that a range touches', () => {
    bitmap.mark({ guestAddress: 4095, length: 2 });
    bitmap.mark({ guestAddress: 31 * 4096, length: 8192 });
    expect(bitmap.take()).toEqual([
      { guestAddress: 0, length: 8192 },
      { guestAddress: 31 * 4096, length: 8192 },
    ]);
  });

  it('marks ranges from anywhere in a word to anywhere', () => {
    const place = fc.tuple(fc.integer({ min: 0, max: 200 }), fc.integer({ min: 1, max: 100 }));
    fc.assert(
      fc.property(place, ([first, pages]) => {
        const range = { guestAddress: first * 4096, length: pages * 4096 };
        bitmap.mark(range);
        expect(bitmap.take()).toEqual([range]);
      }),
    );
  });

  it('returns what was marked, whatever it was', () => {
    const pages = fc.uniqueArray(fc.integer({ min: 0, max: 65535 }), { maxLength: 60 });
    fc.assert(
      fc.property(pages, (marked) => {
        for (const page of marked) bitmap.mark({ guestAddress: page * 4096, length: 1 });
        const taken = bitmap
          .take()
          .flatMap(({ guestAddress, length }) =>
            Array.from({ length: length / 4096 }, (_, i) => guestAddress / 4096 + i),
          );
        expect(taken).toEqual([...marked].sort((a, b) => a - b));
      }),
    );
  });

  it('refuses to be larger than a view', () => {
    expect(() => new DirtyBitmap(2 ** 45 + 1)).toThrow('too large');
  });
});
