/**
 * A network device whose two pairs of queues are served by two threads: traffic both ways on both, while rings are stopped,
 * memory is replaced, the device is reset, commands are given, the daemon is killed. What was answered is done on every
 * thread.
 */

import { describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { hostileNetDaemon, NetDaemon } from '../support/frontend/net-daemon.ts';
import { NetDriver } from '../support/frontend/net-driver.ts';
import { NetGuest } from '../support/frontend/net-guest.ts';
import type { HostSide } from '../support/frontend/net-host.ts';
import {
  GSO,
  NEEDS_CSUM,
  NET_FEATURE,
  netHeader,
  seedOf,
  tcpFrame,
  testFrame,
  udpFrame,
} from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawDescriptor, RawRing } from '../support/frontend/raw-ring.ts';
import {
  inflight,
  memoryTable,
  PROTOCOL,
  REQUEST,
  readInflight,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const ETHERTYPE_IPV4 = 0x0800;
const THREADS = ['--num-queue-pairs=2', '--threads=2'];
const QUEUE_SIZE = 64;
const OPTIONS = {
  pairs: 2,
  queueSize: QUEUE_SIZE,
  ramBytes: 2 << 20,
  features: [NET_FEATURE.MRG_RXBUF],
  protocolFeatures: [PROTOCOL.INFLIGHT_SHMFD, PROTOCOL.RESET_DEVICE],
};
const PAIRS = [0, 1] as const;
const FLOWS = 64;
const BUFFER_BYTES = 2048;
const FRAME_BYTES = 200;
const SHAPE = { mmapSize: 0, mmapOffset: 0, numQueues: 4, queueSize: QUEUE_SIZE };

/** A frame of one of many flows, which the TAP spreads over its queues. */
const flow = (frame: Uint8Array, number: number): Uint8Array => {
  new DataView(frame.buffer, frame.byteOffset).setUint16(34, 10_000 + (number % FLOWS));
  return frame;
};

/** A driver that keeps all its rings full, and the host's side that sends flows and looks. */
class Load {
  driver: NetDriver;
  readonly host: HostSide;
  readonly #flows: HostSide;
  readonly #sending: Set<number>[] = [new Set(), new Set()];
  readonly #area: number;
  /** Frames sent, and those that the host has seen. */
  sent = 0;
  readonly onHost = new Set<number>();
  /** Buffers of each pair that came back filled. */
  readonly received = [0, 0];
  #toGuest = 0;

  constructor(daemon: NetDaemon, driver: NetDriver) {
    this.driver = driver;
    this.host = daemon.host;
    this.#flows = daemon.openHost({ ethertype: ETHERTYPE_IPV4 });
    this.#area = driver.allocate(2 * QUEUE_SIZE * FRAME_BYTES);
  }

  /** Offers all receive buffers for the first time. */
  post(): void {
    for (const pair of PAIRS) this.driver.post(QUEUE_SIZE, BUFFER_BYTES, pair);
  }

  #used(ring: RawRing): number[] {
    const heads: number[] = [];
    for (const end = ring.usedIndex; ring.seen !== end; ring.seen = (ring.seen + 1) & 0xffff) {
      heads.push(ring.usedEntry(ring.seen).id);
    }
    return heads;
  }

  /** Takes what came back. @throws Error - it was not given */
  harvest(): void {
    for (const pair of PAIRS) {
      for (const head of this.#used(this.driver.tx(pair))) {
        if (!this.#sending[pair]?.delete(head)) throw new Error(`pair ${pair}: head ${head} was sent, but not given`);
      }
      const filled = this.#used(this.driver.rx(pair));
      this.received[pair] = (this.received[pair] as number) + filled.length;
      this.driver.rx(pair).publish(...filled);
      this.driver.rx(pair).signal();
    }
    this.#look();
  }

  #look(): void {
    for (let frame = this.host.poll(); frame !== undefined; frame = this.host.poll()) {
      const seed = seedOf(frame);
      if (Buffer.compare(frame, testFrame(seed, 60 + (seed % 100))) !== 0) throw new Error(`frame ${seed} is damaged`);
      this.onHost.add(seed);
    }
  }

  /** Frames of many flows for the guest. */
  flood(count: number): void {
    for (let i = 0; i < count; i += 1, this.#toGuest += 1) this.#flows.send(flow(udpFrame(1, 100), this.#toGuest));
  }

  step(): void {
    this.harvest();
    for (const pair of PAIRS) {
      const tx = this.driver.tx(pair);
      for (let head = 0; head < QUEUE_SIZE; head += 1) {
        if (this.#sending[pair]?.has(head) === true) continue;
        const bytes = new Uint8Array(Buffer.concat([netHeader(), testFrame(this.sent, 60 + (this.sent % 100))]));
        const at = this.#area + (pair * QUEUE_SIZE + head) * FRAME_BYTES;
        this.driver.frontend.ram.bytes.set(bytes, at);
        tx.setDescriptor(head, { address: this.driver.frontend.ram.guest(at), length: bytes.length });
        tx.publish(head);
        this.#sending[pair]?.add(head);
        this.sent += 1;
      }
      tx.signal();
    }
    this.flood(16);
  }

  /** Keeps the load up until so many more buffers of each pair were filled. */
  async run(count: number): Promise<void> {
    const until = this.received.map((received) => received + count);
    await eventually(
      'frames on both pairs',
      () => {
        this.step();
        return this.received;
      },
      (received) => received.every((got, pair) => got >= (until[pair] as number)),
      20_000,
    );
  }

  /** Gives nothing more, and waits until the host has everything. */
  async drain(): Promise<void> {
    await eventually(
      'frames on the host',
      () => {
        this.harvest();
        return this.onHost.size;
      },
      (count) => count === this.sent,
      20_000,
    );
  }
}

describeWithPeers(namespacePeers, 'a network device on two threads', () => {
  describe('under load on both pairs', () => {
    const daemon = hostileNetDaemon({ extra: THREADS });

    const start = async (): Promise<Load> => {
      const load = new Load(daemon(), await daemon().start(OPTIONS));
      load.post();
      return load;
    };

    const stopAll = async ({ driver: { frontend } }: Load): Promise<number[]> => {
      const bases: number[] = [];
      for (const ring of frontend.rings) bases.push(await frontend.stopRing(ring));
      return bases;
    };

    const startAll = async ({ driver: { frontend } }: Load, bases: readonly number[]): Promise<void> => {
      for (const ring of frontend.rings) {
        await frontend.configureRing(ring, bases[ring.index]);
        // What waits to be sent on a ring that is started and disabled is dropped.
        await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring.index, 1));
        await frontend.require(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]);
      }
    };

    /** Whatever comes and is kicked, the memory stays as it is. */
    const expectUntouched = async (load: Load): Promise<void> => {
      const { frontend } = load.driver;
      const before = Buffer.from(frontend.ram.bytes);
      for (let i = 0; i < 5; i += 1) {
        load.flood(50);
        for (const ring of frontend.rings) ring.signal();
        await frontend.connection.ask(REQUEST.GET_FEATURES);
      }
      expect(before.equals(frontend.ram.bytes)).toBe(true);
    };

    it('has a data path in each, and both move packets', async () => {
      const load = await start();
      await load.run(200);
      await load.drain();

      expect(
        daemon()
          .log()
          .match(/packets are moved by/g),
      ).toHaveLength(2);
    });

    it('touches no memory after GET_VRING_BASE, and goes on where it was', async () => {
      const load = await start();
      for (let round = 0; round < 8; round += 1) {
        await load.run(40);
        const bases = await stopAll(load);
        expect(bases).toEqual(load.driver.frontend.rings.map((ring) => ring.usedIndex));
        await expectUntouched(load);
        await startAll(load, bases);
      }
      await load.run(40);
      await load.drain();
    });

    it('touches no memory after RESET_DEVICE', async () => {
      for (let round = 0; round < 4; round += 1) {
        const load = await start();
        await load.run(40);
        await load.driver.frontend.require(REQUEST.RESET_DEVICE);
        await expectUntouched(load);
        load.driver.close();
      }
    });

    it('loses nothing that is sent while the memory table is replaced', async () => {
      const load = await start();
      const { frontend } = load.driver;
      for (let round = 0; round < 20; round += 1) {
        await load.run(20);
        load.step();
        await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([frontend.ram.region()]), [frontend.ram.fd]);
      }
      await load.drain();
    });

    it('serves one driver after the other', async () => {
      for (let round = 0; round < 5; round += 1) {
        const load = await start();
        await load.run(30);
        load.driver.close();
      }
    });
  });

  describe('a command', () => {
    const daemon = hostileNetDaemon({ extra: [...THREADS, '--ctrl-vq'] });

    const start = async (features: readonly number[]): Promise<NetGuest> =>
      daemon().keep(await NetGuest.start(daemon().socket, { pairs: 2, features }));

    it('about pairs is done when it is answered, while packets come', async () => {
      const guest = await start([NET_FEATURE.MRG_RXBUF]);
      const host = daemon().openHost({ ethertype: ETHERTYPE_IPV4 });
      const tx = guest.driver.tx(1);
      const [packet] = guest.driver.place(new Uint8Array(Buffer.concat([netHeader(), testFrame(1, 1500)])));
      for (let head = 0; head < tx.size; head += 1) tx.setDescriptor(head, packet as RawDescriptor);
      let free = Array.from({ length: tx.size }, (_, head) => head);
      /** Keeps the other thread in the midst of sending. */
      const sendMany = (): void => {
        tx.publish(...free, ...tx.harvest().map(({ id }) => id));
        free = [];
        tx.signal();
        while (daemon().host.poll() !== undefined);
      };
      let number = 0;
      const comesTo = async (pair: number): Promise<void> => {
        let got = 0;
        await eventually(
          `frames of pair ${pair}`,
          () => {
            for (let i = 0; i < 16; i += 1, number += 1) host.send(flow(udpFrame(1, 100), number));
            sendMany();
            for (const each of PAIRS) got += guest.takeFrames(each).length * Number(each === pair);
            return got;
          },
          (count) => count >= 30,
          20_000,
        );
      };

      for (let round = 0; round < 40; round += 1) {
        await guest.require(4, 0, 2, 0);
        await comesTo(1);
        sendMany();
        await guest.require(4, 0, 1, 0);
        const before = guest.driver.rx(1).usedIndex;
        await comesTo(0);
        expect(guest.driver.rx(1).usedIndex).toBe(before);
      }
      expect(daemon().log()).not.toContain('a packet was lost');
    });

    it('about offloads is done when it is answered, while segments come', async () => {
      const offloads = [NET_FEATURE.CTRL_GUEST_OFFLOADS, NET_FEATURE.GUEST_CSUM, NET_FEATURE.GUEST_TSO4];
      const guest = await start([NET_FEATURE.MRG_RXBUF, ...offloads]);
      await guest.require(4, 0, 2, 0);
      const host = daemon().openHost({ ethertype: ETHERTYPE_IPV4, vnetHeader: true });
      const gso = netHeader(
        { flags: NEEDS_CSUM, gsoType: GSO.TCPV4, gsoSize: 1448, hdrLen: 54, csumStart: 34, csumOffset: 16 },
        10,
      );
      let number = 0;
      const flood = (): void => {
        for (let i = 0; i < 8; i += 1, number += 1) {
          host.send(new Uint8Array(Buffer.concat([gso, flow(tcpFrame(1, 20_000), number)])));
        }
      };
      const { driver } = guest;
      /** Takes packets of both pairs until `isEnough`. Returns the kinds of segmentation they have. */
      const kinds = async (
        isEnough: (counts: readonly number[], kinds: Set<number>) => boolean,
      ): Promise<Set<number>> => {
        const counts = [0, 0];
        const seen = new Set<number>();
        const end = performance.now() + 20_000;
        while (!isEnough(counts, seen)) {
          if (performance.now() > end) throw new Error(`${counts} packets of kinds ${[...seen]}`);
          flood();
          await driver.frontend.connection.ask(REQUEST.GET_FEATURES);
          for (const pair of PAIRS) {
            while (driver.rx(pair).seen !== driver.rx(pair).usedIndex) {
              const packet = await driver.receive(pair);
              seen.add(packet.header.gsoType);
              counts[pair] = (counts[pair] as number) + 1;
              driver.repost(packet, pair);
            }
          }
        }
        return seen;
      };

      for (let round = 0; round < 8; round += 1) {
        // GUEST_CSUM and GUEST_TSO4, then GUEST_CSUM alone.
        await guest.require(5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0);
        await kinds((counts, seen) => seen.has(GSO.TCPV4) && Math.min(...counts) > 0);
        flood();
        await guest.require(5, 0, 0x02, 0, 0, 0, 0, 0, 0, 0);
        // What was there before the answer is what it is.
        for (const pair of PAIRS) {
          const ring = driver.rx(pair);
          for (const end = ring.usedIndex; ring.seen !== end; ) driver.repost(await driver.receive(pair), pair);
        }
        expect(await kinds((counts) => Math.min(...counts) >= 30)).toEqual(new Set([GSO.NONE]));
      }
    });
  });

  describe('that is killed under load', () => {
    const cleanup = cleanupAfterEach();

    const attach = async ({ frontend }: NetDriver, kept: OwnedFd | undefined): Promise<OwnedFd> => {
      await frontend.negotiate();
      await frontend.shareMemory();
      const { payload, fds } = await frontend.connection.call(REQUEST.GET_INFLIGHT_FD, inflight(SHAPE));
      const [fresh] = fds as [OwnedFd];
      cleanup.add(() => fresh.close());
      const region = kept ?? fresh;
      await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(readInflight(payload)), [region]);
      for (const ring of frontend.rings) {
        await frontend.configureRing(ring, ring.usedIndex);
        await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring.index, 1));
        await frontend.require(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]);
      }
      return region;
    };

    it('and started again loses nothing that is sent', async () => {
      const before = 'ip tuntap add tap0 mode tap multi_queue; ip link set tap0 up';
      const daemon = await NetDaemon.start(cleanup, { before, extra: THREADS });
      const load = new Load(daemon, NetDriver.connect(daemon.socket, NetDriver.optionsOf(OPTIONS)));
      cleanup.add(() => load.driver.close());
      const region = await attach(load.driver, undefined);
      load.post();
      for (let round = 0; round < 4; round += 1) {
        await load.run(50);
        load.step();
        await daemon.kill9();
        load.harvest();
        await daemon.restart();
        load.driver = load.driver.reconnect(daemon.socket);
        await attach(load.driver, region);
      }
      await load.run(50);
      await load.drain();

      daemon.signal('SIGTERM');
      expect((await daemon.waitForExit()).code).toBe(0);
      expect(daemon.log()).toMatch(/"transmitted":\d+.*packets since the start/);
    });
  });
});
