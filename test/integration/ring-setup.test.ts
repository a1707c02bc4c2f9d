/**
 * Rings and memory described wrongly, in the wrong order, or changed under a started ring. What is well-formed but
 * cannot be is answered by a non-zero REPLY_ACK, and the connection lives on. Source: vhost-user, Ring states.
 */

import { describe, expect, it } from 'vitest';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  FEATURE,
  memoryTable,
  PROTOCOL,
  REQUEST,
  type RingAddresses,
  singleRegion,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';

const QUEUES = 4;
const daemon = hostileDaemon({ numQueues: QUEUES });

const withMemory = async (): Promise<RawFrontend> => {
  const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
  await frontend.shareMemory();
  return frontend;
};

/** A good read on a ring that is up. */
const expectServed = async (frontend: RawFrontend): Promise<void> => {
  expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
};

/** Configures ring 0 correctly and then again with these addresses; returns what the back end says to the start. */
const startAt = async (frontend: RawFrontend, change: (good: RingAddresses) => Partial<RingAddresses>) => {
  const ring = frontend.ring();
  await frontend.configureRing(ring);
  const good = ring.addresses();
  const told = await frontend.isRefused(REQUEST.SET_VRING_ADDR, vringAddress(0, { ...good, ...change(good) }));
  if (told !== 'ok') return told;
  return frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick]);
};

const END = 0x20_0000;

describe('a ring is refused', () => {
  it.each<[string, (good: RingAddresses, frontend: RawFrontend) => Partial<RingAddresses>]>([
    ['with a descriptor table not aligned to 16', (good) => ({ descriptor: Number(good.descriptor) + 8 })],
    ['with an available ring not aligned to 2', (good) => ({ available: Number(good.available) + 1 })],
    ['with a used ring not aligned to 4', (good) => ({ used: Number(good.used) + 2 })],
    ['with a descriptor table at 0', () => ({ descriptor: 0 })],
    ['with a used ring at 0', () => ({ used: 0 })],
    ['with an available ring at 0', () => ({ available: 0 })],
    ['with a guest address where a user address belongs', (_, { ram }) => ({ descriptor: ram.guest(0x1000) })],
    ['with a descriptor table over the end of the memory', (_, { ram }) => ({ descriptor: ram.user(END - 16) })],
    ['with an available ring over the end of the memory', (_, { ram }) => ({ available: ram.user(END - 4) })],
    [
      'with a used ring whose last bytes, avail_event, are outside',
      (_, { ram }) => ({ used: ram.user(END - 6 - 8 * 128 + 2) }),
    ],
    ['with a used ring right behind the memory', (_, { ram }) => ({ used: ram.user(END) })],
    ['with a descriptor table right before the memory', (_, { ram }) => ({ descriptor: ram.user(-16) })],
  ])('%s', async (_, change) => {
    const frontend = await withMemory();

    expect(await startAt(frontend, (good) => change(good, frontend))).toBe('nack');

    await frontend.startRing(frontend.ring());
    await expectServed(frontend);
  });

  it.each<[string, bigint]>([
    ['at 2^64 - 16', -16n],
    ['at 2^63', 2n ** 63n],
    ['at 2^53', 2n ** 53n],
  ])('with a descriptor table %s, by closing the connection', async (_, descriptor) => {
    const frontend = await withMemory();

    expect(await startAt(frontend, () => ({ descriptor }))).toBe('closed');
  });

  it('that straddles two regions which are adjacent for the front end', async () => {
    const frontend = await daemon().negotiate();
    const { ram } = frontend;
    const half = { ...ram.region(), size: 0x1400 };
    const rest = {
      guestAddress: ram.guest(0x1400),
      size: ram.length - 0x1400,
      userAddress: ram.user(0x1400),
      mmapOffset: 0x1400,
    };
    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([half, rest]), [ram.fd, ram.fd]);

    expect(await startAt(frontend, () => ({}))).toBe('nack');
  });

  it.each([0, 3, 100, 127, 65535, 65536, 32769, 0x8000_0000, 0xffff_ffff])('of %i entries', async (size) => {
    const frontend = await withMemory();

    expect(await frontend.isRefused(REQUEST.SET_VRING_NUM, vringState(0, size))).toBe('nack');

    await frontend.startRing(frontend.ring());
    await expectServed(frontend);
  });

  it.each([65536, 0xffff_ffff])('with a base of %i', async (base) => {
    const frontend = await withMemory();

    expect(await frontend.isRefused(REQUEST.SET_VRING_BASE, vringState(0, base))).toBe('nack');
  });

  it.each<[string, (frontend: RawFrontend) => Promise<unknown>]>([
    ['anything', async () => undefined],
    ['SET_MEM_TABLE', (f) => f.configureRing(f.ring())],
    [
      'SET_VRING_ADDR',
      async (f) => {
        await f.shareMemory();
        await f.require(REQUEST.SET_VRING_NUM, vringState(0, 128));
      },
    ],
    [
      'SET_VRING_NUM',
      async (f) => {
        await f.shareMemory();
        await f.require(REQUEST.SET_VRING_ADDR, vringAddress(0, f.ring().addresses()));
      },
    ],
  ])('that is started before %s', async (_, prepare) => {
    const frontend = await daemon().negotiate();
    await prepare(frontend);

    const told = await frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [frontend.ring().kick]);

    expect(told).toBe('nack');
    await frontend.shareMemory();
    await frontend.startRing(frontend.ring());
    await expectServed(frontend);
  });
});

