/**
 * A guest that goes on before its memory has come, with a front end that brings each page when it is asked for, late, in
 * another order than the protocol's, or never. Source: vhost-user, Postcopy; Linux, userfaultfd.rst.
 */

import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { userFaultsAvailable } from '../../protocol/sys/userfault.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { type How, LateMemory } from '../support/frontend/late-memory.ts';
import {
  acknowledge,
  addRegion,
  advise,
  end,
  listen,
  POSTCOPY,
  POSTCOPY_SLOTS,
  setTable,
  shareLate,
} from '../support/frontend/postcopy-frontend.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { type FrontendOptions, RawFrontend } from '../support/frontend/raw-frontend.ts';
import { hasBit, PROTOCOL, REQUEST, singleRegion, u64, vringFd } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const PAGE = 4096;
const BLOCK = 4096;

const possible = userFaultsAvailable();
if (!possible) process.stderr.write('skipped: userfaultfd: needs root, or sysctl vm.unprivileged_userfaultfd=1\n');

const pageOf = (offset: number): number => Math.floor(offset / PAGE);

/** Waits until the back end has returned that many requests; touches no page. */
const returned = (frontend: RawFrontend, late: LateMemory, count: number): Promise<number> =>
  eventually(
    'the used index',
    () => late.u16(frontend.ring().used + 2),
    (index) => index === count,
  );

/** Lays out a write of `data` to block `block` in slot `slot`, without making it available. */
const write = (frontend: RawFrontend, block: number, data: Uint8Array, slot = 0): RequestArea =>
  prepareRequest(frontend, { type: TYPE.OUT, sector: (block * BLOCK) / 512, out: data }, 4 * slot, slot);

