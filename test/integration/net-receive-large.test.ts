/**
 * Packets that the host sends and one buffer cannot hold, or none is there for: spread over mergeable buffers, waiting for
 * more of them, dropped in the end; and what the driver lets the TAP leave to it.
 * Source: VIRTIO 1.3, 5.1.6.3 Setting Up Receive Buffers, 5.1.6.4 Processing of Incoming Packets.
 */

import { describe, expect, it } from 'vitest';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver, NetDriverOptions } from '../support/frontend/net-driver.ts';
import { expectFilled, expectSame } from '../support/frontend/net-expect.ts';
import {
  GSO,
  internetChecksum,
  NEEDS_CSUM,
  NET_FEATURE,
  netHeader,
  seedOf,
  tcpFrame,
  testFrame,
} from '../support/frontend/net-wire.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const SIZE = 128;
const HEADER = 12;
const ETHERTYPE_IPV4 = 0x0800;
/** Bytes of the buffers that Linux offers for an MTU of 1500. */
const BUFFER = 1526;
const MERGEABLE = [NET_FEATURE.MRG_RXBUF, FEATURE.INDIRECT_DESC];
const SINGLE = [FEATURE.INDIRECT_DESC];
describeWithPeers(namespacePeers, 'receiving what one buffer cannot hold', () => {
  const daemon = hostileNetDaemon({ before: 'ip tuntap add tap0 mode tap; ip link set tap0 mtu 65521' });

  const start = (features: readonly number[] = MERGEABLE, more: NetDriverOptions = {}): Promise<NetDriver> =>
    daemon().start({ features, queueSize: SIZE, ...more });

  const sendAll = (...frames: Uint8Array[]): void => {
    for (const frame of frames) expect(daemon().host.send(frame)).toBe(true);
  };

  /** Everything that was sent to the device so far was seen by it: a packet went through it the other way, after that. */
  const settle = async (driver: NetDriver): Promise<void> => {
    await driver.sendFrame(testFrame(0xffff, 60));
    await daemon().host.receive(1);
  };

  describe('a packet larger than a mergeable buffer', () => {
    it.each([
      ['1.5 KiB', BUFFER],
      ['2 KiB', 2048],
      ['4 KiB', 4096],
      ['60 KiB', 61_440],
    ])('lies in as many buffers of %s as it takes', async (_, size) => {
      const driver = await start();
      driver.post(SIZE, size);
      const frames = [60_000, 65_535, 1515, 60, 9000, size - HEADER, size - HEADER + 1, 2 * size - HEADER, 30_000].map(
        (length, i) => testFrame(i, Math.min(length, 65_535)),
      );

      for (const frame of frames) {
        sendAll(frame);
        const packet = await driver.receive();
        expectSame(packet, frame);
        expectFilled(driver, packet, frame.length);
        driver.repost(packet);
      }
    });

    it('comes in order among small ones, whatever the mix', async () => {
      const driver = await start();
      driver.post(SIZE, BUFFER);
      const frames = Array.from({ length: 240 }, (_, i) =>
        testFrame(i, i % 31 < 3 ? 20_000 + 1000 * (i % 31) : 60 + 5 * i),
      );

      for (let at = 0; at < frames.length; at += 24) {
        sendAll(...frames.slice(at, at + 24));
        for (const frame of frames.slice(at, at + 24)) {
          const packet = await driver.receive();
          expectSame(packet, frame);
          expectFilled(driver, packet, frame.length);
          driver.repost(packet);
        }
      }
    });

    it('lies in buffers of different sizes and pieces', async () => {
      const driver = await start();
      const shapes = [[100], [12, 50], [3000], [13], [700, 1, 1, 1, 900], [5, 6, 7], [4096]];
      for (let head = 0; head < 120; head += 8) driver.offer(head, shapes[(head / 8) % shapes.length] as number[]);
      driver.rx().signal();

      for (let i = 0; i < 60; i += 1) {
        const frame = testFrame(i, 60 + ((i * 977) % 9000));
        sendAll(frame);
        const packet = await driver.receive();
        expectSame(packet, frame);
        expectFilled(driver, packet, frame.length);
        driver.repost(packet);
      }
    });

    it('waits for buffers that are offered few at a time, and so do those behind it', async () => {
      const driver = await start();
      const frames = [testFrame(0, 65_000), testFrame(1, 100), testFrame(2, 65_000), testFrame(3, 65_000)];
      const needed = Math.ceil((65_000 + HEADER) / BUFFER);
      sendAll(...frames);
      let head = 0;
      for (let left = needed - 1; left > 0; ) {
        const step = Math.min(10, left);
        for (let i = 0; i < step; i += 1, head += 1) driver.offer(head, [BUFFER]);
        driver.rx().signal();
        await settle(driver);
        expect(driver.rx().usedIndex).toBe(0);
        left -= step;
      }

      for (; head < needed + 3; head += 1) driver.offer(head, [BUFFER]);
      driver.rx().signal();

      for (const frame of frames) {
        const packet = await driver.receive();
        expectSame(packet, frame);
        expectFilled(driver, packet, frame.length);
        // One by one, with a kick each.
        for (const { id } of packet.used) {
          driver.rx().publish(id);
          driver.rx().signal();
        }
      }
    });

    it('is dropped when the whole ring cannot hold it, and the next one arrives', async () => {
      const driver = await start(MERGEABLE, { queueSize: 16 });
      driver.post(16, 1000);
      sendAll(testFrame(1, 20_000), testFrame(2, 15_988), testFrame(3, 60));

      const packet = await driver.receive();
      expectSame(packet, testFrame(2, 15_988));
      expectFilled(driver, packet, 15_988);
      driver.repost(packet);
      expectSame(await driver.receive(), testFrame(3, 60));
    });

    it('passes by a useless buffer among those it needs, and the ones before it, which go back empty', async () => {
      const driver = await start();
      driver.offer(0, [BUFFER]);
      driver.offer(1, [BUFFER]);
      driver.rx().setDescriptor(2, { address: 0, length: 100, flags: WRITE });
      driver.rx().publish(2);
      for (let head = 3; head < 20; head += 1) driver.offer(head, [BUFFER]);
      driver.rx().signal();
      await settle(driver);
      sendAll(testFrame(1, 10_000), testFrame(2, 1000));

      const empty = await driver.rx().take(3);
      expect(empty).toEqual([0, 1, 2].map((id) => ({ id, length: 0 })));
      const packet = await driver.receive();
      expectSame(packet, testFrame(1, 10_000));
      expectFilled(driver, packet, 10_000);
      expectSame(await driver.receive(), testFrame(2, 1000));
    });
  });

  describe('a ring without buffers', () => {
    it.each([
      ['mergeable', MERGEABLE],
      ['single', SINGLE],
    ])('(%s) gets what waited in the TAP, in order and complete, when it has some again', async (_, features) => {
      const driver = await start(features);
      const frames = Array.from({ length: 400 }, (_, i) => testFrame(i, 60 + i));
      sendAll(...frames);
      await settle(driver);
      expect(driver.rx().usedIndex).toBe(0);

      driver.post(5, 2048);

      for (const frame of frames) {
        const packet = await driver.receive();
        expectSame(packet, frame);
        driver.repost(packet);
      }
    });

    it('loses what the queue of the TAP cannot hold, and nothing before that', async () => {
      const driver = await start();
      for (let i = 0; i < 3000; i += 1) daemon().host.send(testFrame(i, 100));

      driver.post(SIZE, 2048);

      // Those that fit into the queue; then nothing comes until the next one.
      await settle(driver);
      const seeds: number[] = [];
      while (seeds.at(-1) !== 5000) {
        if (seeds.length === 400) daemon().host.send(testFrame(5000, 100));
        const packet = await driver.receive();
        seeds.push(seedOf(packet.frame));
        driver.repost(packet);
      }
      const before = seeds.slice(0, -1);
      expect(before).toEqual(before.map((_, i) => i));
    });

    it('for every other packet loses none', async () => {
      const driver = await start();
      driver.offer(0, [2048]);
      driver.rx().signal();
      for (let i = 0; i < 500; i += 1) {
        sendAll(testFrame(2 * i, 100), testFrame(2 * i + 1, 100));
        for (const seed of [2 * i, 2 * i + 1]) {
          const packet = await driver.receive();
          expect(seedOf(packet.frame)).toBe(seed);
          driver.repost(packet);
        }
      }
    });
  });

  describe('offloads', () => {
    const OFFLOADS = [...MERGEABLE, NET_FEATURE.GUEST_CSUM, NET_FEATURE.GUEST_TSO4];
    const gso = netHeader(
      { flags: NEEDS_CSUM, gsoType: GSO.TCPV4, gsoSize: 1448, hdrLen: 54, csumStart: 34, csumOffset: 16 },
      10,
    );
    const openHost = () => daemon().openHost({ ethertype: ETHERTYPE_IPV4, vnetHeader: true });
    const send = (frame: Uint8Array, header: Uint8Array): void => {
      expect(openHost().send(new Uint8Array(Buffer.concat([header, frame])))).toBe(true);
    };

    it('that the driver takes let a segment of 60 KB through in one packet', async () => {
      const driver = await start(OFFLOADS);
      driver.post(SIZE, BUFFER);
      const frame = tcpFrame(3, 60_000);

      send(frame, gso);

      const packet = await driver.receive();
      expectSame(packet, frame);
      expectFilled(driver, packet, frame.length);
      expect(packet.header).toMatchObject({ flags: NEEDS_CSUM, gsoType: GSO.TCPV4, gsoSize: 1448, csumStart: 34 });
    });

    it('that it does not take are done for it: segments with checksums, of the MTU at most', async () => {
      const driver = await start(MERGEABLE);
      driver.post(SIZE, BUFFER);

      send(tcpFrame(3, 14_480), gso);

      for (let i = 0; i < 10; i += 1) {
        const { header, frame } = await driver.receive();
        expect(header).toMatchObject({ flags: 0, gsoType: 0, numBuffers: 1 });
        expect(frame.length).toBe(1502);
        const pseudo = Uint8Array.of(
          ...frame.subarray(26, 34),
          0,
          6,
          (frame.length - 34) >> 8,
          (frame.length - 34) & 0xff,
        );
        expect(internetChecksum(new Uint8Array(Buffer.concat([pseudo, frame.subarray(34)])), 0)).toBe(0);
      }
    });

    it('end with the driver that took them: the next one gets none', async () => {
      const first = await start(OFFLOADS);
      send(tcpFrame(3, 20_000), gso);
      send(tcpFrame(4, 20_000), gso);
      await settle(first);
      first.close();

      const driver = await start(SINGLE);
      driver.post(SIZE, 2048);
      send(tcpFrame(5, 2896), gso);

      for (let i = 0; i < 2; i += 1) {
        const { header, frame } = await driver.receive();
        expect(header.gsoType).toBe(0);
        expect(new DataView(frame.buffer, frame.byteOffset).getUint32(38)).toBe(5 + 1448 * i);
      }
    });
  });
});