describe('a ring number that the device does not have is refused', () => {
  it.each<[string, number, (index: number) => Uint8Array]>([
    ['SET_VRING_NUM', REQUEST.SET_VRING_NUM, (index) => vringState(index, 128)],
    ['SET_VRING_BASE', REQUEST.SET_VRING_BASE, (index) => vringState(index, 0)],
    ['SET_VRING_ENABLE', REQUEST.SET_VRING_ENABLE, (index) => vringState(index, 1)],
    [
      'SET_VRING_ADDR',
      REQUEST.SET_VRING_ADDR,
      (index) => vringAddress(index, { descriptor: 0, used: 0, available: 0 }),
    ],
  ])('by %s', async (_, id, payload) => {
    const frontend = await withMemory();

    for (const index of [QUEUES, 255, 256, 0x7fff_ffff, 0xffff_ffff]) {
      expect(await frontend.isRefused(id, payload(index))).toBe('nack');
    }
  });

  it.each([REQUEST.SET_VRING_KICK, REQUEST.SET_VRING_CALL, REQUEST.SET_VRING_ERR])(
    'by request %i with a descriptor',
    async (id) => {
      const frontend = await withMemory();

      for (const index of [QUEUES, 255]) {
        expect(await frontend.isRefused(id, vringFd(index), [frontend.ring().call])).toBe('nack');
      }
    },
  );

  it.each([QUEUES, 0xffff_ffff])('by GET_VRING_BASE of ring %i, which closes the connection', async (index) => {
    const frontend = await withMemory();

    await frontend.connection.send(REQUEST.GET_VRING_BASE, vringState(index, 0));

    await frontend.connection.waitForEnd();
  });

  it('and without need_reply it closes the connection', async () => {
    const frontend = await withMemory();

    await frontend.connection.send(REQUEST.SET_VRING_NUM, vringState(QUEUES, 128));

    await frontend.connection.waitForEnd();
  });
});

