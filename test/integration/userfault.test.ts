/**
 * Guest memory whose pages come late, in a process of its own, which the deadline of a test can end while it waits. A
 * worker thread is the front end: it reads what is waited for and brings it, in one of the two ways there are.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { userFaultsAvailable } from '../../protocol/sys/userfault.ts';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { projectDirectory } from '../support/peers.ts';

const cleanup = cleanupAfterEach();
const modules = `file://${join(projectDirectory, 'dist/protocol')}`;
const possible = userFaultsAvailable();
if (!possible) process.stderr.write('skipped: userfaultfd: needs root, or sysctl vm.unprivileged_userfaultfd=1\n');

/**
 * Page p of the memory is filled with the byte p + 1. `served` counts how often each page was asked for. UFFDIO_COPY
 * (0xc028aa03) takes struct uffdio_copy: dst, src, len, mode, copy, u64 each; UFFDIO_WAKE (0x8010aa02) a uffdio_range.
 */
const FRONT_END = `
const { fd, uffd, base, length, served, state, how } = require('node:worker_threads').workerData;
(async () => {
  const { libc } = await import('${modules}/sys/libc.js');
  const { allocatePinned } = await import('${modules}/sys/pinned.js');
  const message = allocatePinned(32);
  const pollfd = allocatePinned(8);
  const argument = allocatePinned(40);
  const page = allocatePinned(8192);
  const source = page.address + 4096 - (page.address % 4096);
  const offset = source - page.address;
  const counts = new Int32Array(served);
  const flags = new Int32Array(state);
  pollfd.data.setInt32(0, uffd, true);
  pollfd.data.setInt16(4, 1, true);
  Atomics.store(flags, 0, 1);
  Atomics.notify(flags, 0);
  while (Atomics.load(flags, 1) === 0) {
    if (libc.poll(pollfd.address, 1, 20) !== 1) continue;
    if (libc.read(uffd, message.address, 32) !== 32 || message.data.getUint8(0) !== 0x12) continue;
    const address = Number(message.data.getBigUint64(16, true) & ~4095n);
    const at = address - base;
    counts[at / 4096] += 1;
    if (how === 'abandon') {
      const { abandonFaults, createEmptyFile } = await import('${modules}/sys/userfault.js');
      abandonFaults(uffd, createEmptyFile().fd, base, length);
      return;
    }
    page.bytes.fill(at / 4096 + 1, offset, offset + 4096);
    argument.bytes.fill(0);
    argument.setU64(0, address);
    if (how === 'copy') {
      argument.setU64(8, source);
      argument.setU64(16, 4096);
      if (libc.ioctl(uffd, 0xc028aa03, argument.address) !== 0) throw new Error('UFFDIO_COPY');
    } else {
      if (libc.pwrite(fd, source, 4096, at) !== 4096) throw new Error('pwrite');
      argument.setU64(8, 4096);
      if (libc.ioctl(uffd, 0x8010aa02, argument.address) !== 0) throw new Error('UFFDIO_WAKE');
    }
  }
})();
`;

const prologue = (how: string): string => `
import { Worker } from 'node:worker_threads';
import { deepStrictEqual } from 'node:assert';
import { openSync, readSync } from 'node:fs';
import { libc } from '${modules}/sys/libc.js';
import { OwnedFd } from '${modules}/sys/owned-fd.js';
import { UserFault } from '${modules}/sys/userfault.js';
import { GuestMemory } from '${modules}/memory/guest-memory.js';
import { Iotlb } from '${modules}/memory/iotlb.js';
import { RingPlace } from '${modules}/memory/ring-view.js';
import { IoUring, IORING_OP_READ, IORING_OP_WRITE } from '${modules}/sys/io-uring.js';
const PAGE = 4096;
const length = 16 * PAGE;
const memfd = () => {
  const fd = libc.memfd_create('late', 1);
  libc.ftruncate(fd, length);
  return fd;
};
const fd = memfd();
const memory = new GuestMemory();
const region = memory.add({ guestAddress: 0, size: length, userAddress: 0, mmapOffset: 0 }, new OwnedFd(fd));
memory.copyIn(15 * PAGE, Uint8Array.of(77));
const userFault = new UserFault();
userFault.register(region.mapping.address, length);
const served = new SharedArrayBuffer(64);
const state = new SharedArrayBuffer(8);
const flags = new Int32Array(state);
const uffd = userFault.fd.duplicate().take();
const worker = new Worker(${JSON.stringify(FRONT_END)}, {
  eval: true,
  execArgv: [],
  workerData: { fd, uffd, base: region.mapping.address, length, served, state, how: '${how}' },
});
await new Promise((resolve) => worker.once('online', resolve));
Atomics.wait(flags, 0, 0, 10_000);
const host = (page) => page * PAGE + region.hostDelta;
const bytesOf = (page) => new Uint8Array(region.view(page * PAGE, PAGE));
const end = async () => {
  Atomics.store(flags, 1, 1);
  await new Promise((resolve) => worker.once('exit', resolve));
  return [...new Int32Array(served)];
};
`;

