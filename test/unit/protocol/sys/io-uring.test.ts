import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { EBADF, EOPNOTSUPP } from '../../../../protocol/sys/errors.ts';
import {
  IORING_FSYNC_DATASYNC,
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_NOP,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IoUring,
} from '../../../../protocol/sys/io-uring.ts';
import type { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../../protocol/sys/pinned.ts';
import { watchReadable } from '../../../../protocol/sys/readiness.ts';
import { openPath } from '../../../support/frontend/descriptors.ts';
import { countOwnFds, eventually } from '../../../support/frontend/process-probe.ts';

const O_RDWR_CREAT = 2 | 0o100;

const ringIsPossible = (() => {
  try {
    new IoUring({ entries: 2, completionEntries: 4 }).close();
    return true;
  } catch (error) {
    process.stderr.write(`skipped: io_uring: ${String(error)}\n`);
    return false;
  }
})();

const buffer = allocatePinned(8192);
let directory: string;
let path: string;
let file: OwnedFd;
let ring: IoUring;

const entry = (op: number, id: number, offset = 0, length = 0, address = buffer.address, flags = 0): void =>
  ring.prepare(op, 0, offset, address, length, flags, id);

/** Enters and reaps until `count` completions were read. */
const complete = (count: number): Promise<Map<number, number>> => {
  const results = new Map<number, number>();
  const step = (): number => {
    ring.enter();
    while (ring.reap()) results.set(ring.completedId, ring.completedResult);
    ring.endReap();
    return results.size;
  };
  return eventually('completions', step, (size) => size >= count).then(() => results);
};

describe.runIf(ringIsPossible)('an io_uring', () => {
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'ringside-'));
    path = join(directory, 'file');
    file = openPath(path, O_RDWR_CREAT);
    ring = new IoUring({ entries: 8, completionEntries: 16 });
    ring.registerFiles([file.fd]);
  });

  afterEach(() => {
    ring.close();
    file.close();
    rmSync(directory, { recursive: true });
  });

  it('writes, syncs and reads back at an offset', async () => {
    buffer.bytes.fill(0x5a, 0, 4096);
    entry(IORING_OP_WRITE, 1, 8192, 4096);
    expect((await complete(1)).get(1)).toBe(4096);
    entry(IORING_OP_FSYNC, 2, 0, 0, 0, IORING_FSYNC_DATASYNC);
    expect((await complete(1)).get(2)).toBe(0);
    entry(IORING_OP_READ, 3, 8192, 4096, buffer.address + 4096);

    const results = await complete(1);

    expect(results.get(3)).toBe(4096);
    expect(buffer.bytes.subarray(4096, 8192)).toEqual(buffer.bytes.subarray(0, 4096));
    expect(readFileSync(path).subarray(8192)).toEqual(Buffer.alloc(4096, 0x5a));
  });

  it('reaches beyond 4 GiB', async () => {
    buffer.bytes.fill(0x77, 0, 512);
    const offset = 5 * 2 ** 30 + 512;
    entry(IORING_OP_WRITE, 1, offset, 512);
    await complete(1);
    entry(IORING_OP_READ, 2, offset, 512, buffer.address + 4096);

    expect((await complete(1)).get(2)).toBe(512);
    expect(buffer.bytes[4096]).toBe(0x77);
  });

  it('returns a short read at the end of the file, and 0 behind it', async () => {
    entry(IORING_OP_WRITE, 1, 0, 100);
    await complete(1);
    entry(IORING_OP_READ, 2, 0, 4096);
    entry(IORING_OP_READ, 3, 4096, 4096);

    expect(await complete(2)).toEqual(
      new Map([
        [2, 100],
        [3, 0],
      ]),
    );
  });

  it('returns errors as negative numbers, each to its request', async () => {
    const noSuchFile = 5;
    const noSuchMode = 0x7fff_ffff;
    ring.prepare(IORING_OP_READ, noSuchFile, 0, buffer.address, 16, 0, 8);
    entry(IORING_OP_FALLOCATE, 9, 0, noSuchMode, 4096);

    expect(await complete(2)).toEqual(
      new Map([
        [8, -EBADF],
        [9, -EOPNOTSUPP],
      ]),
    );
  });

  it('returns EFAULT for memory that is not there', async () => {
    entry(IORING_OP_WRITE, 1, 0, 4096);
    await complete(1);
    entry(IORING_OP_READ, 2, 0, 4096, 4096);

    expect((await complete(1)).get(2)).toBe(-14);
  });

  it('scatters by an iovec', async () => {
    buffer.bytes.set([1, 2, 3, 4]);
    entry(IORING_OP_WRITE, 1, 0, 4);
    await complete(1);
    const iovec = allocatePinned(32);
    iovec.setU64(0, buffer.address + 100);
    iovec.setU64(8, 1);
    iovec.setU64(16, buffer.address + 200);
    iovec.setU64(24, 3);
    entry(IORING_OP_READV, 2, 0, 2, iovec.address);

    expect((await complete(1)).get(2)).toBe(4);
    expect([buffer.bytes[100], ...buffer.bytes.subarray(200, 203)]).toEqual([1, 2, 3, 4]);
  });

  it('counts what was prepared and what is in flight', async () => {
    expect([ring.room, ring.pending, ring.inFlight]).toEqual([8, 0, 0]);
    for (let i = 0; i < 8; i += 1) entry(IORING_OP_NOP, i);
    expect([ring.room, ring.pending, ring.inFlight]).toEqual([0, 8, 8]);

    ring.enter();
    expect([ring.room, ring.pending, ring.inFlight]).toEqual([8, 0, 8]);

    expect((await complete(8)).size).toBe(8);
    expect(ring.inFlight).toBe(0);
  });

  it('goes round its queues many times without losing a completion', async () => {
    const seen: number[] = [];
    for (let round = 0; round < 1000; round += 1) {
      for (let i = 0; i < 5; i += 1) entry(IORING_OP_NOP, round * 5 + i);
      seen.push(...(await complete(5)).keys());
    }

    expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length: 5000 }, (_, i) => i));
  });

  it('keeps completions that overflow its completion queue', async () => {
    for (let round = 0; round < 5; round += 1) {
      for (let i = 0; i < 8; i += 1) entry(IORING_OP_NOP, round * 8 + i);
      ring.enter();
    }

    expect((await complete(40)).size).toBe(40);
  });

  it('becomes readable when a completion waits', async () => {
    const woken = new Promise<void>((resolve) => {
      const watch = watchReadable(ring.fd, () => {
        watch.close();
        resolve();
      });
    });
    entry(IORING_OP_FSYNC, 1, 0, 0, 0, 0);
    ring.enter();

    await woken;

    expect((await complete(1)).size).toBe(1);
  });

  it('leaves no descriptor behind', () => {
    const before = countOwnFds();

    new IoUring({ entries: 4, completionEntries: 8 }).close();

    expect(countOwnFds()).toBe(before);
  });

  it('is refused with sizes that cannot be', () => {
    const before = countOwnFds();

    expect(() => new IoUring({ entries: 0, completionEntries: 8 })).toThrow(/EINVAL/);
    expect(countOwnFds()).toBe(before);
  });
});
