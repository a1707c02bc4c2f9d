import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { IoMappings } from '../../../../vmm-client/frontend/io-mappings.ts';

const map = (iova: number, size: number, userAddress = 0x7000_0000 + iova, permission = 3) => ({
  iova,
  size,
  userAddress,
  permission,
});

describe('IoMappings', () => {
  it('finds the mapping that covers an address, to its last byte', async () => {
    const mappings = new IoMappings();
    await mappings.map(map(0x3000, 0x1000));
    await mappings.map(map(0x1000, 0x2000));
    expect(mappings.find(0xfff)).toBeUndefined();
    expect(mappings.find(0x1000)?.size).toBe(0x2000);
    expect(mappings.find(0x2fff)?.size).toBe(0x2000);
    expect(mappings.find(0x3000)?.size).toBe(0x1000);
    expect(mappings.find(0x4000)).toBeUndefined();
  });

  it('finds the way back', async () => {
    const mappings = new IoMappings();
    await mappings.map(map(0x1000, 0x1000, 0x5000));
    expect([mappings.iovaOf(0x5fff), mappings.iovaOf(0x6000), mappings.iovaOf(0x4fff)]).toEqual([
      0x1fff,
      undefined,
      undefined,
    ]);
  });

  it.each([
    ['nothing', map(0, 0)],
    ['a negative address', map(-4096, 4096)],
    ['the end of what numbers can say', map(Number.MAX_SAFE_INTEGER - 4095, 8192)],
    ['no permission', map(0, 4096, 0, 0)],
    ['a permission that does not exist', map(0, 4096, 0, 4)],
    ['what is mapped already, from below', map(0, 0x1001)],
    ['what is mapped already, from above', map(0x1fff, 0x1000)],
    ['what is mapped already, inside', map(0x1800, 8)],
    ['what is mapped already, all around', map(0, 0x4000)],
  ])('does not map %s', async (_, mapping) => {
    const mappings = new IoMappings();
    await mappings.map(map(0x1000, 0x1000));
    await expect(mappings.map(mapping)).rejects.toThrow(RangeError);
    expect(mappings.count).toBe(1);
  });

  it('does not cut a mapping in two', async () => {
    const mappings = new IoMappings();
    await mappings.map(map(0x1000, 0x1000));
    await mappings.map(map(0x2000, 0x2000));
    await expect(mappings.unmap(0x1000, 0x2000)).rejects.toThrow('would cut a mapping of 8192 in two');
    await expect(mappings.unmap(0x1800, 0x2800)).rejects.toThrow(RangeError);
    expect(mappings.count).toBe(2);
    expect(await mappings.unmap(0, 2 ** 60)).toBe(2);
  });

  it('tells its listeners, and waits for all of them', async () => {
    const mappings = new IoMappings();
    const heard: string[] = [];
    const listener = (name: string) => ({
      mapped: async ({ iova }: { iova: number }) => void heard.push(`${name} + ${iova}`),
      unmapped: async (iova: number, size: number) => {
        await new Promise(setImmediate);
        heard.push(`${name} - ${iova} ${size}`);
      },
    });
    mappings.listen(listener('a'));
    const leave = mappings.listen(listener('b'));
    await mappings.map(map(4096, 4096));
    await mappings.unmap(0, 16384);
    // Nothing was there: nobody has to forget it.
    await mappings.unmap(0, 16384);
    leave();
    await mappings.map(map(8192, 4096));
    expect(heard).toEqual(['a + 4096', 'b + 4096', 'a - 0 16384', 'b - 0 16384', 'a + 8192']);
  });

  it('agrees with a list of pages', async () => {
    const steps = fc.array(fc.record({ iova: fc.nat(40), size: fc.integer({ min: 1, max: 12 }), maps: fc.boolean() }), {
      maxLength: 40,
    });
    await fc.assert(
      fc.asyncProperty(steps, async (sequence) => {
        const mappings = new IoMappings();
        /** Which mapping each page belongs to. */
        const pages: (number | undefined)[] = Array(64).fill(undefined);
        for (const [id, { iova, size, maps }] of sequence.entries()) {
          const inside = pages.slice(iova, iova + size);
          if (maps) {
            const isFree = inside.every((owner) => owner === undefined);
            const done = await mappings.map(map(iova, size, 1000 * id + iova)).then(
              () => true,
              () => false,
            );
            expect(done).toBe(isFree);
            if (done) pages.fill(id, iova, iova + size);
          } else {
            const owners = new Set(inside.filter((owner) => owner !== undefined));
            const cuts = pages.some(
              (owner, at) => owner !== undefined && owners.has(owner) && (at < iova || at >= iova + size),
            );
            const count = await mappings.unmap(iova, size).catch(() => -1);
            expect(count).toBe(cuts ? -1 : owners.size);
            if (!cuts) pages.fill(undefined, iova, iova + size);
          }
          const found = pages.map((_, at) => mappings.find(at)?.userAddress);
          expect(found.map((address) => address !== undefined)).toEqual(pages.map((owner) => owner !== undefined));
        }
      }),
    );
  });
});
