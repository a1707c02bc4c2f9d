import { afterEach, describe, expect, it } from 'vitest';
import { GuestMemory, type RegionDescription } from '../../../../protocol/memory/guest-memory.ts';
import { MemoryError } from '../../../../protocol/memory/memory-error.ts';
import { faultGuardAvailable } from '../../../../protocol/sys/fault-guard.ts';
import { countMappings } from '../../../../protocol/sys/mapping.ts';
import { createEventFd, type OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { createMemfd, truncate } from '../../../support/frontend/descriptors.ts';

const PAGE = 4096;
const GiB = 2 ** 30;
const memories: GuestMemory[] = [];
const files: OwnedFd[] = [];

const memfd = (length: number): OwnedFd => {
  const fd = createMemfd(length);
  files.push(fd);
  return fd;
};

const newMemory = (): GuestMemory => {
  const memory = new GuestMemory();
  memories.push(memory);
  return memory;
};

const describeRegion = (guestAddress: number, size: number, more: Partial<RegionDescription> = {}) => ({
  guestAddress,
  size,
  userAddress: 0x7000_0000_0000 + guestAddress,
  mmapOffset: 0,
  ...more,
});

/** Memory of regions [address, size], each on a sparse file of its own. */
const memoryOf = (...regions: [address: number, size: number][]): GuestMemory => {
  const memory = newMemory();
  for (const [address, size] of regions) memory.add(describeRegion(address, size), memfd(size));
  return memory;
};

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

const readText = (memory: GuestMemory, address: number, length: number): string => {
  const target = new Uint8Array(length);
  expect(memory.copyOut(address, target)).toBe(true);
  return new TextDecoder().decode(target);
};

afterEach(() => {
  for (const memory of memories.splice(0)) memory.clear();
  for (const fd of files.splice(0)) fd.close();
});

describe('find', () => {
  it('gives the region of every address in it, and none for those around it', () => {
    const memory = memoryOf([0x1000, PAGE], [0x8000, 2 * PAGE], [0x2000, PAGE]);

    const starts = [0, 0xfff, 0x1000, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x9fff, 0xa000].map(
      (address) => memory.find(address)?.start,
    );

    expect(starts).toEqual([
      undefined,
      undefined,
      0x1000,
      0x1000,
      0x2000,
      0x2000,
      undefined,
      undefined,
      0x8000,
      0x8000,
      undefined,
    ]);
  });

  it('gives the right one of 509 regions, whichever was asked for last', () => {
    const memory = newMemory();
    const fd = memfd(PAGE);
    const order = Array.from({ length: 509 }, (_, i) => (i * 257) % 509);
    for (const i of order) memory.add(describeRegion(i * 2 * PAGE, PAGE), fd);

    const wrong = order.filter((i) => memory.find(i * 2 * PAGE + 5)?.start !== i * 2 * PAGE);
    const holes = order.filter((i) => memory.find(i * 2 * PAGE + PAGE) !== undefined);

    expect([wrong, holes]).toEqual([[], []]);
    expect(() => memory.add(describeRegion(2 ** 40, PAGE), fd)).toThrow(/509 regions already/);
  });

  it('forgets a region that was removed, though it was the last one found', () => {
    const memory = memoryOf([0, PAGE], [PAGE, PAGE]);
    const region = memory.find(PAGE);

    if (region !== undefined) memory.remove(region);

    expect(memory.find(PAGE)).toBeUndefined();
    expect(memory.find(0)?.start).toBe(0);
    expect(memory.locate(PAGE, 1)).toBe(false);
  });
});

describe('locate', () => {
  it('leaves view and offset of the bytes', () => {
    const memory = memoryOf([0x10_0000, 4 * PAGE]);
    memory.copyIn(0x10_2345, Uint8Array.of(9, 8, 7));

    expect(memory.locate(0x10_2345, 3)).toBe(true);

    expect([0, 1, 2].map((i) => memory.view.getUint8(memory.offset + i))).toEqual([9, 8, 7]);
  });

  it.each([
    ['that ends where the region ends', 0x3ffe, 2, true],
    ['that ends one byte behind', 0x3ffe, 3, false],
    ['of the whole region', 0, 0x4000, true],
    ['of one byte more than the region', 0, 0x4001, false],
    ['that starts behind it', 0x4000, 1, false],
    ['of 2^32 - 1 bytes', 0, 0xffff_ffff, false],
    ['at 2^53 - 1', 2 ** 53 - 1, 1, false],
    ['at 2^64', 2 ** 64, 1, false],
    ['at a negative address', -1, 1, false],
  ])('judges a range %s', (_, address, length, expected) => {
    expect(memoryOf([0, 0x4000]).locate(address, length)).toBe(expected);
  });

  it('finds every byte of a region larger than a view can be, at the seams of the windows too', () => {
    const size = 6 * GiB;
    const memory = memoryOf([4 * GiB, size]);
    const half = GiB / 2;
    const seams = Array.from({ length: 12 }, (_, i) => i * half).flatMap((at) => [at, at + half - 4]);

    seams.forEach((at, i) => {
      expect(memory.locate(4 * GiB + at, 8)).toBe(at + 8 <= size);
      if (at + 4 <= size) {
        memory.locate(4 * GiB + at, 4);
        memory.view.setUint32(memory.offset, 1000 + i, true);
      }
    });

    const found = seams.map((at) => {
      const target = new Uint8Array(4);
      memory.copyOut(4 * GiB + at, target);
      return Buffer.from(target).readUInt32LE();
    });
    expect(found).toEqual(seams.map((_, i) => 1000 + i));
  });

  it('reaches guests beyond 64 GiB', () => {
    const size = 128 * GiB;
    const memory = memoryOf([0, 3 * GiB], [4 * GiB, size]);
    const last = 4 * GiB + size - 5;

    expect(memory.copyIn(last, bytesOf('hello'))).toBe(true);

    expect(readText(memory, last, 5)).toBe('hello');
    expect(memory.copyIn(last + 1, bytesOf('hello'))).toBe(false);
  });
});

describe('copies', () => {
  it('go across regions that are adjacent for the guest', () => {
    const memory = memoryOf([0x3000, PAGE], [0x1000, PAGE], [0x2000, PAGE]);
    const text = `${'x'.repeat(PAGE)}the end`;

    expect(memory.copyIn(0x1ffc, bytesOf(text))).toBe(true);

    expect(readText(memory, 0x1ffc, text.length)).toBe(text);
    expect(readText(memory, 0x3000, 3)).toBe('end');
  });

  it('fail where a gap begins', () => {
    const memory = memoryOf([0, PAGE], [2 * PAGE, PAGE]);

    expect(memory.copyOut(PAGE - 4, new Uint8Array(8))).toBe(false);
    expect(memory.copyIn(2 * PAGE - 1, new Uint8Array(8))).toBe(false);
    expect(memory.copyIn(3 * PAGE - 1, Uint8Array.of(1, 2))).toBe(false);
  });

  it('of nothing succeed anywhere', () => {
    expect(memoryOf([0, PAGE]).copyOut(2 ** 50, new Uint8Array(0))).toBe(true);
  });
});

describe('fromUserAddress', () => {
  it('translates where the whole range is in one region', () => {
    const memory = memoryOf([0x1000, PAGE], [0x2000, PAGE]);
    const user = 0x7000_0000_0000;

    expect(memory.fromUserAddress(user + 0x1010, 16, 'ring')).toBe(0x1010);
    expect(memory.fromUserAddress(user + 0x2fff, 1, 'ring')).toBe(0x2fff);
    expect(() => memory.fromUserAddress(user + 0x1fff, 2, 'ring')).toThrow(/ring: 2 bytes at user address/);
    expect(() => memory.fromUserAddress(user, 1, 'ring')).toThrow(MemoryError);
    expect(() => memory.fromUserAddress(0x1000, 1, 'ring')).toThrow(MemoryError);
  });
});

describe('add', () => {
  it('maps what the offset says, also in the middle of a page', () => {
    const fd = memfd(4 * PAGE);
    const whole = newMemory();
    whole.add(describeRegion(0, 4 * PAGE), fd);
    whole.copyIn(PAGE + 512, bytesOf('offset'));
    const part = newMemory();

    part.add(describeRegion(0x10_0000, PAGE, { mmapOffset: PAGE + 512 }), fd);

    expect(readText(part, 0x10_0000, 6)).toBe('offset');
  });

  it.each<[string, RegionDescription, RegExp]>([
    ['of size 0', describeRegion(0, 0), /size 0/],
    ['larger than its file', describeRegion(0, PAGE + 1), /beyond its end/],
    ['behind the end of its file', describeRegion(0, 1, { mmapOffset: PAGE }), /beyond its end/],
    ['that leaves 2^53', describeRegion(2 ** 53 - PAGE, PAGE, { userAddress: 0 }), /overflow/],
  ])('refuses a region %s, and maps nothing', (_, region, sentence) => {
    const memory = newMemory();
    const before = countMappings();

    expect(() => memory.add(region, memfd(PAGE))).toThrow(sentence);

    expect(countMappings()).toBe(before);
    expect(memory.regions).toEqual([]);
  });

  it('refuses what is no file', () => {
    const fd = createEventFd();
    files.push(fd);

    expect(() => newMemory().add(describeRegion(0, PAGE), fd)).toThrow(/not a file/);
  });

  it.each([
    ['the same', 0x1000, 0x1000],
    ['one byte from below', 0xfff, 0x3000],
    ['one byte from above', 0x1fff, 0x3000],
  ])('refuses a region that overlaps another: %s', (_, guestAddress, userOffset) => {
    const memory = memoryOf([0x1000, PAGE]);
    const region = describeRegion(guestAddress, PAGE, { userAddress: 0x6000_0000_0000 + userOffset });

    expect(() => memory.add(region, memfd(PAGE))).toThrow(/overlaps/);
  });

  it('takes a region right before and one right behind another', () => {
    const memory = memoryOf([0x2000, PAGE], [0x1000, PAGE], [0x3000, PAGE]);

    expect(memory.regions.map(({ start }) => start)).toEqual([0x1000, 0x2000, 0x3000]);
  });
});

describe('findExact', () => {
  it('wants address, size and user address to be the same, and not the offset', () => {
    const memory = memoryOf([0x1000, PAGE]);
    const same = describeRegion(0x1000, PAGE);

    expect(memory.findExact({ ...same, mmapOffset: 77 })?.start).toBe(0x1000);
    expect(memory.findExact({ ...same, size: PAGE - 1 })).toBeUndefined();
    expect(memory.findExact({ ...same, guestAddress: 0 })).toBeUndefined();
    expect(memory.findExact({ ...same, userAddress: 0 })).toBeUndefined();
  });
});

describe('adopt', () => {
  it('makes the same memory of what another shares', () => {
    const owner = newMemory();
    owner.add(describeRegion(0x10_0000, 2 * PAGE, { mmapOffset: 512 }), memfd(4 * PAGE));
    owner.add(describeRegion(0, PAGE), memfd(PAGE));
    const borrower = newMemory();

    borrower.adopt(structuredClone(owner.regions.map((region) => region.share())));
    borrower.copyIn(0x10_0ffe, bytesOf('shared'));
    owner.copyIn(7, bytesOf('too'));

    expect([readText(owner, 0x10_0ffe, 6), readText(borrower, 7, 3)]).toEqual(['shared', 'too']);
    expect(borrower.regions.map(({ start, end, userStart, hostDelta }) => [start, end, userStart, hostDelta])).toEqual(
      owner.regions.map(({ start, end, userStart, hostDelta }) => [start, end, userStart, hostDelta]),
    );
  });

  it('replaces what was there, and keeps what stays', () => {
    const owner = memoryOf([0, PAGE], [PAGE, PAGE], [2 * PAGE, PAGE]);
    const [a, b, c] = owner.regions.map((region) => region.share());
    const borrower = newMemory();
    if (a === undefined || b === undefined || c === undefined) throw new Error('three regions');
    borrower.adopt([a, b]);
    const kept = borrower.find(PAGE);

    borrower.adopt([b, c]);

    expect(borrower.regions.map(({ start }) => start)).toEqual([PAGE, 2 * PAGE]);
    expect(borrower.find(PAGE)).toBe(kept);
    borrower.adopt([{ ...b, description: { ...b.description, userAddress: 5 * PAGE } }]);
    expect(borrower.find(PAGE)).not.toBe(kept);
  });

  it('unmaps nothing when it lets go', () => {
    const before = countMappings();
    const owner = memoryOf([0, PAGE]);
    const borrower = newMemory();
    borrower.adopt(owner.regions.map((region) => region.share()));
    const region = borrower.find(0);

    borrower.clear();

    expect(() => region?.view(0, 1)).toThrow(RangeError);
    owner.copyIn(0, bytesOf('mine'));
    expect([readText(owner, 0, 4), countMappings()]).toEqual(['mine', before + 1]);
  });

  it.runIf(faultGuardAvailable)('shows the borrower too that pages are gone', () => {
    const fd = memfd(PAGE);
    const owner = newMemory();
    owner.add(describeRegion(0, PAGE), fd);
    const borrower = newMemory();
    borrower.adopt(owner.regions.map((region) => region.share()));
    truncate(fd, 0);

    expect(readText(borrower, 0, 1)).toBe('\0');

    expect([borrower.faulted, owner.faulted]).toEqual([true, true]);
  });
});

describe('the generation', () => {
  it('changes whenever a region comes or goes', () => {
    const memory = newMemory();
    const seen = [memory.generation];
    const region = memory.add(describeRegion(0, PAGE), memfd(PAGE));
    seen.push(memory.generation);
    memory.remove(region);
    seen.push(memory.generation);
    memory.adopt([]);
    seen.push(memory.generation);
    memory.clear();
    seen.push(memory.generation);

    expect(new Set(seen).size).toBe(5);
  });
});

describe('a user address', () => {
  it('is found in the region it is in, in whatever order they are there', () => {
    const memory = newMemory();
    memory.add(describeRegion(0, PAGE, { userAddress: 8 * PAGE }), memfd(PAGE));
    memory.add(describeRegion(4 * PAGE, PAGE, { userAddress: 2 * PAGE }), memfd(PAGE));
    memory.add(describeRegion(8 * PAGE, PAGE, { userAddress: 3 * PAGE }), memfd(PAGE));

    const starts = [2 * PAGE - 1, 2 * PAGE, 3 * PAGE - 1, 3 * PAGE, 4 * PAGE, 8 * PAGE, 9 * PAGE - 1, 9 * PAGE];

    expect(starts.map((address) => memory.findUser(address)?.start)).toEqual([
      undefined,
      4 * PAGE,
      4 * PAGE,
      8 * PAGE,
      undefined,
      0,
      0,
      undefined,
    ]);
    expect(memory.end).toBe(9 * PAGE);
  });
});
