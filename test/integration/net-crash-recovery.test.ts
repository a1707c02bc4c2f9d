/**
 * The network daemon is killed by SIGKILL under load both ways and started again; the front end attaches again with the
 * in-flight region that it kept. Every buffer and every packet comes back exactly once, whole and in order.
 * Source: vhost-user, Inflight I/O tracking.
 */

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SharedMapping } from '../../protocol/sys/mapping.ts';
import { type OwnedFd, statFd } from '../../protocol/sys/owned-fd.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { NetDriver } from '../support/frontend/net-driver.ts';
import { NET_FEATURE, netHeader, readNetHeader, seedOf, testFrame } from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawRing } from '../support/frontend/raw-ring.ts';
import { inflight, PROTOCOL, REQUEST, readInflight, vringFd, vringState } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const QUEUE_SIZE = 64;
const BUFFER_BYTES = 2048;
const SEND_BYTES = 16_384;
const HEADER = 12;
const SHAPE = { mmapSize: 0, mmapOffset: 0, numQueues: 2, queueSize: QUEUE_SIZE };
const OPTIONS = {
  queueSize: QUEUE_SIZE,
  features: [NET_FEATURE.MRG_RXBUF],
  protocolFeatures: [PROTOCOL.INFLIGHT_SHMFD],
};

const cleanup = cleanupAfterEach();

/** Small ones mostly, and some that need several buffers. */
const frameOf = (seed: number): Uint8Array =>
  testFrame(seed, seed % 7 === 0 ? 3000 + (seed % 5000) : 60 + (seed % 1400));

/** A driver that keeps both rings full, and the host's side that sends and looks. */
class Load {
  driver: NetDriver;
  readonly #daemon: NetDaemon;
  readonly #posted = new Set<number>();
  readonly #sending = new Set<number>();
  readonly #sendArea: number;
  /** Frames that the host has sent, by number of them, and the last one that arrived. */
  toGuest = 0;
  #lastInGuest = -1;
  inGuest = 0;
  /** Frames that the driver has sent, and those that the host has seen. */
  sent = 0;
  readonly onHost = new Set<number>();

  constructor(daemon: NetDaemon, driver: NetDriver) {
    this.#daemon = daemon;
    this.driver = driver;
    for (let head = 0; head < QUEUE_SIZE; head += 1) {
      driver.layBuffer(head, [{ at: driver.allocate(BUFFER_BYTES), length: BUFFER_BYTES }]);
    }
    this.#sendArea = driver.allocate(QUEUE_SIZE * SEND_BYTES);
  }

  get waiting(): number {
    return this.#sending.size;
  }

  /** One round of everything. @throws Error - something came back that was not given, or not as it was */
  step(): void {
    this.#harvest();
    const rx = this.driver.rx();
    for (let head = 0; head < QUEUE_SIZE; head += 1) {
      if (this.#posted.has(head)) continue;
      this.#posted.add(head);
      rx.publish(head);
    }
    rx.signal();
    const tx = this.driver.tx();
    for (let head = 0; head < QUEUE_SIZE; head += 1) {
      if (this.#sending.has(head)) continue;
      this.#sending.add(head);
      const bytes = new Uint8Array(Buffer.concat([netHeader(), frameOf(this.sent)]));
      const at = this.#sendArea + head * SEND_BYTES;
      this.driver.frontend.ram.bytes.set(bytes, at);
      tx.setDescriptor(head, { address: this.driver.frontend.ram.guest(at), length: bytes.length });
      tx.publish(head);
      this.sent += 1;
    }
    tx.signal();
    for (let i = 0; i < 8; i += 1, this.toGuest += 1) this.#daemon.host.send(frameOf(this.toGuest));
    this.look();
  }

  #harvest(): void {
    const { driver } = this;
    for (const { id } of this.#used(driver.tx())) {
      if (!this.#sending.delete(id)) throw new Error(`head ${id} was sent, but not given`);
    }
    const used = this.#used(driver.rx());
    for (let i = 0; i < used.length; ) {
      const [{ id, length }] = used.slice(i) as [{ id: number; length: number }];
      const header = readNetHeader(driver.contentOf(id, Math.min(length, HEADER)));
      const parts = used.slice(i, i + header.numBuffers);
      if (parts.length === 0 || parts.length < header.numBuffers) {
        throw new Error(`a packet of ${header.numBuffers} buffers, of which ${parts.length} are there`);
      }
      for (const part of parts) {
        if (!this.#posted.delete(part.id)) throw new Error(`buffer ${part.id} was filled, but not given`);
      }
      const bytes = Buffer.concat(parts.map((part) => driver.contentOf(part.id, part.length)));
      this.#check(new Uint8Array(bytes).subarray(HEADER));
      i += parts.length;
    }
  }

  #used(ring: RawRing): { id: number; length: number }[] {
    const entries = [];
    for (const end = ring.usedIndex; ring.seen !== end; ring.seen = (ring.seen + 1) & 0xffff) {
      entries.push(ring.usedEntry(ring.seen));
    }
    return entries;
  }

  #check(frame: Uint8Array): void {
    const seed = seedOf(frame);
    if (seed <= this.#lastInGuest) throw new Error(`frame ${seed} came after frame ${this.#lastInGuest}`);
    this.#lastInGuest = seed;
    if (Buffer.compare(frame, frameOf(seed)) !== 0) throw new Error(`frame ${seed} is not what was sent to the guest`);
    this.inGuest += 1;
  }

  /** What arrived on the host. */
  look(): void {
    for (let frame = this.#daemon.host.poll(); frame !== undefined; frame = this.#daemon.host.poll()) {
      const seed = seedOf(frame);
      if (Buffer.compare(frame, frameOf(seed)) !== 0) throw new Error(`frame ${seed} is not what was sent to the host`);
      this.onHost.add(seed);
    }
  }

  /** Keeps the load up until `count` more frames arrived in the guest. */
  async run(count: number): Promise<void> {
    const until = this.inGuest + count;
    await eventually(
      'frames in the guest',
      () => {
        this.step();
        return this.inGuest;
      },
      (arrived) => arrived >= until,
      10_000,
    );
  }

  /** Nothing more is given; waits for what is on its way to the host. */
  async drain(): Promise<void> {
    await eventually(
      'frames that are being sent',
      () => {
        this.#harvest();
        this.look();
        return this.waiting;
      },
      (count) => count === 0,
      10_000,
    );
    this.look();
  }
}

const attach = async ({ frontend }: NetDriver, region: OwnedFd | undefined, baseOf: (ring: RawRing) => number) => {
  await frontend.negotiate();
  await frontend.shareMemory();
  const { payload, fds } = await frontend.connection.call(REQUEST.GET_INFLIGHT_FD, inflight(SHAPE));
  const [fresh] = fds as [OwnedFd];
  cleanup.add(() => fresh.close());
  const kept = region ?? fresh;
  await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(readInflight(payload)), [kept]);
  for (const ring of frontend.rings) {
    await frontend.configureRing(ring, baseOf(ring));
    // Before it is started, or what waits to be sent would be dropped.
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(ring.index, 1));
    await frontend.require(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]);
  }
  return kept;
};

