/**
 * Rings of a network device started, stopped, enabled and disabled while packets come and go; and what a daemon does that
 * cannot take packets: nothing. Source: vhost-user, Ring states.
 */

import { describe, expect, it } from 'vitest';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver, ReceivedPacket } from '../support/frontend/net-driver.ts';
import { NET_FEATURE, netHeader, seedOf, testFrame, udpFrame } from '../support/frontend/net-wire.ts';
import { cpuDuring, cpuWhenIdle } from '../support/frontend/process-probe.ts';
import type { RawRing } from '../support/frontend/raw-ring.ts';
import { memoryTable, REQUEST, vringFd, vringState } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const MERGEABLE = [NET_FEATURE.MRG_RXBUF];
const ETHERTYPE_IPV4 = 0x0800;
const OPTIONS = { features: MERGEABLE, queueSize: 64 };

describeWithPeers(namespacePeers, 'the rings of a network device', () => {
  describe('one pair of rings', () => {
    const daemon = hostileNetDaemon();

    const enable = ({ frontend }: NetDriver, ring: RawRing, on: boolean): Promise<void> =>
      frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring.index, on ? 1 : 0));

    /** The daemon has seen everything that was kicked before: it answers a message after that. */
    const settle = async ({ frontend }: NetDriver): Promise<void> => {
      for (let i = 0; i < 3; i += 1) await frontend.connection.ask(REQUEST.GET_FEATURES);
    };

    /** Makes a frame available to be sent, at the given head. */
    const submit = (driver: NetDriver, head: number, frame: Uint8Array): void => {
      driver.tx().setChain(head, driver.place(new Uint8Array(Buffer.concat([netHeader(), frame]))));
      driver.tx().publish(head);
      driver.tx().signal();
    };

    const expectNextSeed = async (driver: NetDriver, seed: number): Promise<void> => {
      const packet = await driver.receive();
      expect(seedOf(packet.frame)).toBe(seed);
      driver.repost(packet);
    };

    const nextOnHost = async (): Promise<number> => seedOf((await daemon().host.receive(1))[0] as Uint8Array);

    it('that are started and not enabled take what is sent and drop it, and deliver nothing', async () => {
      const driver = await daemon().prepare(OPTIONS);
      for (const ring of driver.frontend.rings) {
        await driver.frontend.configureRing(ring);
        await driver.frontend.require(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]);
      }
      driver.post(4, 2048);
      daemon().host.send(testFrame(1));

      expect(await driver.sendFrame(testFrame(2))).toEqual({ id: 0, length: 0 });
      expect(driver.rx().usedIndex).toBe(0);

      await enable(driver, driver.rx(), true);
      await enable(driver, driver.tx(), true);
      await expectNextSeed(driver, 1);
      await driver.sendFrame(testFrame(3));
      expect(await nextOnHost()).toBe(3);
    });

    it('go on where they were when they are disabled and enabled again', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(4, 2048);

      for (let round = 0; round < 20; round += 1) {
        daemon().host.send(testFrame(10 * round));
        await expectNextSeed(driver, 10 * round);
        await driver.sendFrame(testFrame(10 * round + 1));
        expect(await nextOnHost()).toBe(10 * round + 1);

        for (const ring of driver.frontend.rings) await enable(driver, ring, false);
        daemon().host.send(testFrame(10 * round + 2));
        await driver.sendFrame(testFrame(10 * round + 3));
        expect(driver.rx().usedIndex).toBe(2 * round + 1);

        for (const ring of driver.frontend.rings) await enable(driver, ring, true);
        await expectNextSeed(driver, 10 * round + 2);
      }
    });

    it('that are stopped do nothing, and everything when they are started again', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(8, 2048);
      for (const seed of [1, 2, 3]) {
        daemon().host.send(testFrame(seed));
        await expectNextSeed(driver, seed);
      }
      const rxBase = await driver.frontend.stopRing(driver.rx());
      const txBase = await driver.frontend.stopRing(driver.tx());

      submit(driver, 5, testFrame(50));
      daemon().host.send(testFrame(51));
      await settle(driver);

      expect([rxBase, txBase]).toEqual([3, 0]);
      expect([driver.rx().usedIndex, driver.tx().usedIndex]).toEqual([3, 0]);
      await driver.frontend.startRing(driver.rx(), rxBase);
      await driver.frontend.startRing(driver.tx(), txBase);
      expect(await nextOnHost()).toBe(50);
      await expectNextSeed(driver, 51);
    });

    it('are told as far as they were used: buffers that were offered and not filled are not counted', async () => {
      const driver = await daemon().start({ ...OPTIONS, base: 0 });
      driver.post(60, 2048);
      for (let seed = 0; seed < 7; seed += 1) daemon().host.send(testFrame(seed));
      const packets: ReceivedPacket[] = [];
      while (packets.length < 7) packets.push(await driver.receive());
      expect(packets.map(({ frame }) => seedOf(frame))).toEqual([0, 1, 2, 3, 4, 5, 6]);

      expect(await driver.frontend.stopRing(driver.rx())).toBe(7);

      await driver.frontend.startRing(driver.rx(), 7);
      daemon().host.send(testFrame(7));
      expect((await driver.receive()).used[0]?.id).toBe(7);
    });

    it('lose nothing when they are stopped and started under load, with 16-bit indices that wrap', async () => {
      const base = 0xfff0;
      const driver = await daemon().prepare(OPTIONS);
      const { frontend } = driver;
      for (const ring of frontend.rings) {
        ring.setAvailIndex(base);
        frontend.ram.view.setUint16(ring.used + 2, base, true);
        ring.seen = base;
        await frontend.startRing(ring, base);
      }
      driver.post(16, 2048);
      let sent = 0;
      let got = 0;
      let out = 0;

      for (let round = 0; round < 30; round += 1) {
        for (; sent < 10 * (round + 1); sent += 1) daemon().host.send(testFrame(sent));
        submit(driver, round % 64, testFrame(round));
        const rxBase = await frontend.stopRing(driver.rx());
        const txBase = await frontend.stopRing(driver.tx());
        expect(rxBase).toBe(driver.rx().usedIndex);
        expect(txBase).toBe(driver.tx().usedIndex);
        await frontend.startRing(driver.rx(), rxBase);
        await frontend.startRing(driver.tx(), txBase);
        for (; got < sent; got += 1) await expectNextSeed(driver, got);
        for (; out <= round; out += 1) expect(await nextOnHost()).toBe(out);
      }
    });

    it('lose nothing when the memory table is sent again and again', async () => {
      const driver = await daemon().start(OPTIONS);
      const { frontend } = driver;
      driver.post(16, 2048);
      let got = 0;

      for (let round = 0; round < 20; round += 1) {
        for (let i = 0; i < 12; i += 1) daemon().host.send(testFrame(12 * round + i));
        await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([frontend.ram.region()]), [frontend.ram.fd]);
        for (; got < 12 * (round + 1); got += 1) await expectNextSeed(driver, got);
      }
    });

    it('may be enabled and disabled many times before features and memory are known', async () => {
      const early = daemon().connect(OPTIONS);
      for (let i = 0; i < 50; i += 1) {
        for (const ring of [0, 1]) await early.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring, i % 2));
      }
      await early.frontend.negotiate();
      await early.frontend.shareMemory();
      for (const ring of early.frontend.rings) await early.frontend.startRing(ring);
      early.post(2, 2048);

      daemon().host.send(testFrame(5));

      await expectNextSeed(early, 5);
    });

    it('are enabled at once for a front end that does not negotiate PROTOCOL_FEATURES', async () => {
      const driver = await daemon().prepare(OPTIONS);
      const { frontend } = driver;
      const features = (1n << 32n) | (1n << 15n);
      await frontend.require(REQUEST.SET_FEATURES, new Uint8Array(new BigUint64Array([features]).buffer));
      for (const ring of frontend.rings) {
        await frontend.configureRing(ring);
        await frontend.require(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]);
      }
      driver.post(2, 2048);
      daemon().host.send(testFrame(5));

      await expectNextSeed(driver, 5);
      await driver.sendFrame(testFrame(6));
      expect(await nextOnHost()).toBe(6);
    });
  });

  describe.each([1, 2])('two pairs of rings on %i threads', (threads) => {
    const daemon = hostileNetDaemon({ extra: ['--num-queue-pairs=2', `--threads=${threads}`] });
    const FLOWS = 64;

    const flow = (port: number): Uint8Array => {
      const frame = udpFrame(port, 100);
      new DataView(frame.buffer).setUint16(34, 10_000 + port);
      return frame;
    };

    it('both send', async () => {
      const driver = await daemon().start({ ...OPTIONS, pairs: 2 });

      for (let i = 0; i < 10; i += 1) {
        await driver.sendFrame(testFrame(i), i % 2);
        expect(seedOf((await daemon().host.receive(1))[0] as Uint8Array)).toBe(i);
      }
    });

    it('share what comes, and each packet comes once', async () => {
      const driver = await daemon().start({ ...OPTIONS, pairs: 2, queueSize: 128 });
      const host = daemon().openHost({ ethertype: ETHERTYPE_IPV4 });
      driver.post(128, 2048, 0);
      driver.post(128, 2048, 1);
      for (const pair of [0, 1]) {
        await driver.sendFrame(testFrame(pair), pair);
        await daemon().host.receive(1);
      }
      for (let i = 0; i < FLOWS; i += 1) host.send(flow(i));

      const ports: number[][] = [[], []];
      while (ports.flat().length < FLOWS) {
        for (const pair of [0, 1]) {
          while (driver.rx(pair).seen !== driver.rx(pair).usedIndex) {
            const { frame } = await driver.receive(pair);
            ports[pair]?.push(new DataView(frame.buffer, frame.byteOffset).getUint16(34) - 10_000);
          }
        }
        await driver.frontend.connection.ask(REQUEST.GET_FEATURES);
      }

      expect(ports.flat().sort((a, b) => a - b)).toEqual(Array.from({ length: FLOWS }, (_, i) => i));
      expect(Math.min(...ports.map(({ length }) => length))).toBeGreaterThan(0);
    });

    it('of which the second is disabled again leave everything to the first', async () => {
      const driver = await daemon().start({ ...OPTIONS, pairs: 2, queueSize: 128 });
      const host = daemon().openHost({ ethertype: ETHERTYPE_IPV4 });
      driver.post(128, 2048, 0);
      driver.post(128, 2048, 1);
      await driver.sendFrame(testFrame(1), 1);
      await daemon().host.receive(1);
      for (const ring of [2, 3]) await driver.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring, 0));

      for (let i = 0; i < FLOWS; i += 1) host.send(flow(i));

      for (let i = 0; i < FLOWS; i += 1) {
        const { frame } = await driver.receive(0);
        expect(new DataView(frame.buffer, frame.byteOffset).getUint16(34)).toBe(10_000 + i);
      }
    });
  });

  describe('a daemon that cannot take packets', () => {
    const daemon = hostileNetDaemon({ extra: ['--poll-us=100'] });
    const SPAN_MS = 300;
    /** Of the span; the kernel counts in steps of 10 ms. */
    const MOST_CPU_MS = 60;

    /** Floods the TAP for a while. Returns how much CPU time and memory the daemon needed for that. */
    const flood = async (perTick: number): Promise<{ cpuMs: number; grownBytes: number; sent: number }> => {
      const { host, pid } = daemon();
      let sent = 0;
      const before = daemon().rssBytes();
      const storm = setInterval(() => {
        for (let i = 0; i < perTick; i += 1, sent += 1) host.send(testFrame(sent, 1000));
      }, 2);
      try {
        const cpuMs = await cpuDuring(pid, SPAN_MS);
        return { cpuMs, grownBytes: daemon().rssBytes() - before, sent };
      } finally {
        clearInterval(storm);
      }
    };

    const expectQuiet = async (): Promise<void> => {
      // What was before may come to its end in the first of them, and on a busy machine it may be no flood.
      const end = performance.now() + 15_000;
      let seen = await flood(50);
      while ((seen.sent <= 1000 || seen.cpuMs > MOST_CPU_MS) && performance.now() < end) seen = await flood(50);
      const { cpuMs, grownBytes, sent } = seen;
      expect(sent).toBeGreaterThan(1000);
      expect(cpuMs).toBeLessThanOrEqual(MOST_CPU_MS);
      expect(grownBytes).toBeLessThan(8 << 20);
    };

    it('because nobody is connected sleeps through a flood', async () => {
      await expectQuiet();
    });

    it('because no buffer is offered sleeps through a flood, and serves after it', async () => {
      const driver = await daemon().start(OPTIONS);
      await driver.sendFrame(testFrame(1));
      await daemon().host.receive(1);

      await expectQuiet();

      driver.post(8, 2048);
      expect((await driver.receive()).frame.length).toBe(1000);
    });

    it('because too few mergeable buffers are offered sleeps through a flood, and serves after it', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.offer(0, [500]);
      driver.rx().signal();
      await driver.sendFrame(testFrame(1));
      await daemon().host.receive(1);

      await expectQuiet();

      expect(driver.rx().usedIndex).toBe(0);
      for (let head = 1; head < 40; head += 1) driver.offer(head, [500]);
      driver.rx().signal();
      expect((await driver.receive()).frame.length).toBe(1000);
    });

    it('because its rings are disabled sleeps through a flood, and serves after it', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(8, 2048);
      for (const ring of [0, 1]) await driver.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring, 0));

      await expectQuiet();

      await driver.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 1));
      expect((await driver.receive()).frame.length).toBe(1000);
    });

    it('because its rings are stopped sleeps through a flood, and serves after it', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(8, 2048);
      const base = await driver.frontend.stopRing(driver.rx());
      await driver.frontend.stopRing(driver.tx());

      await expectQuiet();

      await driver.frontend.startRing(driver.rx(), base);
      expect((await driver.receive()).frame.length).toBe(1000);
    });

    it('because its receive ring is broken sleeps through a flood', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.rx().publish(9999);
      driver.rx().signal();
      await driver.rx().waitForError();

      await expectQuiet();

      await driver.sendFrame(testFrame(7));
      expect(seedOf((await daemon().host.receive(1))[0] as Uint8Array)).toBe(7);
    });

    it('sleeps when nothing comes, with buffers offered', async () => {
      const driver = await daemon().start(OPTIONS);
      driver.post(8, 2048);
      await driver.sendFrame(testFrame(1));
      await daemon().host.receive(1);

      expect(await cpuWhenIdle(daemon().pid, SPAN_MS, 20)).toBeLessThanOrEqual(20);

      daemon().host.send(testFrame(5));
      expect(seedOf((await driver.receive()).frame)).toBe(5);
    });
  });
});
