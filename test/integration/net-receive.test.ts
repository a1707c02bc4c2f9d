/**
 * Packets that the host sends, and the buffers that a driver offers for them, in every shape. A buffer that can hold
 * nothing goes back with used length 0, and the ring goes on.
 * Source: VIRTIO 1.3, 5.1.6.3 Setting Up Receive Buffers, 5.1.6.4 Processing of Incoming Packets.
 */

import { describe, expect, it } from 'vitest';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver } from '../support/frontend/net-driver.ts';
import { expectSame } from '../support/frontend/net-expect.ts';
import { NET_FEATURE, testFrame } from '../support/frontend/net-wire.ts';
import { INDIRECT, NEXT, WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE, memoryTable, REQUEST } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const SIZE = 128;
const HEADER = 12;
const MERGEABLE = [NET_FEATURE.MRG_RXBUF, FEATURE.INDIRECT_DESC];
const SINGLE = [FEATURE.INDIRECT_DESC];
describeWithPeers(namespacePeers, 'receiving', () => {
  const daemon = hostileNetDaemon({ before: 'ip tuntap add tap0 mode tap; ip link set tap0 mtu 65521' });

  const start = (features: readonly number[]): Promise<NetDriver> => daemon().start({ features, queueSize: SIZE });

  const sendAll = (...frames: Uint8Array[]): void => {
    for (const frame of frames) expect(daemon().host.send(frame)).toBe(true);
  };

  /** Everything that was sent to the device so far was seen by it: a packet went through it the other way, after that. */
  const settle = async (driver: NetDriver): Promise<void> => {
    await driver.sendFrame(testFrame(0xffff, 60));
    await daemon().host.receive(1);
  };

  /** Makes a buffer at descriptor 0 that can hold no packet. */
  type Layout = (driver: NetDriver) => void;

  const behind = ({ frontend: { ram } }: NetDriver): number => ram.guest(ram.length);
  const inside = (driver: NetDriver): number => driver.frontend.ram.guest(driver.allocate(4096));

  const chain =
    (...pieces: [flags: number, length: number, at?: (driver: NetDriver) => number | bigint][]): Layout =>
    (driver) =>
      driver.rx().setChain(
        0,
        pieces.map(([flags, length, at]) => ({ address: (at ?? inside)(driver), length, flags })),
      );

  const indirect = (
    driver: NetDriver,
    lies: { length?: number; address?: number; flags?: number; next?: number },
  ): void => {
    const table = driver.allocate(64, 16);
    driver.rx().setChain(0, [{ address: inside(driver), length: 2048, flags: WRITE }], table);
    const address = driver.frontend.ram.guest(table);
    driver.rx().setDescriptor(0, { address, length: 16, flags: INDIRECT, ...lies });
  };

  const USELESS: [string, Layout][] = [
    ['of one byte', chain([WRITE, 1])],
    ['of 11 bytes, less than a header', chain([WRITE, HEADER - 1])],
    ['of 11 bytes in three pieces', chain([WRITE, 5], [WRITE, 0], [WRITE, 6])],
    ['without a byte', chain([WRITE, 0])],
    ['that is readable', chain([0, 2048])],
    ['with a readable header', chain([0, HEADER], [WRITE, 2048])],
    ['with something readable behind it', chain([WRITE, 2048], [0, 1])],
    ['at address 0', chain([WRITE, 2048, () => 0])],
    ['right behind the memory', chain([WRITE, 2048, behind])],
    ['that leaves the memory', chain([WRITE, 2048, (driver) => behind(driver) - 2047])],
    ['at 2^64 - 1024, which wraps', chain([WRITE, 2048, () => -1024n])],
    ['whose header is there and whose rest is not', chain([WRITE, HEADER], [WRITE, 2048, behind])],
    ['of two times 2 GiB', chain([WRITE, 0x8000_0000], [WRITE, 0x8000_0000])],
    [
      'that points at itself',
      (driver) => driver.rx().setDescriptor(0, { address: inside(driver), length: 64, flags: WRITE | NEXT, next: 0 }),
    ],
    [
      'with next equal to the queue size',
      (driver) =>
        driver.rx().setDescriptor(0, { address: inside(driver), length: 64, flags: WRITE | NEXT, next: SIZE }),
    ],
    ['with an indirect table of length 0', (driver) => indirect(driver, { length: 0 })],
    ['with an indirect table of length 17', (driver) => indirect(driver, { length: 17 })],
    ['with an indirect table behind the memory', (driver) => indirect(driver, { address: behind(driver) })],
    ['with INDIRECT and NEXT together', (driver) => indirect(driver, { flags: INDIRECT | NEXT, next: 1 })],
  ];

  describe.each([
    ['mergeable', MERGEABLE],
    ['single', SINGLE],
  ])('a buffer among %s ones', (_kind, features) => {
    it.each(USELESS)('%s goes back with length 0, and the next one is filled', async (_, layout) => {
      const driver = await start(features);
      layout(driver);
      driver.rx().publish(0);
      driver.offer(100, [2048]);
      driver.rx().signal();
      sendAll(testFrame(1, 300));

      expect(await driver.rx().take(1)).toEqual([{ id: 0, length: 0 }]);
      expectSame(await driver.receive(), testFrame(1, 300));
    });

    it.each(USELESS)('%s comes when it is its turn, between filled ones', async (_, layout) => {
      const driver = await start(features);
      layout(driver);
      driver.offer(100, [2048]);
      driver.offer(101, [2048]);
      driver.rx().publish(0);
      driver.offer(102, [2048]);
      driver.rx().signal();
      await settle(driver);
      sendAll(testFrame(1, 300), testFrame(2, 400), testFrame(3, 500));

      expectSame(await driver.receive(), testFrame(1, 300));
      expectSame(await driver.receive(), testFrame(2, 400));
      expect(await driver.rx().take(1)).toEqual([{ id: 0, length: 0 }]);
      expectSame(await driver.receive(), testFrame(3, 500));
    });
  });

  describe('a thousand useless buffers', () => {
    it('leave the ring in order and the log short', async () => {
      const driver = await start(MERGEABLE);
      const before = daemon().log().length;

      for (let i = 0; i < 1000; i += 1) {
        const [, layout] = USELESS[i % USELESS.length] as [string, Layout];
        layout(driver);
        expect(await driver.rx().run(0)).toEqual([{ id: 0, length: 0 }]);
        if (i % 100 === 99) driver.forget();
      }

      driver.post(1, 2048);
      sendAll(testFrame(1, 300));
      expectSame(await driver.receive(), testFrame(1, 300));
      expect(daemon().log().length - before).toBeLessThan(10_000);
    });
  });

  describe.each([
    ['mergeable', MERGEABLE],
    ['single', SINGLE],
  ])('a %s buffer', (_kind, features) => {
    it.each<[string, number[]]>([
      ['of one piece', [1526]],
      ['with the header in a piece of its own', [12, 1514]],
      ['whose header lies in two pieces', [5, 2000]],
      ['whose num_buffers lies in two pieces', [11, 2000]],
      ['whose num_buffers is the end of its first piece', [12, 2000]],
      ['whose num_buffers is a piece of its own', [10, 2, 2000]],
      ['with a header in twelve pieces', [...Array.from({ length: 12 }, () => 1), 1514]],
      ['with empty pieces', [0, 3, 0, 0, 9, 0, 1514, 0]],
      ['of 64 pieces', Array.from({ length: 64 }, () => 25)],
      ['of 100 pieces', Array.from({ length: 100 }, () => 30)],
      ['of 128 pieces, as many as the ring has', Array.from({ length: 128 }, () => 12)],
      ['of 1 MiB', [1 << 20]],
    ])('%s takes a frame of 1514 bytes', async (_, lengths) => {
      const driver = await start(features);
      driver.offer(0, lengths);
      driver.rx().signal();
      sendAll(testFrame(1, 1514));

      const packet = await driver.receive();

      expectSame(packet, testFrame(1, 1514));
      expect(packet.header).toMatchObject({ flags: 0, gsoType: 0, numBuffers: 1 });
      expect(packet.used).toEqual([{ id: 0, length: 1526 }]);
    });

    it.each([2, 70, 763, 1000])('in an indirect table of %i pieces takes a frame of 1514 bytes', async (count) => {
      const driver = await start(features);
      const { ram } = driver.frontend;
      const length = Math.ceil(1526 / Math.min(count, 763));
      const at = driver.allocate(length * count);
      const table = driver.allocate(16 * count, 16);
      driver.layBuffer(0, [{ at, length: length * count }]);
      const pieces = Array.from({ length: count }, (_, i) => ({
        address: ram.guest(at + i * length),
        length,
        flags: WRITE,
      }));
      driver.rx().setChain(0, pieces, table);
      driver.rx().setDescriptor(0, { address: ram.guest(table), length: 16 * count, flags: INDIRECT });
      driver.rx().publish(0);
      driver.rx().signal();
      sendAll(testFrame(1, 1514));

      const packet = await driver.receive();

      expectSame(packet, testFrame(1, 1514));
      expect(packet.used).toEqual([{ id: 0, length: 1526 }]);
    });

    it('that crosses from one region into the next is filled in both', async () => {
      const driver = await daemon().prepare({ features, queueSize: SIZE });
      const { frontend } = driver;
      const region = frontend.ram.region();
      const half = frontend.ram.length / 2;
      const second = {
        guestAddress: Number(region.guestAddress) + half,
        userAddress: Number(region.userAddress) + half,
        mmapOffset: half,
        size: half,
      };
      const table = memoryTable([{ ...region, size: half }, second]);
      await frontend.require(REQUEST.SET_MEM_TABLE, table, [frontend.ram.fd, frontend.ram.fd]);
      for (const ring of frontend.rings) await frontend.startRing(ring);
      // The border lies in the frame, in num_buffers, and right behind the header.
      const borders = [700, 11, 12];
      borders.forEach((before, i) => {
        driver.layBuffer(i, [{ at: half - before, length: 1526 }]);
      });

      for (const [i] of borders.entries()) {
        frontend.ram.bytes.fill(0xee, half - 2000, half + 2000);
        driver.rx().publish(i);
        driver.rx().signal();
        sendAll(testFrame(i, 1514));
        const packet = await driver.receive();
        expectSame(packet, testFrame(i, 1514));
        expect(packet.header.numBuffers).toBe(1);
      }
    });

    it('that is the descriptor table of its ring lets the daemon live', async () => {
      const driver = await start(features);
      driver.layBuffer(0, [{ at: driver.rx().table, length: 16 * SIZE }]);
      driver.rx().publish(0, 1, 2, 3, 4, 5);
      driver.rx().signal();

      sendAll(testFrame(1, 1514), testFrame(2, 1514));

      await settle(driver);
    });

    it('that is the used ring of its ring lets the daemon live', async () => {
      const driver = await start(features);
      driver.layBuffer(0, [{ at: driver.rx().used, length: 1526 }]);
      driver.offer(1, [1526]);
      driver.rx().publish(0);
      driver.rx().signal();

      sendAll(testFrame(1, 1000), testFrame(2, 1000));

      await settle(driver);
      await driver.frontend.stopRing(driver.rx());
    });
  });

  describe('a packet that single buffers are too small for', () => {
    it('is dropped, and the next one that fits arrives in the same buffer', async () => {
      const driver = await start(SINGLE);
      driver.offer(0, [500]);
      driver.rx().signal();
      sendAll(testFrame(1, 489), testFrame(2, 1514), testFrame(3, 60_000), testFrame(4, 488));

      const packet = await driver.receive();

      expectSame(packet, testFrame(4, 488));
      expect(packet.used).toEqual([{ id: 0, length: 500 }]);
    });

    it('does not keep smaller ones from arriving, before and after it', async () => {
      const driver = await start(SINGLE);
      driver.post(64, 600);
      const frames = Array.from({ length: 100 }, (_, i) => testFrame(i, i % 7 === 3 ? 700 : 100 + i));
      sendAll(...frames);

      for (const frame of frames.filter(({ length }) => length < 700)) {
        const packet = await driver.receive();
        expectSame(packet, frame);
        expect(packet.header.numBuffers).toBe(1);
        driver.repost(packet);
      }
    });
  });
});