/** Bytes of a queue's part of a region that the daemon makes: 32 + 32 * 1024, to the next multiple of 64. */
const STRIDE = 32_832;

/** Heads that a region says are in flight: a byte that is 1, each 16 bytes from 16 on, in each queue's part. */
const headsInFlight = (region: Uint8Array): number => {
  let count = 0;
  for (let queue = 0; queue < SHAPE.numQueues; queue += 1) {
    for (let head = 0; head < QUEUE_SIZE; head += 1) count += region[queue * STRIDE + 16 + 16 * head] ?? 0;
  }
  return count;
};

/** Heads are in flight for microseconds: the daemon is stopped until it is in such a moment, then killed. */
const killWithHeadsInFlight = async (daemon: NetDaemon, load: Load, region: OwnedFd): Promise<number> => {
  const mapping = new SharedMapping(region.fd, 0, statFd(region.fd).size);
  const bytes = new Uint8Array(mapping.view(0, statFd(region.fd).size));
  try {
    let tries = 0;
    do {
      daemon.signal('SIGCONT');
      load.step();
      daemon.signal('SIGSTOP');
      const stat = `/proc/${daemon.pid}/stat`;
      await eventually(
        'the daemon',
        () => readFileSync(stat, 'utf8'),
        (text) => /\) T /.test(text),
      );
      tries += 1;
    } while (tries < 300 && headsInFlight(bytes) === 0);
    const count = headsInFlight(bytes);
    await daemon.kill9();
    return count;
  } finally {
    mapping.retire();
  }
};

/** Heads that were in flight at one of the kills. */
let resubmitted = 0;

describeWithPeers(namespacePeers, 'a network device', () => {
  describe('a daemon killed under load both ways', () => {
    it.each<[string, (ring: RawRing) => number]>([
      ['the available index', (ring) => ring.availIndex],
      ['the used index', (ring) => ring.usedIndex],
      ['0', () => 0],
    ])('and started again loses and repeats nothing, with %s as the base', async (_, baseOf) => {
      const before = 'ip tuntap add tap0 mode tap; ip link set tap0 mtu 9000; ip link set tap0 up';
      const daemon = await NetDaemon.start(cleanup, { before });
      const driver = NetDriver.connect(daemon.socket, OPTIONS);
      const load = new Load(daemon, driver);
      cleanup.add(() => load.driver.close());
      const region = await attach(driver, undefined, () => 0);

      for (let round = 0; round < 3; round += 1) {
        await load.run(300 + 37 * round);
        resubmitted += await killWithHeadsInFlight(daemon, load, region);
        load.look();
        await daemon.restart();
        load.driver = load.driver.reconnect(daemon.socket);
        await attach(load.driver, region, baseOf);
      }
      await load.run(100);
      await load.drain();

      expect(load.onHost.size).toBe(load.sent);
      expect(load.inGuest).toBeGreaterThan(1000);
      for (const ring of load.driver.frontend.rings) {
        expect(await load.driver.frontend.stopRing(ring)).toBe(ring.usedIndex);
      }
      expect(load.driver.tx().usedIndex).toBe(load.sent & 0xffff);
    });
  });

  describe('of the kills above', () => {
    it('some hit heads in flight, or they showed nothing', () => {
      expect(resubmitted).toBeGreaterThan(0);
    });
  });

  describe('an orderly stop under load both ways', () => {
    it('leaves nothing in flight', async () => {
      const before = 'ip tuntap add tap0 mode tap; ip link set tap0 mtu 9000; ip link set tap0 up';
      const daemon = await NetDaemon.start(cleanup, { before });
      const load = new Load(daemon, NetDriver.connect(daemon.socket, OPTIONS));
      cleanup.add(() => load.driver.close());
      const region = await attach(load.driver, undefined, () => 0);
      await load.run(200);

      daemon.signal('SIGTERM');
      expect((await daemon.waitForExit()).code).toBe(0);
      await daemon.restart();
      load.driver = load.driver.reconnect(daemon.socket);
      await attach(load.driver, region, (ring) => ring.usedIndex);
      await load.run(200);
      await load.drain();

      expect(daemon.log()).not.toMatch(/resubmitting/);
      expect(load.onHost.size).toBe(load.sent);
    });
  });
});
