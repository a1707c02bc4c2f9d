import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, describe, expect, it } from 'vitest';
import { faultGuardAvailable } from '../../../../protocol/sys/fault-guard.ts';
import { libc } from '../../../../protocol/sys/libc.ts';
import {
  BorrowedMapping,
  countMappings,
  MAX_VIEW_BYTES,
  type Mapping,
  SharedMapping,
  StitchedMapping,
} from '../../../../protocol/sys/mapping.ts';
import type { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { createMemfd, openPath, truncate } from '../../../support/frontend/descriptors.ts';
import { eventually } from '../../../support/frontend/process-probe.ts';

const PAGE = 4096;
const mappings: Mapping[] = [];
const files: OwnedFd[] = [];

const file = (length: number): OwnedFd => {
  const fd = createMemfd(length);
  files.push(fd);
  return fd;
};

const map = (fd: OwnedFd, offset: number, length: number): SharedMapping => {
  const mapping = new SharedMapping(fd.fd, offset, length);
  mappings.push(mapping);
  return mapping;
};

/** Lines of this process's memory map that name a test memfd. */
const mappedFiles = (): number =>
  readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('/memfd:test-ram')).length;

/** countMappings after a garbage collection. */
const countAfterCollection = (): number => {
  setFlagsFromString('--expose-gc');
  runInNewContext('gc')();
  return countMappings();
};

const isZero = (count: number): boolean => count === 0;

afterEach(() => {
  for (const mapping of mappings.splice(0)) mapping.retire();
  for (const fd of files.splice(0)) fd.close();
});

describe('a shared mapping', () => {
  it('shows the same bytes as another mapping of the same file, at its offset', () => {
    const fd = file(4 * PAGE);
    const whole = new Uint8Array(map(fd, 0, 4 * PAGE).view(0, 4 * PAGE));
    const tail = new Uint8Array(map(fd, 2 * PAGE, 2 * PAGE).view(PAGE, PAGE));

    whole[3 * PAGE + 7] = 42;

    expect(tail[7]).toBe(42);
  });

  it('works after its descriptor was closed', () => {
    const fd = file(PAGE);
    const mapping = map(fd, 0, PAGE);
    fd.close();

    const bytes = new Uint8Array(mapping.view(0, PAGE));
    bytes[0] = 1;

    expect(bytes[0]).toBe(1);
  });

  it.each([
    ['behind its end', 0, PAGE + 1],
    ['that starts behind its end', PAGE + 1, 0],
    ['at a negative offset', -1, 1],
    ['of which the last byte is outside', PAGE - 1, 2],
  ])('refuses a view %s', (_, offset, length) => {
    const mapping = map(file(PAGE), 0, PAGE);

    expect(() => mapping.view(offset, length)).toThrow(RangeError);
  });

  it('refuses a view longer than a view may be, though it lies inside', () => {
    const mapping = map(file(2 * MAX_VIEW_BYTES), 0, 2 * MAX_VIEW_BYTES);

    expect(() => mapping.view(0, MAX_VIEW_BYTES + 1)).toThrow(RangeError);
    expect(mapping.view(MAX_VIEW_BYTES, MAX_VIEW_BYTES).byteLength).toBe(MAX_VIEW_BYTES);
  });

  it('cannot be made of a descriptor that is read-only', () => {
    const before = countMappings();
    const fd = openPath(`/proc/self/fd/${file(PAGE).fd}`, 0);
    files.push(fd);

    expect(() => new SharedMapping(fd.fd, 0, PAGE)).toThrow(/EACCES/);
    expect(countMappings()).toBe(before);
  });

  it('of 128 GiB costs nothing but addresses', () => {
    const length = 128 * 2 ** 30;
    const mapping = map(file(length), 0, length);

    const last = new Uint8Array(mapping.view(length - PAGE, PAGE));
    last[PAGE - 1] = 9;

    expect(last[PAGE - 1]).toBe(9);
  });
});

