import { afterEach, describe, expect, it } from 'vitest';
import { type LateExtent, LateExtents } from '../../../../backends/core/late-extents.ts';
import { createEmptyFile, UserFault, userFaultsAvailable } from '../../../../protocol/sys/userfault.ts';

const PAGE = 4096;
const open: { close(): void }[] = [];

afterEach(() => {
  for (const closable of open.splice(0)) closable.close();
});

const drained = (extents: LateExtents): LateExtent[] => {
  const all: LateExtent[] = [];
  extents.drain((extent) => all.push(extent));
  return all.sort((a, b) => a.address - b.address);
};

const extent = (page: number): LateExtent => ({ address: 0x7f00_0000_0000 + page * PAGE, length: PAGE });

describe('a list of mappings whose pages come late', () => {
  it('is the same for everybody who shares it', () => {
    const main = new LateExtents();
    const guardian = new LateExtents(main.shared);

    expect([0, 1, 2, 3].map((page) => main.add(extent(page)))).toEqual([true, true, true, true]);
    main.remove(extent(1).address);
    main.remove(extent(7).address);

    expect(drained(guardian)).toEqual([extent(0), extent(2), extent(3)]);
    expect(drained(main)).toEqual([]);
  });

  it('has room for as many as there are regions', () => {
    const extents = new LateExtents();
    const all = Array.from({ length: 509 }, (_, page) => extent(page));

    for (const each of all) extents.add(each);

    expect(drained(extents)).toEqual(all);
  });

  it('keeps those that could not be released, and can be used on', () => {
    const extents = new LateExtents();
    extents.add(extent(0));

    expect(() =>
      extents.drain(() => {
        throw new Error('no');
      }),
    ).toThrow('no');

    expect(drained(extents)).toEqual([extent(0)]);
  });

  it.runIf(userFaultsAvailable())('takes none any more after it was abandoned, and releases none', () => {
    const [empty, userFault] = [createEmptyFile(), new UserFault()];
    open.push(empty, userFault);
    const extents = new LateExtents();
    const other = new LateExtents(extents.shared);

    extents.abandon(userFault.fd.fd, empty.fd);
    extents.abandon(userFault.fd.fd, empty.fd);

    expect(other.add(extent(0))).toBe(false);
    expect(drained(other)).toEqual([]);
  });
});
