/**
 * Shared memory that is not what the front end says: of the wrong kind, too small, overlapping, or truncated after it
 * was mapped, which ends every back end that touches it unprepared by SIGBUS.
 */

import { describe, expect, it } from 'vitest';
import { SharedMapping } from '../../protocol/sys/mapping.ts';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { doRequest, prepareRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { createMemfd, createPipe, openPath, truncate } from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { inflight, memoryTable, PROTOCOL, type RawRegion, REQUEST, singleRegion } from '../support/frontend/wire.ts';

const PAGE = 4096;
const daemon = hostileDaemon();

const memfd = (length: number): OwnedFd => daemon().keep(createMemfd(length));

const at = (guestAddress: number | bigint, size: number | bigint, more: Partial<RawRegion> = {}): RawRegion => ({
  guestAddress,
  size,
  userAddress: typeof guestAddress === 'bigint' ? guestAddress : 0x7000_0000_0000 + guestAddress,
  mmapOffset: 0,
  ...more,
});

const expectServed = async (frontend: RawFrontend): Promise<void> => {
  expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
};

/** After a refusal on a connection the same front end can still do it right. */
const expectUsable = async (frontend: RawFrontend): Promise<void> => {
  await frontend.shareMemory();
  await frontend.startRing(frontend.ring());
  await expectServed(frontend);
};

describe('a region is refused', () => {
  it.each<[string, () => OwnedFd, RawRegion]>([
    ['of a file one byte too small', () => memfd(2 * PAGE - 1), at(0, 2 * PAGE)],
    ['of an empty file', () => memfd(0), at(0, PAGE)],
    ['whose offset and size pass the end of the file', () => memfd(2 * PAGE), at(0, 2 * PAGE, { mmapOffset: PAGE })],
    ['whose offset is behind the end of the file', () => memfd(PAGE), at(0, PAGE, { mmapOffset: 2 * PAGE })],
    ['of size 0', () => memfd(PAGE), at(0, 0)],
    ['of 2^52 bytes on a page', () => memfd(PAGE), at(0, 2 ** 52)],
    ['that passes 2^53 as a guest address', () => memfd(PAGE), at(2 ** 53 - PAGE, PAGE, { userAddress: 0 })],
    ['that passes 2^53 as a user address', () => memfd(PAGE), at(0, PAGE, { userAddress: 2 ** 53 - PAGE })],
    ['of an eventfd', () => daemon().keep(createEventFd()), at(0, PAGE)],
    [
      'of a pipe',
      () => {
        const [read, write] = createPipe();
        daemon().keep(read);
        return daemon().keep(write);
      },
      at(0, PAGE),
    ],
    [
      'of a socket',
      () => {
        const [a, b] = UnixStream.pair();
        daemon().keep(a);
        return daemon().keep(b.detach());
      },
      at(0, PAGE),
    ],
    ['of /dev/null', () => daemon().keep(openPath('/dev/null')), at(0, PAGE)],
    ['of /dev/zero', () => daemon().keep(openPath('/dev/zero')), at(0, PAGE)],
    ['of a directory', () => daemon().keep(openPath('/', 0o200000)), at(0, PAGE)],
    ['of a file that is open for reading only', () => daemon().keep(openPath('/etc/passwd', 0)), at(0, 16)],
  ])('%s', async (_, open, region) => {
    const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const fd = open();

    expect(await frontend.isRefused(REQUEST.SET_MEM_TABLE, memoryTable([region]), [fd])).toBe('nack');
    expect(await frontend.isRefused(REQUEST.ADD_MEM_REG, singleRegion(region), [fd])).toBe('nack');

    await expectUsable(frontend);
  });

  it.each<[string, RawRegion, RawRegion]>([
    ['as guest memory', at(0, 2 * PAGE), at(PAGE, PAGE, { userAddress: 0x7100_0000_0000 })],
    ['as user memory', at(0, 2 * PAGE), at(0x10_0000, PAGE, { userAddress: 0x7000_0000_0000 + PAGE })],
    ['almost altogether', at(0, PAGE), at(0, PAGE, { userAddress: 0x7000_0000_1000 })],
    ['because one holds the other', at(PAGE, PAGE), at(0, 3 * PAGE, { userAddress: 0x7200_0000_0000 })],
  ])('that overlaps another %s', async (_, first, second) => {
    const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const fd = memfd(4 * PAGE);

    expect(await frontend.isRefused(REQUEST.SET_MEM_TABLE, memoryTable([first, second]), [fd, fd])).toBe('nack');
    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([first]), [fd]);
    expect(await frontend.isRefused(REQUEST.ADD_MEM_REG, singleRegion(second), [fd])).toBe('nack');

    await expectUsable(frontend);
  });

  it('unless it is the same one again, as QEMU 7.2 says it for each pair of queues', async () => {
    const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const fd = memfd(4 * PAGE);
    const [first, second] = [at(0, PAGE), at(PAGE, PAGE)];
    for (const region of [first, second, first, second]) {
      await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(region), [fd]);
    }
    for (const region of [first, second, first, second]) {
      await frontend.require(REQUEST.REM_MEM_REG, singleRegion(region));
    }

    expect(await frontend.isRefused(REQUEST.REM_MEM_REG, singleRegion(at(2 * PAGE, PAGE)))).toBe('nack');
    await expectUsable(frontend);
  });

  it('that adds a 510th one, and REM_MEM_REG of one that is not there', async () => {
    const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const fd = memfd(PAGE);
    for (let i = 0; i < 509; i += 1)
      await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(at(i * PAGE, PAGE)), [fd]);

    expect(await frontend.isRefused(REQUEST.ADD_MEM_REG, singleRegion(at(509 * PAGE, PAGE)), [fd])).toBe('nack');
    expect(await frontend.isRefused(REQUEST.REM_MEM_REG, singleRegion(at(509 * PAGE, PAGE)))).toBe('nack');
    expect(await frontend.isRefused(REQUEST.REM_MEM_REG, singleRegion(at(0, 2 * PAGE)))).toBe('nack');
  });

  it('by closing the connection when an address is beyond 2^53', async () => {
    const frontend = await daemon().negotiate();

    expect(await frontend.isRefused(REQUEST.SET_MEM_TABLE, memoryTable([at(-4096n, 4096n)]), [memfd(PAGE)])).toBe(
      'closed',
    );
  });

  it('when five front ends together map more than the daemon guards', async () => {
    const fd = memfd(PAGE);
    const table = [1, 2, 3, 4, 5];
    let refused = 0;
    for (const _ of table) {
      const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
      for (let i = 0; i < 500 && refused === 0; i += 1) {
        const told = await frontend.isRefused(REQUEST.ADD_MEM_REG, singleRegion(at(i * PAGE, PAGE)), [fd]);
        if (told !== 'ok') refused += 1;
      }
    }

    expect(refused).toBe(1);
  });
});