describe('a retired mapping', () => {
  it('lets go of the file at once, while its views can still be touched', () => {
    const mapping = map(file(2 * PAGE), 0, 2 * PAGE);
    const bytes = new Uint8Array(mapping.view(0, 2 * PAGE));
    bytes[5] = 77;
    expect(mappedFiles()).toBe(1);

    mapping.retire();

    expect(mappedFiles()).toBe(0);
    expect(bytes[5]).toBe(0);
    bytes[PAGE] = 1;
    expect(bytes[PAGE]).toBe(1);
  });

  it('gives no more views, and can be retired twice', () => {
    const mapping = map(file(PAGE), 0, PAGE);
    mapping.retire();

    mapping.retire();

    expect(() => mapping.view(0, 1)).toThrow(RangeError);
  });

  it('without views gives its addresses back at once', () => {
    const before = countMappings();
    const mapping = map(file(PAGE), 0, PAGE);
    expect(countMappings()).toBe(before + 1);

    mapping.retire();

    expect(countMappings()).toBe(before);
  });

  it('with views gives its addresses back when they were collected', async () => {
    await eventually('mappings of earlier tests', countAfterCollection, isZero);
    (() => {
      const mapping = new SharedMapping(file(PAGE).fd, 0, PAGE);
      mapping.view(0, PAGE);
      mapping.view(0, 1);
      mapping.retire();
    })();
    expect(countMappings()).toBe(1);

    await eventually('mappings', countAfterCollection, isZero);
  });
});

describe.runIf(faultGuardAvailable)('a mapping whose file was truncated', () => {
  it('reads as zeros, takes writes, and says so', () => {
    const fd = file(4 * PAGE);
    const mapping = map(fd, 0, 4 * PAGE);
    const bytes = new Uint8Array(mapping.view(0, 4 * PAGE)).fill(0xff);
    truncate(fd, 0);
    expect(mapping.faulted).toBe(false);

    const value = bytes[PAGE];
    bytes[2 * PAGE] = 3;

    expect(value).toBe(0);
    expect(bytes[2 * PAGE]).toBe(3);
    expect(mapping.faulted).toBe(true);
  });

  it('faults in atomic accesses and in system calls of the runtime alike', () => {
    const fd = file(PAGE);
    const mapping = map(fd, 0, PAGE);
    const words = new Int32Array(mapping.view(0, PAGE));
    words[3] = 1;
    truncate(fd, 0);

    Atomics.add(words, 3, 5);

    expect(words[3]).toBe(5);
    expect(Buffer.compare(Buffer.from(words.buffer, 0, 8), Buffer.alloc(8))).toBe(0);
    expect(mapping.faulted).toBe(true);
  });

  it('leaves its neighbours alone, before and behind', () => {
    const [a, b, c] = [file(PAGE), file(PAGE), file(PAGE)];
    const around = [map(a, 0, PAGE), map(b, 0, PAGE), map(c, 0, PAGE)];
    const bytes = around.map((mapping) => new Uint8Array(mapping.view(0, PAGE)).fill(0x11));
    truncate(b, 0);

    const read = bytes.map((page) => page[100]);

    expect(read).toEqual([0x11, 0, 0x11]);
    expect(around.map((mapping) => mapping.faulted)).toEqual([false, true, false]);
  });

  it('that still has the page touched does not fault', () => {
    const fd = file(2 * PAGE);
    const mapping = map(fd, 0, 2 * PAGE);
    const bytes = new Uint8Array(mapping.view(0, 2 * PAGE)).fill(0x22);
    truncate(fd, PAGE);

    expect(bytes[PAGE - 1]).toBe(0x22);
    expect(mapping.faulted).toBe(false);
    expect(bytes[PAGE]).toBe(0);
    expect(mapping.faulted).toBe(true);
  });

  it('does not mark the mapping that takes its place', () => {
    const fd = file(PAGE);
    const first = map(fd, 0, PAGE);
    const bytes = new Uint8Array(first.view(0, PAGE));
    truncate(fd, 0);
    expect(bytes[0]).toBe(0);
    first.retire();

    const second = map(file(PAGE), 0, PAGE);

    expect(second.faulted).toBe(false);
  });
});