describe.runIf(possible)('memory that comes late', () => {
  const cleanup = cleanupAfterEach();

  const start = async (options: FrontendOptions, extra: readonly string[] = []) => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
    const backend = await BlkBackend.start(cleanup, { image, extra });
    const frontend = RawFrontend.connect(backend.socket, options);
    cleanup.add(() => frontend.close());
    await frontend.negotiate();
    return { image, backend, frontend };
  };

  const empty = (frontend: RawFrontend, how: How = 'wake'): LateMemory => {
    const late = new LateMemory(frontend.ram, how);
    cleanup.add(() => late.close());
    return late;
  };

  it.each<[How, string, readonly string[]]>([
    ['wake', 'by default', []],
    ['copy', 'by default', []],
    ['wake', 'by the thread pool', ['--engine=threads']],
    ['wake', 'by worker threads', ['--threads=2']],
  ])('is waited for by rings and requests (%s, served %s)', async (how, _, extra) => {
    const { image, backend, frontend } = await start(POSTCOPY, extra);
    const data = randomBytes(2 * BLOCK);
    const out = write(frontend, 3, data);
    const inwards = prepareRequest(frontend, { type: TYPE.IN, sector: 8, inBytes: BLOCK }, 4, 1);
    frontend.ring().publish(0, 4);
    const late = empty(frontend, how);

    await shareLate(frontend, late);
    await frontend.startRing(frontend.ring());
    frontend.ring().signal();
    await returned(frontend, late, 2);

    const content = readFileSync(image);
    expect(content.subarray(3 * BLOCK, 5 * BLOCK)).toEqual(data);
    expect(frontend.ram.bytes.slice(inwards.data, inwards.data + BLOCK)).toEqual(
      new Uint8Array(content.subarray(BLOCK, 2 * BLOCK)),
    );
    expect([out.statusByte, inwards.statusByte]).toEqual([STATUS.OK, STATUS.OK]);
    const touched = [
      frontend.ring().table,
      frontend.ring().avail,
      out.header,
      out.data,
      out.data + BLOCK,
      inwards.data,
    ];
    expect(late.asked).toEqual(expect.arrayContaining(touched.map(pageOf)));

    late.bringRest();
    expect(await end(frontend)).toBe(0n);
    late.close();
    // Ordinary memory from here on.
    write(frontend, 5, data, 0);
    frontend.ring().publish(0);
    frontend.ring().signal();
    await returned(frontend, late, 3);
    expect(readFileSync(image).subarray(5 * BLOCK, 7 * BLOCK)).toEqual(data);
    frontend.close();
    expect(await backend.sigterm()).toEqual({ code: 0, signal: null });
  });

  it('comes region by region, changes while a ring is served, and is acknowledged as QEMU does it', async () => {
    const { image, frontend } = await start(POSTCOPY_SLOTS);
    const { ram } = frontend;
    const data = randomBytes(BLOCK);
    write(frontend, 0, data);
    frontend.ring().publish(0);
    const late = empty(frontend);
    const middle = 0x10_0000;
    const low = { ...ram.region(), size: middle };
    const high = { guestAddress: ram.guest(middle), size: middle, userAddress: ram.user(middle), mmapOffset: middle };
    await advise(frontend, late);
    await listen(frontend);

    late.base = await addRegion(frontend, low);
    const highBase = await addRegion(frontend, high);
    await acknowledge(frontend, REQUEST.ADD_MEM_REG);
    await frontend.startRing(frontend.ring());
    frontend.ring().signal();
    await returned(frontend, late, 1);
    // Once more for another pair of queues, and nothing changed.
    expect(await addRegion(frontend, high)).toBe(highBase);
    await acknowledge(frontend, REQUEST.ADD_MEM_REG);
    await acknowledge(frontend, 0);
    await frontend.require(REQUEST.REM_MEM_REG, singleRegion(high));
    await acknowledge(frontend, REQUEST.REM_MEM_REG);
    await addRegion(frontend, high);
    await acknowledge(frontend, REQUEST.ADD_MEM_REG);
    write(frontend, 1, data);
    frontend.ring().publish(0);
    frontend.ring().signal();
    await returned(frontend, late, 2);

    const content = readFileSync(image);
    expect([content.subarray(0, BLOCK), content.subarray(BLOCK, 2 * BLOCK)]).toEqual([data, data]);
    expect(await end(frontend)).toBe(0n);
    // For the other pair.
    expect(await end(frontend)).toBe(0n);
  });

  it('has no page touched before the front end has acknowledged where it is', async () => {
    const { frontend } = await start({ ...POSTCOPY });
    write(frontend, 0, randomBytes(BLOCK));
    frontend.ring().publish(0);
    const late = empty(frontend);
    await advise(frontend, late);
    await listen(frontend);
    [late.base = 0] = await setTable(frontend);

    await frontend.configureRing(frontend.ring());
    expect(await frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [frontend.ring().kick])).toBe('nack');
    expect(late.asked).toEqual([]);

    await acknowledge(frontend);
    await frontend.startRing(frontend.ring());
    frontend.ring().signal();
    await returned(frontend, late, 1);
  });

  it.each([
    ['by a ring', 1, 'all', []],
    ['by a ring of a worker thread', 1, 'all', ['--threads=2']],
    ['by a write', 1, 'data', []],
    ['by a write of a worker thread', 1, 'data', ['--threads=2']],
    ['by a write of the thread pool', 1, 'data', ['--engine=threads']],
    ['by a header, when a write was prepared', 8, 'data', []],
    ['by a header, when the thread pool waits for another page', 8, 'data', ['--engine=threads']],
  ])(
    'is given up when the front end dies while it is waited for %s: the disk stays as it is',
    async (_, count, what, extra) => {
      const { image, backend, frontend } = await start(POSTCOPY, extra);
      const before = readFileSync(image);
      const areas = Array.from({ length: count }, (_, slot) => write(frontend, 8 * slot, randomBytes(8 * BLOCK), slot));
      frontend.ring().publish(...areas.map((_, slot) => 4 * slot));
      const [first, last] = [areas[0] as RequestArea, areas[count - 1] as RequestArea];
      const late =
        what === 'all'
          ? empty(frontend)
          : new LateMemory(frontend.ram, 'wake', first.data + BLOCK, last.data + 8 * BLOCK);
      cleanup.add(() => late.close());
      await shareLate(frontend, late);
      late.hold();
      await frontend.configureRing(frontend.ring());
      await frontend.connection.send(REQUEST.SET_VRING_KICK, vringFd(0), [frontend.ring().kick]);
      await frontend.connection.send(REQUEST.SET_VRING_ENABLE, new Uint8Array([0, 0, 0, 0, 1, 0, 0, 0]));
      frontend.ring().signal();
      await eventually(
        'pages that are waited for',
        () => late.waiting.length,
        (count) => count > 0,
      );

      frontend.close();
      late.close();

      // It stops in order: nothing is in flight any more.
      expect(await backend.sigterm()).toEqual({ code: 0, signal: null });
      const after = readFileSync(image);
      const changed = [];
      for (let at = 0; at < after.length; at += PAGE) {
        if (Buffer.compare(after.subarray(at, at + PAGE), before.subarray(at, at + PAGE)) !== 0)
          changed.push(at / PAGE);
      }
      // What had come may have been written; nothing else, and no zeros.
      expect(changed.filter((page) => page !== 0)).toEqual([]);
    },
  );

  it('is given up when the daemon is to stop', async () => {
    const { backend, frontend } = await start(POSTCOPY, ['--engine=threads']);
    const area = write(frontend, 0, randomBytes(BLOCK));
    frontend.ring().publish(0);
    const late = new LateMemory(frontend.ram, 'wake', area.data, area.data + BLOCK);
    cleanup.add(() => late.close());
    await shareLate(frontend, late);
    late.hold();
    await frontend.startRing(frontend.ring());
    frontend.ring().signal();
    await eventually(
      'pages that are waited for',
      () => late.waiting.length,
      (count) => count > 0,
    );

    expect(await backend.sigterm()).toEqual({ code: 0, signal: null });
    expect(frontend.connection.ended).toBe(true);
  });

  it('is offered by a daemon that may have a userfaultfd', async () => {
    const { frontend } = await start({});

    expect(hasBit(frontend.offeredProtocol, PROTOCOL.PAGEFAULT)).toBe(true);
  });
});