describe('a region is taken', () => {
  it('that begins in the middle of a page of its file', async () => {
    const frontend = await daemon().negotiate();
    const { ram } = frontend;
    const region = {
      guestAddress: ram.guest(512),
      size: ram.length - 512,
      userAddress: ram.user(512),
      mmapOffset: 512,
    };
    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([region]), [ram.fd]);
    await frontend.startRing(frontend.ring());

    await expectServed(frontend);
  });

  it.each([4, 5.5, 100])('of %i GiB, with rings and requests at its end', async (gibibytes) => {
    const frontend = await daemon().start({ leadBytes: gibibytes * 2 ** 30 });

    await expectServed(frontend);
  });

  it('among 508 others, with rings and requests in it', async () => {
    const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const fd = memfd(PAGE);
    const others = Array.from({ length: 508 }, (_, i) => at(0x3000_0000 + i * 0x10_0000, PAGE));
    const clear = others.filter(({ guestAddress }) => {
      const offset = Number(guestAddress) - frontend.ram.guestAddress;
      return offset < 0 || offset >= frontend.ram.length;
    });
    for (const region of clear) await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(region), [fd]);
    await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(frontend.ram.region()), [frontend.ram.fd]);
    await frontend.startRing(frontend.ring());

    expect(clear.length).toBeGreaterThan(500);
    await expectServed(frontend);
  });

  it('twice from one file, with a request across both', async () => {
    const frontend = await daemon().negotiate();
    const { ram } = frontend;
    const middle = 0x10_0000;
    const regions = [
      { ...ram.region(), size: middle },
      { guestAddress: ram.guest(middle), size: ram.length - middle, userAddress: ram.user(middle), mmapOffset: middle },
    ];
    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable(regions), [ram.fd, ram.fd]);
    await frontend.startRing(frontend.ring());
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const across = { address: ram.guest(middle - 300), length: 4096, flags: WRITE };
    frontend.ring().setChain(0, [area.headerDescriptor(), across, area.statusDescriptor()]);

    const [used] = await frontend.ring().run(0);

    expect([used?.length, area.statusByte]).toEqual([4097, STATUS.OK]);
    const expected = await doRequest(frontend, { type: TYPE.IN, inBytes: 4096 });
    expect(ram.bytes.slice(middle - 300, middle - 300 + 4096)).toEqual(expected.data);
  });
});