describe('when every guarded slot is taken', () => {
  it('a further mapping is refused and leaves nothing behind', () => {
    const fd = file(PAGE);
    const before = mappedFiles();
    const refused = (): void => {
      for (let i = 0; i < 2100; i += 1) map(fd, 0, PAGE);
    };

    expect(refused).toThrow(/shared mappings/);

    for (const mapping of mappings.splice(0)) mapping.retire();
    expect(mappedFiles()).toBe(before);
    expect(() => map(fd, 0, PAGE)).not.toThrow();
  });
});

describe('pages that are stitched together', () => {
  const stitch = (...pieces: { address: number; length: number }[]): StitchedMapping => {
    const stitched = new StitchedMapping(pieces);
    mappings.push(stitched);
    return stitched;
  };

  it('are the same memory at other addresses, in the order of the pieces', () => {
    const [a, b] = [map(file(4 * PAGE), 0, 4 * PAGE), map(file(PAGE), 0, PAGE)];
    const bytes = new Uint8Array(a.view(0, 4 * PAGE)).map((_, i) => Math.floor(i / PAGE) + 1);
    new Uint8Array(a.view(0, 4 * PAGE)).set(bytes);
    new Uint8Array(b.view(0, PAGE)).fill(9);

    const stitched = stitch(
      { address: a.address + 2 * PAGE, length: 2 * PAGE },
      { address: b.address, length: PAGE },
      { address: a.address, length: PAGE },
    );
    const view = new Uint8Array(stitched.view(0, 4 * PAGE));

    expect([0, 1, 2, 3].map((page) => view[page * PAGE])).toEqual([3, 4, 9, 1]);
    view[3 * PAGE + 1] = 55;
    expect(new Uint8Array(a.view(0, PAGE))[1]).toBe(55);
    expect(stitched.length).toBe(4 * PAGE);
  });

  it('cannot be private memory, and leave nothing behind then', () => {
    const before = countMappings();
    const shared = map(file(PAGE), 0, PAGE);
    const lines = mappedFiles();
    const anonymous = Number(libc.mmap(0, PAGE, 3, 0x22, -1, 0));

    expect(() => stitch({ address: shared.address, length: PAGE }, { address: anonymous, length: PAGE })).toThrow(
      /mremap 4096 bytes of shared memory: .*EINVAL/,
    );

    expect([mappedFiles(), countMappings()]).toEqual([lines, before + 1]);
    libc.munmap(anonymous, PAGE);
  });

  it('stay when the mapping they are from goes, and go when they are retired', () => {
    const from = map(file(2 * PAGE), 0, 2 * PAGE);
    new Uint8Array(from.view(0, 2 * PAGE)).fill(6);
    const stitched = stitch({ address: from.address + PAGE, length: PAGE }, { address: from.address, length: PAGE });
    from.retire();

    const view = new Uint8Array(stitched.view(0, 2 * PAGE));
    expect([view[0], view[PAGE]]).toEqual([6, 6]);
    stitched.retire();

    expect([mappedFiles(), view[0]]).toEqual([0, 0]);
  });
});

describe('a borrowed mapping', () => {
  it('shows the memory of its owner, within its bounds, until it is let go of', () => {
    const owner = map(file(2 * PAGE), 0, 2 * PAGE);
    const borrowed = new BorrowedMapping(structuredClone(owner.share()));
    new Uint8Array(borrowed.view(PAGE, PAGE))[3] = 8;

    expect([borrowed.address, borrowed.length]).toEqual([owner.address, owner.length]);
    expect(new Uint8Array(owner.view(0, 2 * PAGE))[PAGE + 3]).toBe(8);
    expect(() => borrowed.view(PAGE, PAGE + 1)).toThrow(RangeError);
    borrowed.retire();
    expect(() => borrowed.view(0, 1)).toThrow(RangeError);
    expect(new Uint8Array(owner.view(0, 2 * PAGE))[PAGE + 3]).toBe(8);
  });
});