const succeeds = async (how: string, body: string): Promise<void> => {
  const code = `${prologue(how)}\n${body}\nconsole.log('alive');`;
  const child = new Child(process.execPath, ['--input-type=module', '-e', code]);
  cleanup.add(() => child.stop());
  const { code: status, signal } = await child.waitForClose(20_000);
  expect(`${child.output()} ${status} ${signal}`).toMatch(/alive\s+0 null$/);
};

describe.runIf(possible)('memory registered with a userfaultfd', () => {
  it.each(['copy', 'wake'])('is waited for by JavaScript and by system calls (pages come by %s)', async (how) => {
    await succeeds(
      how,
      `
      const file = memfd();
      const read = bytesOf(1)[5];
      const added = Atomics.add(new Int32Array(region.view(2 * PAGE, 8)), 0, 1);
      const written = [
        libc.pwrite(file, host(3), PAGE, 0),
        libc.pwrite(file, host(4) + 100, PAGE, PAGE),
      ];
      const copied = [libc.read(file, host(6) + 1, 10)];
      const ring = new IoUring({ entries: 8, completionEntries: 16 });
      ring.registerFiles([file]);
      ring.prepare(IORING_OP_WRITE, 0, 2 * PAGE, host(7), PAGE, 0, 1);
      ring.prepare(IORING_OP_READ, 0, 0, host(8), 10, 0, 2);
      const results = [];
      const deadline = Date.now() + 5000;
      while (results.length < 2 && Date.now() < deadline) {
        ring.enter();
        while (ring.reap()) results.push([ring.completedId, ring.completedResult]);
        ring.endReap();
        await new Promise((resolve) => setImmediate(resolve));
      }
      ring.close();
      const view = Buffer.alloc(3 * PAGE);
      readSync(file, view, 0, 3 * PAGE, 0);
      deepStrictEqual([read, added], [2, 0x03030303]);
      deepStrictEqual(written, [PAGE, PAGE]);
      deepStrictEqual([view[0], view[PAGE], view[2 * PAGE - 1], view[2 * PAGE]], [4, 5, 6, 8]);
      deepStrictEqual(results.sort(), [[1, PAGE], [2, 10]]);
      deepStrictEqual(copied, [10]);
      deepStrictEqual([...bytesOf(6).subarray(0, 12)], [7, ...Array(10).fill(4), 7]);
      deepStrictEqual([bytesOf(8)[9], bytesOf(8)[10], bytesOf(15)[0]], [4, 9, 77]);
      deepStrictEqual(await end(), [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    `,
    );
  });

  it.each([
    ['JavaScript', 'bytesOf(9)[0]', '0'],
    ['a system call', 'libc.pwrite(memfd(), host(9), PAGE, 0)', '-1'],
    ['a system call that fills it', 'libc.read(openSync("/dev/zero"), host(9), PAGE)', '-1'],
  ])('is not there for %s that waits when the front end is given up', async (_, wait, result) => {
    await succeeds(
      'abandon',
      `
      deepStrictEqual(${wait}, ${result});
      deepStrictEqual([bytesOf(9)[0], memory.faulted], [0, true]);
      deepStrictEqual((await end())[9], 1);
    `,
    );
  });

  it('is ordinary memory again when it is unregistered', async () => {
    await succeeds(
      'copy',
      `
      userFault.unregister(region.mapping.address, length);
      userFault.close();
      deepStrictEqual([bytesOf(1)[0], bytesOf(15)[0]], [0, 77]);
      deepStrictEqual(await end(), Array(16).fill(0));
    `,
    );
  });

  it('is waited for before scattered pages of it are mapped a second time', async () => {
    await succeeds(
      'copy',
      `
      const iotlb = new Iotlb(memory);
      iotlb.update(0n, 4096n, 4n * 4096n, 3);
      iotlb.update(4096n, 4096n, 2n * 4096n, 3);
      const place = new RingPlace(memory, iotlb);
      const ring = new Uint8Array(place.view(0, 2 * PAGE, 16, 'ring'));
      deepStrictEqual([ring[0], ring[PAGE]], [5, 3]);
      place.retire();
      deepStrictEqual((await end()).slice(0, 6), [0, 0, 1, 0, 1, 0]);
    `,
    );
  });

  it('can be truncated like any other', async () => {
    await succeeds(
      'copy',
      `
      libc.ftruncate(fd, 0);
      deepStrictEqual([bytesOf(4)[0], memory.faulted], [0, true]);
      deepStrictEqual(await end(), Array(16).fill(0));
    `,
    );
  });
});