describe('memory truncated after it was mapped', () => {
  const expectClosedAndServing = async (frontend: RawFrontend): Promise<void> => {
    await frontend.connection.waitForEnd();
    expect(daemon().backend.running).toBe(true);
    await daemon().backend.waitForLog(/taken away by the front end/);
  };

  it('closes its connection at the next kick; another one, connected all the while, is served', async () => {
    const bystander = await daemon().negotiate();
    const frontend = await daemon().start();
    await expectServed(frontend);
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    frontend.ring().publish(0);
    frontend.ram.truncate(0);

    frontend.ring().signal();

    await expectClosedAndServing(frontend);
    await expectUsable(bystander);
  });

  it.each([
    ['the rings', 0x1000],
    ['the requests but not the rings', 0x4000],
    ['the last page only', 0x1f_f000],
  ])('so that %s are gone does no harm', async (_, length) => {
    const frontend = await daemon().start();
    expect(frontend.dataStart).toBeLessThanOrEqual(0x4000);
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const end = { address: frontend.ram.guest(frontend.ram.length - 1), length: 1, flags: WRITE };
    frontend.ring().setChain(0, [area.headerDescriptor(), area.dataDescriptor(512, WRITE), end]);
    frontend.ring().publish(0);
    frontend.ram.truncate(length);

    frontend.ring().signal();

    await expectClosedAndServing(frontend);
  });

  it('while requests are in flight does no harm', async () => {
    const frontend = await daemon().start();
    const heads = Array.from({ length: 16 }, (_, i) => {
      prepareRequest(frontend, { type: TYPE.IN, sector: i * 128, inBytes: 65536 }, 3 * i, i);
      return 3 * i;
    });
    frontend.ring().publish(...heads);
    frontend.ring().signal();

    frontend.ram.truncate(0);
    frontend.ring().signal();

    await expectClosedAndServing(frontend);
  });

  it('where only the kernel touches it ends in an I/O error for that request', async () => {
    const frontend = await daemon().start();
    const far = 0x18_0000;
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const data = { address: frontend.ram.guest(far), length: 65536, flags: WRITE };
    frontend.ring().setChain(0, [area.headerDescriptor(), data, area.statusDescriptor()]);
    frontend.ram.truncate(far);

    const [used] = await frontend.ring().run(0);

    expect(used?.id).toBe(0);
    expect(area.statusByte).toBe(STATUS.IOERR);
  });

  it('before a ring is started on it is survived', async () => {
    const frontend = await daemon().negotiate();
    await frontend.shareMemory();
    frontend.ram.truncate(0);

    const outcome = await frontend.startRing(frontend.ring()).then(
      () => 'started',
      () => 'refused',
    );

    if (outcome === 'started') frontend.ring().signal();
    expect(['started', 'refused']).toContain(outcome);
  });

  it('and grown again is zero for everybody', async () => {
    const frontend = await daemon().start();
    await expectServed(frontend);
    frontend.ram.truncate(0);
    frontend.ram.truncate(frontend.ram.length);

    frontend.ring().signal();

    await frontend.connection.ask(REQUEST.GET_FEATURES);
  });
});

