/**
 * The daemon is killed by SIGKILL under write load and started again; the front end attaches again with the in-flight
 * region that it kept. Every request is returned exactly once, and every write is on the disk.
 * Source: vhost-user, Inflight I/O tracking.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { FEATURE, hasBit, inflight, PROTOCOL, REQUEST, readInflight } from '../support/frontend/wire.ts';
import { createImage } from '../support/image.ts';

const QUEUE_SIZE = 64;
const SLOTS = 16;
const BLOCK = 4096;
const BLOCKS = 256;
const SHAPE = { mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: QUEUE_SIZE };
/** Without FLUSH every write must be on stable storage before it is returned: they stay in flight for a while. */
const optionsWith = (...features: number[]) => ({
  queueSize: QUEUE_SIZE,
  ramBytes: 4 << 20,
  features,
  protocolFeatures: [PROTOCOL.INFLIGHT_SHMFD],
});

const cleanup = cleanupAfterEach();

interface Outstanding {
  readonly block: number;
  readonly sequence: number;
  readonly area: RequestArea;
}

/** A driver that keeps SLOTS writes in flight, each to a block that no other one in flight writes to. */
class WriteLoad {
  frontend: RawFrontend;
  readonly #free = Array.from({ length: SLOTS }, (_, i) => i);
  readonly #outstanding = new Map<number, Outstanding>();
  /** Sequence number of the last write to each block. */
  readonly written = new Uint32Array(BLOCKS);
  submitted = 0;
  returned = 0;

  constructor(frontend: RawFrontend) {
    this.frontend = frontend;
  }

  get inFlight(): number {
    return this.#outstanding.size;
  }

  /** Takes what came back. @throws Error - a head that is not in flight or not its turn, or a write that failed */
  harvest(): void {
    const inOrder = hasBit(this.frontend.features, FEATURE.IN_ORDER);
    for (const { id } of this.frontend.queue().harvest()) {
      const request = this.#outstanding.get(id);
      if (request === undefined) throw new Error(`head ${id} came back, but is not in flight`);
      const [oldest] = this.#outstanding.keys();
      if (inOrder && id !== oldest) throw new Error(`head ${id} came back before head ${oldest}`);
      if (request.area.statusByte !== STATUS.OK) throw new Error(`write failed with ${request.area.statusByte}`);
      this.#outstanding.delete(id);
      this.#free.push(id / 3);
      this.returned += 1;
    }
  }