describe('a started ring', () => {
  it.each<[string, number, Uint8Array]>([
    ['size', REQUEST.SET_VRING_NUM, vringState(0, 64)],
    ['base', REQUEST.SET_VRING_BASE, vringState(0, 7)],
  ])('does not let its %s be changed, and goes on', async (_, id, payload) => {
    const frontend = await daemon().start();

    expect(await frontend.isRefused(id, payload)).toBe('nack');

    await expectServed(frontend);
  });

  it('that is disabled takes nothing, and what waited when it is enabled', async () => {
    const frontend = await daemon().start({ queues: 2, features: [FEATURE.MQ] });
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 0));
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 }, 0, 1);
    frontend.ring(0).publish(0);
    frontend.ring(0).signal();
    await doRequest(frontend, { type: TYPE.FLUSH, queue: 1 });
    expect(frontend.ring(0).usedIndex).toBe(0);

    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 1));

    expect(await frontend.ring(0).take()).toEqual([{ id: 0, length: 513 }]);
  });

  it.each([2, 0xffff_ffff])('is not enabled by %i', async (num) => {
    const frontend = await daemon().start();

    expect(await frontend.isRefused(REQUEST.SET_VRING_ENABLE, vringState(0, num))).toBe('nack');

    await expectServed(frontend);
  });

  it('stopped by GET_VRING_BASE takes nothing more, and goes on where it was when started again', async () => {
    const frontend = await daemon().start();
    await expectServed(frontend);
    const base = await frontend.stopRing(frontend.ring());
    expect(base).toBe(1);
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    frontend.ring().publish(0);
    frontend.ring().signal();
    expect(await frontend.stopRing(frontend.ring())).toBe(1);

    await frontend.startRing(frontend.ring(), base);
    frontend.ring().signal();

    expect(await frontend.ring().take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('whose descriptor table overlaps its used ring does not take the daemon down', async () => {
    const frontend = await withMemory();

    await startAt(frontend, (good) => ({ used: good.descriptor, available: good.descriptor }));
    frontend.ram.bytes.fill(0xa5, 0x1000, 0x2000);
    frontend.ring().signal();
  });

  it('that never gets features is served like one of a driver that accepted none', async () => {
    const frontend = daemon().connect();
    await frontend.connection.ask(REQUEST.GET_FEATURES);
    await frontend.shareMemory();
    await frontend.startRing(frontend.ring());
    await frontend.connection.send(REQUEST.SET_FEATURES, u64(0));

    await expectServed(frontend);
  });
});

describe('SET_VRING_ADDR on a started ring', () => {
  it('moves it: requests are taken from the new place', async () => {
    const frontend = await daemon().start();
    await expectServed(frontend);
    const { ram } = frontend;
    const old = frontend.ring();
    const moved = 0x10_0000 - old.table;
    ram.bytes.copyWithin(old.table + moved, old.table, old.end);
    const { descriptor, used, available } = old.addresses();
    const at = (address: number | bigint): number => Number(address) + moved;
    const addresses = { descriptor: at(descriptor), used: at(used), available: at(available) };

    await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(0, addresses));

    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    const usedIndex = (): number => ram.view.getUint16(old.used + moved + 2, true);
    ram.bytes.copyWithin(old.table + moved, old.table, old.avail);
    ram.view.setUint16(old.avail + moved + 2, 2, true);
    old.signal();
    await eventually('used index', usedIndex, (index) => index === 2);
    expect(old.usedIndex).toBe(1);
  });

  it('to a place that cannot be is refused; the ring is out of service until it gets a good one', async () => {
    const frontend = await daemon().start({ queues: 2, features: [FEATURE.MQ] });
    const ring = frontend.ring();
    const bad = { ...ring.addresses(), used: 0 };

    expect(await frontend.isRefused(REQUEST.SET_VRING_ADDR, vringAddress(0, bad))).toBe('nack');
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 }, 0, 1);
    ring.publish(0);
    ring.signal();
    await doRequest(frontend, { type: TYPE.FLUSH, queue: 1 });
    expect(ring.usedIndex).toBe(0);

    await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(0, ring.addresses()));
    expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
  });
});

describe('memory taken away from a started ring', () => {
  it('by REM_MEM_REG leaves the ring out of service until ADD_MEM_REG brings it back', async () => {
    const frontend = await daemon().start({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const region = frontend.ram.region();
    await expectServed(frontend);
    await frontend.require(REQUEST.REM_MEM_REG, singleRegion(region));
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    frontend.ring().publish(0);
    frontend.ring().signal();
    expect(await frontend.connection.ask(REQUEST.GET_MAX_MEM_SLOTS)).toBe(509n);
    expect(frontend.ring().usedIndex).toBe(1);

    await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(region), [frontend.ram.fd]);

    expect(await frontend.ring().take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('by REM_MEM_REG with a descriptor, which is closed, is taken away all the same', async () => {
    const frontend = await daemon().start({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });

    await frontend.require(REQUEST.REM_MEM_REG, singleRegion(frontend.ram.region()), [frontend.ram.fd]);
  });

  it('by a new SET_MEM_TABLE without it leaves the daemon and the connection alive', async () => {
    const frontend = await daemon().start();
    const other = daemon().keep(new GuestRam(0x10_0000, 0x8000_0000, 0x7c00_0000_0000));
    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([other.region()]), [other.fd]);
    frontend.ring().publish(0);
    frontend.ring().signal();
    await frontend.connection.ask(REQUEST.GET_FEATURES);
    expect(frontend.ring().usedIndex).toBe(0);
    frontend.ring().setAvailIndex(0);

    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([frontend.ram.region()]), [frontend.ram.fd]);

    await expectServed(frontend);
  });

  it('while requests are in flight is taken away when they are done', async () => {
    const frontend = await daemon().start({ protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
    const areas = Array.from({ length: 16 }, (_, i) =>
      prepareRequest(frontend, { type: TYPE.IN, sector: i * 128, inBytes: 65536 }, 3 * i, i),
    );
    frontend.ring().publish(...areas.map((_, i) => 3 * i));
    frontend.ring().signal();

    await frontend.require(REQUEST.REM_MEM_REG, singleRegion(frontend.ram.region()));

    // Each request was either finished or not begun.
    const done = frontend.ring().usedIndex;
    expect(areas.filter((area) => area.statusByte === STATUS.OK)).toHaveLength(done);
  });
});