describe('an in-flight region', () => {
  const AREA = { mmapSize: PAGE, mmapOffset: 0, numQueues: 1, queueSize: 128 };
  const negotiate = (): Promise<RawFrontend> => daemon().negotiate({ protocolFeatures: [PROTOCOL.INFLIGHT_SHMFD] });

  it.each<[string, typeof AREA]>([
    ['of no queue', { ...AREA, numQueues: 0 }],
    ['of more queues than the device has', { ...AREA, numQueues: 65535 }],
    ['of queues without entries', { ...AREA, queueSize: 0 }],
    ['of queues of 65535 entries', { ...AREA, queueSize: 65535 }],
  ])('%s is neither made nor taken', async (_, area) => {
    const frontend = await negotiate();

    expect(await frontend.isRefused(REQUEST.SET_INFLIGHT_FD, inflight(area), [memfd(16 * PAGE)])).toBe('nack');
    await frontend.connection.send(REQUEST.GET_INFLIGHT_FD, inflight(area));

    await frontend.connection.waitForEnd();
  });

  it('of queues of 100 entries, as packed rings may have, is not taken for split ones', async () => {
    const frontend = await negotiate();

    const area = inflight({ ...AREA, queueSize: 100 });
    expect(await frontend.isRefused(REQUEST.SET_INFLIGHT_FD, area, [memfd(16 * PAGE)])).toBe('nack');
  });

  it.each<[string, typeof AREA, () => OwnedFd]>([
    ['too small for its queues', { ...AREA, mmapSize: 2048 }, () => memfd(PAGE)],
    ['on a file smaller than it says', AREA, () => memfd(1024)],
    ['behind the end of its file', { ...AREA, mmapOffset: PAGE }, () => memfd(PAGE)],
    ['at an offset in the middle of a page', { ...AREA, mmapOffset: 64 }, () => memfd(2 * PAGE)],
    ['on an eventfd', AREA, () => daemon().keep(createEventFd())],
    ['on /dev/null', AREA, () => daemon().keep(openPath('/dev/null'))],
  ])('%s is refused', async (_, area, open) => {
    const frontend = await negotiate();

    expect(await frontend.isRefused(REQUEST.SET_INFLIGHT_FD, inflight(area), [open()])).toBe('nack');

    await expectUsable(frontend);
  });

  it('for smaller rings than the one that is started is not used for it, and the log says so', async () => {
    const frontend = await negotiate();
    const fd = memfd(PAGE);
    const region = inflight({ ...AREA, mmapSize: 1088, queueSize: 64 });
    await frontend.require(REQUEST.SET_INFLIGHT_FD, region, [fd]);

    await expectUsable(frontend);

    await daemon().backend.waitForLog(/in-flight region/);
  });

  it('full of garbage does not take the daemon down', async () => {
    const frontend = await negotiate();
    const fd = memfd(PAGE);
    const garbage = new SharedMapping(fd.fd, 0, PAGE);
    daemon().keep({ close: () => garbage.retire() });
    new Uint8Array(garbage.view(0, PAGE)).fill(0xff);
    const header = new DataView(garbage.view(0, 16));
    header.setUint16(8, 1, true);
    header.setUint16(10, 128, true);
    await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(AREA), [fd]);
    await frontend.shareMemory();
    // Every descriptor is said to be in flight, and the ring is full of zeros: 128 chains without a status byte.
    await frontend.startRing(frontend.ring());

    await eventually(
      'used index',
      () => frontend.ring().usedIndex,
      (index) => index === 128,
    );
  });

  it('truncated after it was taken ends the connection and not the daemon', async () => {
    const frontend = await negotiate();
    const fd = memfd(PAGE);
    await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(AREA), [fd]);
    await expectUsable(frontend);
    truncate(fd, 0);

    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    frontend.ring().publish(0);
    frontend.ring().signal();

    await frontend.connection.waitForEnd();
  });
});