  /** Fills the ring up. */
  submit(): void {
    const ring = this.frontend.queue();
    const busy = new Set([...this.#outstanding.values()].map(({ block }) => block));
    for (let slot = this.#free.shift(); slot !== undefined; slot = this.#free.shift()) {
      this.submitted += 1;
      let block = (this.submitted * 37) % BLOCKS;
      while (busy.has(block)) block = (block + 1) % BLOCKS;
      busy.add(block);
      const out = new Uint8Array(new Uint32Array(BLOCK / 4).fill(this.submitted).buffer);
      const area = prepareRequest(this.frontend, { type: TYPE.OUT, sector: block * 8, out }, 3 * slot, slot);
      this.#outstanding.set(3 * slot, { block, sequence: this.submitted, area });
      this.written[block] = this.submitted;
      ring.publish(3 * slot);
    }
    ring.signal();
  }

  /** Keeps the load up until `count` writes came back. */
  async run(count: number): Promise<void> {
    const until = this.returned + count;
    await eventually(
      'returned writes',
      () => {
        this.harvest();
        this.submit();
        return this.returned;
      },
      (returned) => returned >= until,
      10_000,
    );
  }

  async drain(): Promise<void> {
    await eventually(
      'writes in flight',
      () => {
        this.harvest();
        return this.inFlight;
      },
      (count) => count === 0,
      10_000,
    );
  }
}

const attach = async (frontend: RawFrontend, region: OwnedFd | undefined, base: number): Promise<OwnedFd> => {
  await frontend.negotiate();
  await frontend.shareMemory();
  const { payload, fds } = await frontend.connection.call(REQUEST.GET_INFLIGHT_FD, inflight(SHAPE));
  const [fresh] = fds;
  if (fresh === undefined || fds.length !== 1) throw new Error(`GET_INFLIGHT_FD brought ${fds.length} descriptors`);
  cleanup.add(() => fresh.close());
  const shape = readInflight(payload);
  const kept = region ?? fresh;
  await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(shape), [kept]);
  await frontend.startRing(frontend.queue(), base);
  frontend.queue().signal();
  return kept;
};

/** The image must hold the last write to each block. */
const expectOnDisk = (image: string, load: WriteLoad): void => {
  const bytes = readFileSync(image);
  const found = Array.from({ length: BLOCKS }, (_, block) => bytes.readUInt32LE(block * BLOCK));
  expect(found).toEqual([...load.written]);
  const torn = found.filter((sequence, block) => bytes.readUInt32LE(block * BLOCK + BLOCK - 4) !== sequence);
  expect(torn).toEqual([]);
};

/** What a front end says as the base: Cloud Hypervisor the available index, QEMU what it saved. */
const SPLIT_BASES: [string, (frontend: RawFrontend) => number][] = [
  ['the available index', (frontend) => frontend.ring().availIndex],
  ['the used index', (frontend) => frontend.ring().usedIndex],
  ['0', () => 0],
];

/** A packed ring has no indices in memory: QEMU says what it saved, a driver of its own what it knows. */
const PACKED_BASES: [string, (frontend: RawFrontend) => number][] = [
  [
    'where the driver stands',
    (frontend) => frontend.packedRing().baseAt(frontend.packedRing().availPlace, frontend.packedRing().usedPlace),
  ],
  ['the beginning', (frontend) => frontend.packedRing().initialBase],
];

/** Requests that were in flight at one of the kills. */
let resubmitted = 0;

/** Kills a daemon four times in the middle of writes. */
const survive = async (extra: string[], features: number[], baseOf: (frontend: RawFrontend) => number) => {
  const image = createImage(join(cleanup.directory(), 'disk.img'), BLOCKS * BLOCK);
  const backend = await BlkBackend.start(cleanup, { image, extra });
  const load = new WriteLoad(RawFrontend.connect(backend.socket, optionsWith(...features)));
  cleanup.add(() => load.frontend.close());
  const region = await attach(load.frontend, undefined, load.frontend.queue().initialBase);

  for (let round = 0; round < 4; round += 1) {
    await load.run(50 + 37 * round);
    load.submit();
    await backend.kill9();
    await backend.restart();
    load.frontend = load.frontend.reconnect(backend.socket);
    await attach(load.frontend, region, baseOf(load.frontend));
    resubmitted += Number(/resubmitting (\d+)/.exec(backend.log())?.[1] ?? 0);
  }
  await load.drain();

  const ring = load.frontend.queue();
  expect(load.returned).toBe(load.submitted);
  expect(ring.usedIndex).toBe(load.submitted & 0xffff);
  expect(await load.frontend.stopRing(ring)).toBe(ring.drainedBase);
  expectOnDisk(image, load);
};

describe.each([
  ['io_uring', ['--engine=io_uring']],
  ['io_uring with O_DIRECT', ['--engine=io_uring', '--direct']],
  ['threads', ['--engine=threads']],
])('a daemon (%s) killed under write load and started again loses and repeats nothing', (_, extra) => {
  it.each(SPLIT_BASES)('of a split ring, with %s as the base', async (_base, baseOf) => {
    await survive(extra, [], baseOf);
  });

  it.each(PACKED_BASES)('of a packed ring, with %s as the base', async (_base, baseOf) => {
    await survive(extra, [FEATURE.RING_PACKED], baseOf);
  });

  it('of a split ring in order', async () => {
    await survive(extra, [FEATURE.IN_ORDER], (frontend) => frontend.ring().usedIndex);
  });

  it('of a packed ring in order', async () => {
    await survive(extra, [FEATURE.RING_PACKED, FEATURE.IN_ORDER], ({ queues }) => queues[0]?.initialBase ?? 0);
  });
});

describe('of the kills above', () => {
  it('some hit requests in flight, or they showed nothing', () => {
    expect(resubmitted).toBeGreaterThan(0);
  });
});

describe.each([
  ['split', []],
  ['packed', [FEATURE.RING_PACKED]],
])('an orderly stop of a %s ring under write load', (_, features) => {
  it('leaves nothing in flight that the next daemon would do again', async () => {
    const image = createImage(join(cleanup.directory(), 'disk.img'), BLOCKS * BLOCK);
    const backend = await BlkBackend.start(cleanup, { image });
    const load = new WriteLoad(RawFrontend.connect(backend.socket, optionsWith(...features)));
    cleanup.add(() => load.frontend.close());
    const region = await attach(load.frontend, undefined, load.frontend.queue().initialBase);
    await load.run(100);

    await backend.sigterm();
    await backend.restart();
    load.frontend = load.frontend.reconnect(backend.socket);
    await attach(load.frontend, region, load.frontend.queue().drainedBase);
    await load.run(100);
    await load.drain();

    expect(load.returned).toBe(load.submitted);
    expect(backend.log()).not.toMatch(/resubmitting/);
    expectOnDisk(image, load);
  });

  it('by GET_VRING_BASE waits for every request that was taken', async () => {
    const image = createImage(join(cleanup.directory(), 'disk.img'), BLOCKS * BLOCK);
    const backend = await BlkBackend.start(cleanup, { image });
    const load = new WriteLoad(RawFrontend.connect(backend.socket, optionsWith(...features)));
    cleanup.add(() => load.frontend.close());
    const region = await attach(load.frontend, undefined, load.frontend.queue().initialBase);

    for (let round = 0; round < 20; round += 1) {
      load.submit();
      const base = await load.frontend.stopRing(load.frontend.queue());
      expect(base).toBe(load.frontend.queue().drainedBase);
      load.harvest();
      await load.frontend.require(REQUEST.SET_INFLIGHT_FD, inflight({ ...SHAPE, mmapSize: 4096 }), [region]);
      await load.frontend.startRing(load.frontend.queue(), base);
      load.frontend.queue().signal();
    }
    await load.drain();

    expect(load.returned).toBe(load.submitted);
    expectOnDisk(image, load);
  });
});
