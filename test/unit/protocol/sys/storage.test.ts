import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { createSealedMemfd, OwnedFd, openFile, S_IFREG, S_IFSOCK, statFd } from '../../../../protocol/sys/owned-fd.ts';
import { O_RDONLY, O_RDWR, storageSize, tryLock } from '../../../../protocol/sys/storage.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';
import { createMemfd, truncate } from '../../../support/frontend/descriptors.ts';
import { createImage } from '../../../support/image.ts';

const cleanup = cleanupAfterEach();
let path: string;

beforeEach(() => {
  path = createImage(join(cleanup.directory(), 'file'), 12_345);
});

const open = (flags: number): OwnedFd => {
  const fd = openFile(path, flags);
  cleanup.add(() => fd.close());
  return fd;
};

describe('a lock of the whole file', () => {
  it('for writing excludes every other open of the file, in this process too', () => {
    expect(tryLock(open(O_RDWR).fd, true)).toBe(true);

    expect(tryLock(open(O_RDWR).fd, true)).toBe(false);
    expect(tryLock(open(O_RDONLY).fd, false)).toBe(false);
  });

  it('for reading excludes writers and no readers', () => {
    expect(tryLock(open(O_RDONLY).fd, false)).toBe(true);

    expect(tryLock(open(O_RDONLY).fd, false)).toBe(true);
    expect(tryLock(open(O_RDWR).fd, true)).toBe(false);
  });

  it('lasts until the last duplicate of its descriptor is closed', () => {
    const first = open(O_RDWR);
    tryLock(first.fd, true);
    const duplicate = first.duplicate();
    first.close();
    expect(tryLock(open(O_RDWR).fd, true)).toBe(false);

    duplicate.close();

    expect(tryLock(open(O_RDWR).fd, true)).toBe(true);
  });
});

describe('storageSize', () => {
  it('is the size of a file, as it is now', () => {
    const fd = open(O_RDWR);
    expect(storageSize(fd.fd)).toBe(12_345);

    truncate(fd, 2 ** 40 + 1);

    expect(storageSize(fd.fd)).toBe(2 ** 40 + 1);
  });
});

describe('statFd', () => {
  it('knows files and sockets, and the size of a memfd that nobody can see', () => {
    const [a, b] = UnixStream.pair();
    const memfd = createMemfd(777);
    for (const each of [a, b, memfd]) cleanup.add(() => each.close());

    expect(statFd(a.fd).type).toBe(S_IFSOCK);
    expect(statFd(memfd.fd)).toMatchObject({ type: S_IFREG, size: 777 });
  });

  it('of a descriptor that is not open throws EBADF', () => {
    expect(() => statFd(9999)).toThrow(/EBADF/);
  });
});

describe('a sealed memfd', () => {
  it('has its size for good', () => {
    const memfd = createSealedMemfd('sealed', 4096);
    cleanup.add(() => memfd.close());

    expect(() => truncate(memfd, 0)).toThrow(/EPERM/);
    expect(() => truncate(memfd, 8192)).toThrow(/EPERM/);
    expect(statFd(memfd.fd).size).toBe(4096);
  });
});

describe('an owned descriptor', () => {
  it('is closed once, and not the one that got its number later', () => {
    const first = open(O_RDONLY);
    const { fd } = first;
    first.close();
    const second = open(O_RDONLY);
    expect(second.fd).toBe(fd);

    first.close();

    expect(storageSize(second.fd)).toBe(12_345);
  });

  it('that was taken belongs to the taker', () => {
    const owned = open(O_RDONLY);
    const number = owned.take();

    owned.close();

    expect(owned.isOpen).toBe(false);
    expect(() => owned.fd).toThrow(/closed/);
    expect(readFileSync(number)).toHaveLength(12_345);
    new OwnedFd(number).close();
  });
});