describe.runIf(possible)('messages of postcopy', () => {
  const daemon = hostileDaemon();

  const negotiate = async (): Promise<{ frontend: RawFrontend; late: LateMemory }> => {
    const frontend = await daemon().negotiate(POSTCOPY_SLOTS);
    return { frontend, late: daemon().keep(new LateMemory(frontend.ram)) };
  };

  it('that were not negotiated are refused', async () => {
    const frontend = await daemon().negotiate();

    expect(await frontend.isRefused(REQUEST.POSTCOPY_ADVISE)).toBe('closed');
  });

  it.each([
    ['LISTEN without ADVISE', REQUEST.POSTCOPY_LISTEN, 'nack'],
    ['END without ADVISE', REQUEST.POSTCOPY_END, 'closed'],
  ])('%s is refused', async (_, id, answer) => {
    const { frontend } = await negotiate();

    expect(await frontend.isRefused(id)).toBe(answer);
  });

  it('LISTEN when there is memory is refused, and the memory is as it was', async () => {
    const { frontend, late } = await negotiate();
    await frontend.shareMemory();
    await advise(frontend, late);

    expect(await frontend.isRefused(REQUEST.POSTCOPY_LISTEN)).toBe('nack');

    await frontend.shareMemory();
  });

  it('END without LISTEN ends it, and it can begin again', async () => {
    const { frontend, late } = await negotiate();
    await advise(frontend, late);

    expect(await end(frontend)).toBe(0n);
    late.close();
    await shareLate(frontend, late);
  });

  it('ADVISE and LISTEN twice are answered twice, and pages are asked for at the last userfaultfd', async () => {
    const { frontend, late } = await negotiate();
    const other = daemon().keep(new LateMemory(frontend.ram));
    await advise(frontend, other);
    await advise(frontend, late);
    await listen(frontend);
    await listen(frontend);
    [late.base = 0] = await setTable(frontend);
    await acknowledge(frontend);

    await frontend.startRing(frontend.ring());
    expect(late.asked.length).toBeGreaterThan(0);
    expect(other.asked).toEqual([]);
  });

  it('ADVISE while listening closes the connection', async () => {
    const { frontend, late } = await negotiate();
    await advise(frontend, late);
    await listen(frontend);

    expect(await frontend.isRefused(REQUEST.POSTCOPY_ADVISE)).toBe('closed');
  });

  it('END before the acknowledgement closes the connection', async () => {
    const { frontend, late } = await negotiate();
    await advise(frontend, late);
    await listen(frontend);
    await setTable(frontend);

    expect(await frontend.isRefused(REQUEST.POSTCOPY_END)).toBe('closed');
  });

  it('an acknowledgement that is not 0 closes the connection', async () => {
    const { frontend, late } = await negotiate();
    await advise(frontend, late);
    await listen(frontend);
    await setTable(frontend);

    await acknowledge(frontend, REQUEST.SET_MEM_TABLE, 1);

    await frontend.connection.waitForEnd();
  });

  it('an acknowledgement that nobody waits for is an empty table, or no message at all', async () => {
    const { frontend } = await negotiate();
    await frontend.shareMemory();

    await frontend.require(REQUEST.SET_MEM_TABLE, u64(0));
    expect(await frontend.isRefused(REQUEST.ADD_MEM_REG, u64(0))).toBe('closed');
  });

  it('another table before the acknowledgement of the first is answered, too', async () => {
    const { frontend, late } = await negotiate();
    await advise(frontend, late);
    await listen(frontend);
    await setTable(frontend);
    [late.base = 0] = await setTable(frontend);
    await acknowledge(frontend);

    await frontend.startRing(frontend.ring());
  });

  it('all at once, and then gone: nobody waits for pages', async () => {
    const { frontend } = await negotiate();
    const ring = frontend.ring();
    await frontend.configureRing(ring);
    const { connection } = frontend;
    await connection.send(REQUEST.POSTCOPY_ADVISE);
    await connection.send(REQUEST.POSTCOPY_LISTEN);
    await connection.send(REQUEST.ADD_MEM_REG, singleRegion(frontend.ram.region()), [frontend.ram.fd]);
    await acknowledge(frontend, REQUEST.ADD_MEM_REG);
    await connection.send(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick]);
    frontend.close();
  });

  it.each([1, 2, 3, 4, 5, 6])('%i of them, and then gone', async (count) => {
    const { frontend, late } = await negotiate();
    const steps = [
      () => advise(frontend, late),
      () => listen(frontend),
      async () => {
        [late.base = 0] = await setTable(frontend);
      },
      () => acknowledge(frontend),
      () => frontend.startRing(frontend.ring()),
      () => frontend.connection.send(REQUEST.POSTCOPY_END),
    ];
    for (const step of steps.slice(0, count)) await step();
  });
});
