/**
 * Packets that a driver sends, well made and badly. One that cannot be a packet goes back unsent, with used length 0,
 * and the ring goes on; what the header says wrongly is for the kernel to refuse.
 * Source: VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table, 5.1.6.2 Packet Transmission.
 */

import { describe, expect, it } from 'vitest';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver } from '../support/frontend/net-driver.ts';
import {
  DATA_VALID,
  GSO,
  internetChecksum,
  NEEDS_CSUM,
  NET_FEATURE,
  type NetHeader,
  netHeader,
  tcpFrame,
  testFrame,
  udpFrame,
} from '../support/frontend/net-wire.ts';
import { INDIRECT, NEXT, type RawDescriptor, WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const SIZE = 128;
const HEADER = 12;
const ETHERTYPE_IPV4 = 0x0800;
const FEATURES = [
  FEATURE.INDIRECT_DESC,
  NET_FEATURE.CSUM,
  NET_FEATURE.HOST_TSO4,
  NET_FEATURE.HOST_TSO6,
  NET_FEATURE.HOST_UFO,
  NET_FEATURE.MRG_RXBUF,
];
describeWithPeers(namespacePeers, 'transmitting', () => {
  const daemon = hostileNetDaemon({ before: 'ip tuntap add tap0 mode tap; ip link set tap0 mtu 65521' });

  const start = (): Promise<NetDriver> => daemon().start({ features: FEATURES, queueSize: SIZE });

  const concat = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));

  /** Guest address of the first byte behind the memory. */
  const behind = ({ frontend: { ram } }: NetDriver): number => ram.guest(ram.length);

  /** Sends frame `seed` on the same ring and sees that it is the next one to arrive. */
  const expectNextFrame = async (driver: NetDriver, seed: number): Promise<void> => {
    const frame = testFrame(seed, 200);
    expect(await driver.sendFrame(frame)).toEqual({ id: 0, length: 0 });
    expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
  };

  /** An indirect descriptor for these, and where its table is. */
  const indirect = (
    driver: NetDriver,
    chain: readonly RawDescriptor[],
  ): { table: number; descriptor: RawDescriptor } => {
    const table = driver.allocate(16 * chain.length, 16);
    driver.tx().setChain(0, chain, table);
    const address = driver.frontend.ram.guest(table);
    return { table, descriptor: { address, length: 16 * chain.length, flags: INDIRECT } };
  };

  /** Makes what is sent from descriptor 0 on. */
  type Layout = (driver: NetDriver) => void;

  /** A packet that would arrive, if only its descriptors were left alone. */
  const packet = (driver: NetDriver, cuts: readonly number[] = []): RawDescriptor[] =>
    driver.place(concat(netHeader(), testFrame(1, 100)), cuts);

  const bytes =
    (length: number): Layout =>
    (driver) =>
      driver.tx().setChain(0, driver.place(concat(netHeader(), testFrame(1, 70_000)).subarray(0, length)));

  const UNSENT: [string, Layout][] = [
    ['of one byte', bytes(1)],
    ['of 11 bytes, less than a header', bytes(HEADER - 1)],
    ['of a header alone', bytes(HEADER)],
    ['with a frame of 13 bytes', bytes(HEADER + 13)],
    ['with a frame of 65,559 bytes', bytes(HEADER + 65_559)],
    ['of 70,000 bytes', bytes(70_000)],
    ['without a byte', (driver) => driver.tx().setChain(0, [{ address: 0, length: 0 }])],
    [
      'of empty buffers',
      (driver) =>
        driver.tx().setChain(
          0,
          Array.from({ length: SIZE }, () => ({ address: 0, length: 0 })),
        ),
    ],
    [
      'in writable buffers only',
      (driver) =>
        driver.tx().setChain(
          0,
          packet(driver).map((d) => ({ ...d, flags: WRITE })),
        ),
    ],
    [
      'with a readable buffer behind a writable one',
      (driver) => {
        const [header, frame] = packet(driver, [HEADER]) as [RawDescriptor, RawDescriptor];
        driver.tx().setChain(0, [{ ...header, flags: WRITE }, frame]);
      },
    ],
    ['in a buffer at address 0', (driver) => driver.tx().setChain(0, [{ address: 0, length: 100 }])],
    [
      'in a buffer right behind the memory',
      (driver) => driver.tx().setChain(0, [{ address: behind(driver), length: 100 }]),
    ],
    [
      'in a buffer that leaves the memory',
      (driver) => driver.tx().setChain(0, [{ address: behind(driver) - 99, length: 100 }]),
    ],
    ['in a buffer at 2^64 - 50, which wraps', (driver) => driver.tx().setChain(0, [{ address: -50n, length: 100 }])],
    [
      'whose header is there and whose frame is not',
      (driver) => driver.tx().setChain(0, [...packet(driver).slice(0, 1), { address: behind(driver), length: 100 }]),
    ],
    [
      'that points at itself',
      (driver) => driver.tx().setDescriptor(0, { ...(packet(driver)[0] as RawDescriptor), flags: NEXT, next: 0 }),
    ],
    [
      'with a long cycle',
      (driver) => {
        const [piece] = packet(driver) as [RawDescriptor];
        for (let i = 0; i < SIZE; i += 1) driver.tx().setDescriptor(i, { ...piece, flags: NEXT, next: (i + 1) % SIZE });
      },
    ],
    [
      'with next equal to the queue size',
      (driver) => driver.tx().setDescriptor(0, { ...(packet(driver)[0] as RawDescriptor), flags: NEXT, next: SIZE }),
    ],
    [
      'of buffers that sum up to 2^32 bytes',
      (driver) => {
        const huge = { address: driver.frontend.ram.guest(0), length: 0x8000_0000 };
        driver.tx().setChain(0, [huge, huge]);
      },
    ],
    [
      'in an indirect table of 49 bytes',
      (driver) =>
        driver.tx().setDescriptor(0, { ...indirect(driver, packet(driver, [12, 12, 12])).descriptor, length: 49 }),
    ],
    [
      'in an indirect table without entries',
      (driver) => driver.tx().setDescriptor(0, { ...indirect(driver, packet(driver)).descriptor, length: 0 }),
    ],
    [
      'in an indirect table behind the memory',
      (driver) =>
        driver.tx().setDescriptor(0, { ...indirect(driver, packet(driver)).descriptor, address: behind(driver) }),
    ],
    [
      'in an indirect table in an indirect table',
      (driver) =>
        driver.tx().setDescriptor(0, indirect(driver, [indirect(driver, packet(driver)).descriptor]).descriptor),
    ],
    [
      'with INDIRECT and NEXT together',
      (driver) => {
        const { descriptor } = indirect(driver, packet(driver));
        driver.tx().setDescriptor(0, { ...descriptor, flags: INDIRECT | NEXT, next: 1 });
      },
    ],
    [
      'with a loop in its indirect table',
      (driver) => {
        const { table, descriptor } = indirect(driver, packet(driver, [20, 20]));
        driver.tx().setDescriptor(2, { ...(packet(driver)[0] as RawDescriptor), flags: NEXT, next: 1 }, table);
        driver.tx().setDescriptor(0, descriptor);
      },
    ],
  ];

  describe('a chain that is no packet', () => {
    it.each(UNSENT)('%s goes back unsent', async (_, layout) => {
      const driver = await start();
      layout(driver);

      expect(await driver.tx().run(0)).toEqual([{ id: 0, length: 0 }]);

      await expectNextFrame(driver, 2);
    });

    it('of every kind, a thousand of them, leaves the ring in order and the log short', async () => {
      const driver = await start();
      const before = daemon().log().length;

      for (let round = 0; round < 40; round += 1) {
        for (const [title, layout] of UNSENT) {
          if (title.includes('70,000') || title.includes('65,559')) continue;
          layout(driver);
          await driver.tx().run(0);
        }
        driver.forget();
      }

      await expectNextFrame(driver, 3);
      expect(daemon().log().length - before).toBeLessThan(10_000);
    });
  });

  describe('a header that the kernel refuses', () => {
    it.each<[string, Partial<NetHeader>]>([
      ['a checksum that begins behind the packet', { flags: NEEDS_CSUM, csumStart: 5000, csumOffset: 16 }],
      ['a checksum field that ends behind the packet', { flags: NEEDS_CSUM, csumStart: 34, csumOffset: 65 }],
      ['a checksum at 65535 + 65535', { flags: NEEDS_CSUM, csumStart: 0xffff, csumOffset: 0xffff }],
      [
        'segmentation into segments of 0 bytes',
        { flags: NEEDS_CSUM, gsoType: GSO.TCPV4, csumStart: 34, csumOffset: 16 },
      ],
      ['an unknown segmentation', { gsoType: 0x7f, gsoSize: 1000 }],
      ['segmentation of nothing', { gsoType: 2, gsoSize: 1000 }],
      ['ECN without segmentation of TCP', { gsoType: GSO.ECN, gsoSize: 1000 }],
    ])('%s, drops the packet and nothing else', async (_, fields) => {
      const driver = await start();

      expect(await driver.send(netHeader(fields), testFrame(1, 100))).toEqual({ id: 0, length: 0 });

      await expectNextFrame(driver, 2);
    });
  });

  describe('a packet arrives as it is,', () => {
    const expectArrives = async (
      header: Uint8Array,
      frame: Uint8Array,
      cuts: readonly number[] = [],
    ): Promise<void> => {
      const driver = await start();

      expect(await driver.send(header, frame, cuts)).toEqual({ id: 0, length: 0 });

      expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
      await expectNextFrame(driver, 3);
    };

    it.each<[string, number, number[]]>([
      ['in one buffer', 1514, []],
      ['with header and frame in buffers of their own', 1514, [12]],
      ['with a header in twelve buffers', 100, Array.from({ length: 12 }, () => 1)],
      ['with header and Ethernet header in one buffer', 100, [26]],
      ['with empty buffers between header and frame', 100, [0, 5, 0, 7, 0, 0, 10, 0]],
      ['with a frame of 14 bytes', 14, []],
      ['in 64 buffers', 1514, Array.from({ length: 63 }, () => 7)],
      ['in 65 buffers', 1514, Array.from({ length: 64 }, () => 7)],
      ['in 70 buffers', 1514, Array.from({ length: 69 }, () => 20)],
      ['in 128 buffers, as many as the ring has', 60_000, Array.from({ length: 127 }, () => 300)],
      ['with 65,535 bytes', 65_535, []],
    ])('%s', async (_, length, cuts) => {
      await expectArrives(netHeader(), testFrame(9, length), cuts);
    });

    it.each([70, 1000, 1023])('in an indirect table of %i buffers', async (count) => {
      const driver = await start();
      const frame = testFrame(4, 3000);
      const chain = driver.place(
        concat(netHeader(), frame),
        Array.from({ length: count - 1 }, () => 2),
      );
      driver.tx().setDescriptor(0, indirect(driver, chain).descriptor);

      expect(await driver.tx().run(0)).toEqual([{ id: 0, length: 0 }]);

      expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
      await expectNextFrame(driver, 5);
    });

    it('with a hdr_len beyond the packet, in many packets at once', async () => {
      const driver = await start();
      const frames = Array.from({ length: 50 }, (_, i) => testFrame(i, 100 + i));
      frames.forEach((frame, i) => {
        driver.tx().setChain(i, driver.place(concat(netHeader({ hdrLen: i % 2 === 0 ? 0xffff : 0 }), frame)));
      });

      await driver.tx().run(...frames.keys());

      expect(concat(...(await daemon().host.receive(50)))).toEqual(concat(...frames));
    });

    it('in normal descriptors followed by an indirect table', async () => {
      const driver = await start();
      const frame = testFrame(4, 300);
      const [header, ...rest] = driver.place(concat(netHeader(), frame), [12, 50]) as [
        RawDescriptor,
        ...RawDescriptor[],
      ];
      driver.tx().setDescriptor(0, { ...header, flags: NEXT, next: 9 });
      driver.tx().setDescriptor(9, indirect(driver, rest).descriptor);

      await driver.tx().run(0);

      expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
    });

    it('with a writable buffer behind it, which stays as it is', async () => {
      const driver = await start();
      const frame = testFrame(4, 300);
      const at = driver.allocate(64);
      driver.frontend.ram.bytes.fill(0xee, at, at + 64);
      const writable = { address: driver.frontend.ram.guest(at), length: 64, flags: WRITE };
      driver.tx().setChain(0, [...driver.place(concat(netHeader(), frame)), writable]);

      expect(await driver.tx().run(0)).toEqual([{ id: 0, length: 0 }]);

      expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
      expect(driver.frontend.ram.bytes.slice(at, at + 64)).toEqual(new Uint8Array(64).fill(0xee));
    });

    it('in lots of many buffers each, which take turns to be gathered', async () => {
      const driver = await start();
      const frames = Array.from({ length: 50 }, (_, i) => testFrame(i, 1000 + i));
      const heads = frames.map((frame, i) => {
        const cuts = Array.from({ length: i % 3 === 0 ? 99 : 3 }, () => 5);
        driver.tx().setDescriptor(i, indirect(driver, driver.place(concat(netHeader(), frame), cuts)).descriptor);
        return i;
      });

      const used = await driver.tx().run(...heads);

      expect(used.map(({ id }) => id)).toEqual(heads);
      expect(concat(...(await daemon().host.receive(50)))).toEqual(concat(...frames));
    });

    it.each<[string, Partial<NetHeader>]>([
      ['whatever csum_start and csum_offset say without NEEDS_CSUM', { csumStart: 0xffff, csumOffset: 0xffff }],
      ['whatever gso_size says without gso_type', { gsoSize: 0xffff }],
      ['whatever num_buffers says', { numBuffers: 0xffff }],
      ['with unknown flags', { flags: 0xf0 | DATA_VALID }],
      ['with a hdr_len of 1', { hdrLen: 1 }],
      ['with a hdr_len of 13', { hdrLen: 13 }],
      ['with a hdr_len beyond the packet', { hdrLen: 0xffff }],
    ])('%s', async (_, fields) => {
      await expectArrives(netHeader(fields), testFrame(9, 100));
    });
  });

  describe('a checksum that is left to us', () => {
    it.each([
      ['TCP', tcpFrame(1, 333), 16, 6, 1],
      ['UDP', udpFrame(1, 334), 6, 17, 1],
      ['TCP with a hdr_len beyond the packet', tcpFrame(1, 333), 16, 6, 0xffff],
    ])('is that of %s on a socket that takes no offload', async (_, frame, csumOffset, protocol, hdrLen) => {
      const driver = await start();
      const host = daemon().openHost({ ethertype: ETHERTYPE_IPV4, vnetHeader: true });

      await driver.send(netHeader({ flags: NEEDS_CSUM, csumStart: 34, csumOffset, hdrLen }), frame);

      const [received] = (await host.receive(1)) as [Uint8Array];
      // The host's side is told that the checksum is still to be filled in, and where.
      expect([received[0], received[6], received[8]]).toEqual([NEEDS_CSUM, 34, csumOffset]);
      expect(received[10 + 23]).toBe(protocol);
      expect(Buffer.compare(received.subarray(10), frame)).toBe(0);
      expect(internetChecksum(frame, 14, 34)).toBe(0);
    });
  });

  describe('a packet to be segmented', () => {
    it.each([
      ['TCPV4 with a right hdr_len', 54],
      ['TCPV4 with a hdr_len of 0', 0],
      ['TCPV4 with a hdr_len that is too large', 2000],
    ])('%s arrives whole, with what the header says', async (_, hdrLen) => {
      const driver = await start();
      const host = daemon().openHost({ ethertype: ETHERTYPE_IPV4, vnetHeader: true });
      const frame = tcpFrame(7, 60_000);
      const header = netHeader({
        flags: NEEDS_CSUM,
        gsoType: GSO.TCPV4,
        gsoSize: 1448,
        hdrLen,
        csumStart: 34,
        csumOffset: 16,
      });

      await driver.send(header, frame, [12, 54, 4096, 4096]);

      const [received] = (await host.receive(1)) as [Uint8Array];
      expect([received[0], received[1]]).toEqual([NEEDS_CSUM, GSO.TCPV4]);
      expect(new DataView(received.buffer).getUint16(4, true)).toBe(1448);
      expect(Buffer.compare(received.subarray(10), frame)).toBe(0);
      await expectNextFrame(driver, 8);
    });
  });

  describe('a legacy driver', () => {
    it('without VERSION_1 and mergeable buffers has headers of 10 bytes, both ways', async () => {
      const driver = await daemon().prepare({ features: [] });
      await driver.frontend.require(2, Uint8Array.of(0, 0, 0, 0x40, 0, 0, 0, 0));
      driver.frontend.features = 0x4000_0000n;
      for (const ring of driver.frontend.rings) await driver.frontend.startRing(ring);
      driver.post(4, 2048);
      const frame = testFrame(11, 500);

      await driver.sendFrame(frame);
      expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
      daemon().host.send(frame);

      const packet = await driver.receive();
      expect(packet.used).toEqual([{ id: 0, length: 510 }]);
      expect(Buffer.compare(packet.frame, frame)).toBe(0);
    });

    it('may send a frame of 14 bytes behind a header of 10, and no less', async () => {
      const driver = await daemon().prepare({ features: [] });
      await driver.frontend.require(2, Uint8Array.of(0, 0, 0, 0x40, 0, 0, 0, 0));
      driver.frontend.features = 0x4000_0000n;
      for (const ring of driver.frontend.rings) await driver.frontend.startRing(ring);

      await driver.sendFrame(testFrame(1, 14).subarray(0, 13));
      await driver.sendFrame(testFrame(2, 14));

      expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, testFrame(2, 14))).toBe(0);
    });
  });
});
