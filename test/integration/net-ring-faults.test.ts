/**
 * Rings and memory of a network device that are wrong, or go wrong while packets come and go: the ring, or the connection,
 * ends; the daemon does not. Source: VIRTIO 1.3, 2.7 Split Virtqueues; vhost-user, Memory region messages.
 */

import { describe, expect, it } from 'vitest';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver } from '../support/frontend/net-driver.ts';
import { NET_FEATURE, netHeader, seedOf, testFrame } from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { type RawRing, WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE, PROTOCOL, REQUEST, singleRegion, vringFd, vringState } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const SIZE = 64;
const OPTIONS = { features: [NET_FEATURE.MRG_RXBUF], queueSize: SIZE };
describeWithPeers(namespacePeers, 'a network device on faulty rings', () => {
  const daemon = hostileNetDaemon();

  const expectSends = async (driver: NetDriver, seed: number): Promise<void> => {
    await driver.sendFrame(testFrame(seed));
    expect(seedOf((await daemon().host.receive(1))[0] as Uint8Array)).toBe(seed);
  };

  const expectReceives = async (driver: NetDriver, seed: number): Promise<void> => {
    daemon().host.send(testFrame(seed));
    const packet = await driver.receive();
    expect(seedOf(packet.frame)).toBe(seed);
    driver.repost(packet);
  };

  const FAULTS: [string, (ring: RawRing) => void][] = [
    ['an index that jumps by more than the size', (ring) => ring.setAvailIndex(ring.availIndex + SIZE + 1)],
    ['an index that goes backwards', (ring) => ring.setAvailIndex(ring.availIndex - 1)],
    ['a head beyond the size', (ring) => ring.publish(SIZE)],
    ['head 65535', (ring) => ring.publish(0xffff)],
  ];

  describe('a receive ring with', () => {
    it.each(FAULTS)('%s is broken; the other ring goes on', async (_, spoil) => {
      const driver = await daemon().start(OPTIONS);
      driver.post(2, 2048);
      await expectReceives(driver, 1);
      // All buffers are filled first: the fault is looked at when it is its turn.
      for (const seed of [2, 3]) daemon().host.send(testFrame(seed));
      await driver.receive();
      await driver.receive();

      spoil(driver.rx());
      driver.rx().signal();

      await driver.rx().waitForError();
      await expectSends(driver, 4);
    });

    it('the same head twice at once is broken', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(16, 2048);
      for (let i = 0; i < 64; i += 1) await expectReceives(driver, i);
      driver.rx().publish(3, 3, 3, 3);

      for (let i = 0; i < 200; i += 1) daemon().host.send(testFrame(i));

      await driver.rx().waitForError();
      await expectSends(driver, 4);
    });

    it('a fault is whole again when it is started anew', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.rx().publish(SIZE);
      driver.rx().signal();
      await driver.rx().waitForError();
      const base = await driver.frontend.stopRing(driver.rx());
      expect(base).toBe(0);
      driver.rx().setAvailIndex(0);

      await driver.frontend.startRing(driver.rx(), base);

      driver.post(4, 2048);
      await expectReceives(driver, 1);
    });
  });

  describe('a transmit ring with', () => {
    it.each(FAULTS)('%s is broken; the other ring goes on', async (_, spoil) => {
      const driver = await daemon().start(OPTIONS);
      driver.post(4, 2048);
      await expectSends(driver, 1);

      spoil(driver.tx());
      driver.tx().signal();

      await driver.tx().waitForError();
      await expectReceives(driver, 2);
    });

    it('packets before the fault sends those', async () => {
      const driver = await daemon().start(OPTIONS);
      for (const head of [0, 1, 2]) {
        const bytes = new Uint8Array(Buffer.concat([netHeader(), testFrame(head)]));
        driver.tx().setChain(head, driver.place(bytes));
      }
      driver.tx().publish(0, 1, 2, SIZE);
      driver.tx().signal();

      await driver.tx().waitForError();
      expect((await daemon().host.receive(3)).map(seedOf)).toEqual([0, 1, 2]);
      expect(await driver.frontend.stopRing(driver.tx())).toBe(3);
    });
  });

  describe('rings', () => {
    it('without a kick descriptor are polled', async () => {
      const driver = await daemon().prepare(OPTIONS);
      for (const ring of driver.frontend.rings) {
        await driver.frontend.configureRing(ring);
        await driver.frontend.require(REQUEST.SET_VRING_KICK, vringFd(ring.index, true));
        await driver.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring.index, 1));
      }
      driver.offer(0, [2048]);
      daemon().host.send(testFrame(1));
      expect(seedOf((await driver.receive()).frame)).toBe(1);

      driver.tx().setChain(0, driver.place(new Uint8Array(Buffer.concat([netHeader(), testFrame(2)]))));
      driver.tx().publish(0);

      expect(seedOf((await daemon().host.receive(1))[0] as Uint8Array)).toBe(2);
    });

    it('with garbage in event index and flags are served', async () => {
      const driver = await daemon().start({ ...OPTIONS, features: [...OPTIONS.features, FEATURE.EVENT_IDX] });
      for (let i = 0; i < 50; i += 1) {
        for (const ring of driver.frontend.rings) {
          ring.setAvailFlags((i * 7919) & 0xffff);
          ring.setUsedEvent((i * 104_729) & 0xffff);
        }
        if (i === 0) driver.post(4, 2048);
        await expectReceives(driver, i);
        await expectSends(driver, i);
      }
    });

    it('of one entry are served', async () => {
      const driver = await daemon().start({ ...OPTIONS, queueSize: 1 });
      driver.post(1, 2048);
      for (let i = 0; i < 20; i += 1) {
        await expectReceives(driver, i);
        await expectSends(driver, i);
      }
    });

    it('of 32768 entries are served', async () => {
      const driver = await daemon().start({ ...OPTIONS, queueSize: 32_768 });
      driver.post(4, 2048);
      for (let i = 0; i < 20; i += 1) {
        await expectReceives(driver, i);
        await expectSends(driver, i);
      }
    });
  });

  describe('memory', () => {
    it('that is removed while buffers in it are offered makes them useless, and nothing else', async () => {
      const driver = await daemon().prepare({ ...OPTIONS, protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });
      const { frontend } = driver;
      const more = daemon().keep(new GuestRam(0x1_0000, 0x9000_0000, 0x7d00_0000_0000));
      await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(more.region()), [more.fd]);
      for (const ring of frontend.rings) await frontend.startRing(ring);
      for (const head of [0, 1]) {
        driver.rx().setDescriptor(head, { address: more.guest(0x1000 * head), length: 2048, flags: WRITE });
      }
      driver.rx().publish(0, 1);
      driver.offer(2, [2048]);
      driver.rx().signal();
      daemon().host.send(testFrame(1));
      const [first] = await driver.rx().take(1);
      expect(first).toEqual({ id: 0, length: 72 });
      expect(seedOf(more.bytes.slice(12, 72))).toBe(1);

      await frontend.require(REQUEST.REM_MEM_REG, singleRegion(more.region()));
      daemon().host.send(testFrame(2));

      expect(await driver.rx().take(1)).toEqual([{ id: 1, length: 0 }]);
      expect(seedOf((await driver.receive()).frame)).toBe(2);
    });

    it('that is taken away under the buffers loses what was to go there', async () => {
      const driver = await daemon().start(OPTIONS);
      const { frontend } = driver;
      const { ram } = frontend;
      const end = ram.length - 0x1_0000;
      for (let head = 0; head < 8; head += 1) {
        driver.rx().setDescriptor(head, { address: ram.guest(end + 4096 * head), length: 2048, flags: WRITE });
      }
      driver.rx().publish(0, 1, 2, 3, 4, 5, 6, 7);
      driver.rx().signal();
      driver.tx().setDescriptor(0, { address: ram.guest(end), length: 100 });

      ram.truncate(end);
      for (let i = 0; i < 5; i += 1) daemon().host.send(testFrame(i));
      driver.tx().publish(0);
      driver.tx().signal();

      await eventually(
        'the end of the connection, or its packet',
        () => frontend.connection.ended || driver.tx().usedIndex === 1,
        (done) => done,
      );
    });

    it('that is taken away under the rings ends the connection', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(8, 2048);
      await expectReceives(driver, 1);

      driver.frontend.ram.truncate(0x1000);
      daemon().host.send(testFrame(2));
      driver.tx().signal();

      await driver.frontend.connection.waitForEnd();
    });
  });
});
