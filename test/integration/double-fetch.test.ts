/**
 * A driver that rewrites descriptors, request headers and ring indices from another thread while the daemon looks at
 * them: between check and use, if there were such a gap. Every head comes back, and nothing is touched that should not be.
 */

import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { prepareRequest, type RequestArea, TYPE, UNTOUCHED } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { projectDirectory } from '../support/peers.ts';

const daemon = hostileDaemon();

/** Runs in a thread of its own: writes one value and then the other, as fast as it can, until told to stop. */
const FLIPPER = `
const { workerData, parentPort } = require('node:worker_threads');
(async () => {
  const { SharedMapping } = await import(workerData.module);
  const mapping = new SharedMapping(workerData.fd, 0, workerData.length);
  const bytes = new Uint8Array(mapping.view(0, workerData.length));
  const stop = new Int32Array(workerData.stop);
  parentPort.postMessage('running');
  while (Atomics.load(stop, 0) === 0) {
    for (const { at, values } of workerData.places) bytes.set(values[0], at);
    for (const { at, values } of workerData.places) bytes.set(values[1], at);
  }
  mapping.retire();
})();
`;

interface Place {
  readonly at: number;
  readonly values: readonly [Uint8Array, Uint8Array];
}

/** Flips the places while `body` runs. */
const whileFlipping = async (frontend: RawFrontend, places: readonly Place[], body: () => Promise<void>) => {
  const stop = new SharedArrayBuffer(4);
  const worker = new Worker(FLIPPER, {
    eval: true,
    workerData: {
      module: `file://${join(projectDirectory, 'dist/protocol/sys/mapping.js')}`,
      fd: frontend.ram.fd.fd,
      length: frontend.ram.length,
      places,
      stop,
    },
  });
  const ended = new Promise<void>((resolve, reject) => {
    worker.once('exit', () => resolve());
    worker.once('error', reject);
  });
  try {
    await Promise.race([new Promise((resolve) => worker.once('message', resolve)), ended]);
    await body();
  } finally {
    Atomics.store(new Int32Array(stop), 0, 1);
    await ended;
  }
};

const ROUNDS = 1500;

const descriptor = (address: number | bigint, length: number, flags: number, next: number): Uint8Array => {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt.asUintN(64, BigInt(address)), true);
  view.setUint32(8, length, true);
  view.setUint16(12, flags, true);
  view.setUint16(14, next, true);
  return bytes;
};

const header = (type: number, sector: bigint): Uint8Array => {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, sector, true);
  return bytes;
};

const start = (...features: number[]): Promise<RawFrontend> =>
  daemon().start({
    features: [FEATURE.INDIRECT_DESC, FEATURE.DISCARD, FEATURE.WRITE_ZEROES, ...features],
    queueSize: 16,
  });

/** Submits head 0 again and again; each time it must come back, whatever became of it. */
const submitAll = async (frontend: RawFrontend): Promise<void> => {
  for (let i = 0; i < ROUNDS; i += 1) expect((await frontend.ring().run(0))[0]?.id).toBe(0);
};

describe('while another thread rewrites', () => {
  const WRITE_NEXT = 3;

  it.each<[string, (area: RequestArea, frontend: RawFrontend) => [Uint8Array, Uint8Array]]>([
    [
      'address and length of a descriptor',
      (area, { ram }) => [
        descriptor(ram.guest(area.data), 512, WRITE_NEXT, 2),
        descriptor(ram.guest(ram.length) - 16, 0xffff_fe00, WRITE_NEXT, 2),
      ],
    ],
    [
      'flags and next of a descriptor',
      (area, { ram }) => [
        descriptor(ram.guest(area.data), 512, WRITE_NEXT, 2),
        descriptor(ram.guest(area.data), 512, WRITE_NEXT, 0xffff),
      ],
    ],
    [
      'a buffer into an indirect table and back',
      (area, { ram }) => [
        descriptor(ram.guest(area.data), 512, WRITE_NEXT, 2),
        descriptor(ram.guest(area.table), 0xffff_fff0, 4, 0),
      ],
    ],
  ])('%s, every request comes back', async (_, values) => {
    const frontend = await start();
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });

    await whileFlipping(frontend, [{ at: frontend.ring().table + 16, values: values(area, frontend) }], () =>
      submitAll(frontend),
    );
  });

  it.each<[string, Uint8Array, Uint8Array]>([
    ['the sector', header(TYPE.IN, 0n), header(TYPE.IN, 2n ** 55n)],
    ['the type', header(TYPE.IN, 0n), header(TYPE.GET_ID, 0n)],
    ['the type, to one that wants data the other way', header(TYPE.IN, 0n), header(TYPE.WRITE_ZEROES, 0n)],
  ])('%s of the header, every request comes back', async (_, one, other) => {
    const frontend = await start();
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });

    await whileFlipping(frontend, [{ at: area.header, values: [one, other] }], () => submitAll(frontend));
  });

  it('the length of an indirect table and what is in it, every request comes back', async () => {
    const frontend = await start();
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512, indirect: true });
    const { ram } = frontend;
    const good = ram.bytes.slice(area.table, area.table + 48);
    const bad = Buffer.concat([descriptor(-1n, 0xffff_ffff, 7, 1), descriptor(0, 1, 1, 0), descriptor(0, 1, 1, 1)]);
    const places: Place[] = [
      { at: area.table, values: [good, bad] },
      {
        at: frontend.ring().table,
        values: [descriptor(ram.guest(area.table), 48, 4, 0), descriptor(ram.guest(area.table), 16, 4, 0)],
      },
    ];

    await whileFlipping(frontend, places, () => submitAll(frontend));
  });

  it('segments of a write-zeroes request, nothing outside of what either says is zeroed', async () => {
    const frontend = await start();
    const segment = (sector: bigint, sectors: number): Uint8Array => {
      const bytes = new Uint8Array(16);
      new DataView(bytes.buffer).setBigUint64(0, sector, true);
      new DataView(bytes.buffer).setUint32(8, sectors, true);
      return bytes;
    };
    const area = prepareRequest(frontend, { type: TYPE.WRITE_ZEROES, out: segment(8192n, 1) });
    // Both are beyond the disk; a mixture of both, sector of one and count of the other, as well.
    const values = [segment(8192n, 1), segment(2n ** 63n, 0xffff_ffff)] as const;

    await whileFlipping(frontend, [{ at: area.data, values }], () => submitAll(frontend));
  });

  it.each<[string, (frontend: RawFrontend) => Place]>([
    [
      'the available index',
      ({ ram, rings }) => {
        const at = (rings[0]?.avail ?? 0) + 2;
        return { at, values: [ram.bytes.slice(at, at + 2), Uint8Array.of(0xff, 0x7f)] };
      },
    ],
    [
      'a head in the available ring',
      ({ rings }) => ({ at: (rings[0]?.avail ?? 0) + 4, values: [Uint8Array.of(0, 0), Uint8Array.of(0xff, 0xff)] }),
    ],
  ])('%s, the ring is served or breaks', async (_, place) => {
    for (let round = 0; round < 10; round += 1) {
      const frontend = await start();
      prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
      frontend.ring().publish(0);
      await whileFlipping(frontend, [place(frontend)], async () => {
        frontend.ring().signal();
        await eventually(
          'request or report',
          () => frontend.ring().usedIndex > 0 || frontend.ring().hasReport(),
          (over) => over,
        );
      });
      frontend.close();
    }
  });

  const AVAIL = 0x80;
  /** A slot of a packed ring: the ID comes before the flags. */
  const slot = (address: number | bigint, length: number, id: number, flags: number): Uint8Array =>
    descriptor(address, length, id, flags);

  it.each<[string, (area: RequestArea, frontend: RawFrontend) => { slot: number; values: [Uint8Array, Uint8Array] }]>([
    [
      'address and length of a slot',
      (area, { ram }) => ({
        slot: 1,
        values: [
          slot(ram.guest(area.data), 512, 9, WRITE_NEXT | AVAIL),
          slot(ram.guest(ram.length) - 16, 0xffff_fe00, 9, WRITE_NEXT | AVAIL),
        ],
      }),
    ],
    [
      'whether a slot is available',
      (area, { ram }) => ({
        slot: 1,
        values: [
          slot(ram.guest(area.data), 512, 9, WRITE_NEXT | AVAIL),
          slot(ram.guest(area.data), 512, 9, WRITE_NEXT),
        ],
      }),
    ],
    [
      'the first slot, whole',
      (area, { ram }) => ({
        slot: 0,
        values: [slot(ram.guest(area.header), 16, 9, 1 | AVAIL), slot(-1n, 0xffff_ffff, 0xffff, 0x7fff)],
      }),
    ],
    [
      'the end of a chain',
      (area, { ram }) => ({
        slot: 2,
        values: [slot(ram.guest(area.status), 1, 0, 2 | AVAIL), slot(ram.guest(area.status), 1, 0, WRITE_NEXT | AVAIL)],
      }),
    ],
  ])('of a packed ring %s, it is served or breaks', async (_, place) => {
    for (let round = 0; round < 10; round += 1) {
      const frontend = await start(FEATURE.RING_PACKED);
      const ring = frontend.packedRing();
      const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
      ring.hasCall();
      ring.publish(0);
      const { slot, values } = place(area, frontend);
      await whileFlipping(frontend, [{ at: ring.ringAt + 16 * slot, values }], async () => {
        // A slot that is available for an instant only may be missed: until it is not.
        await eventually(
          'request or report',
          () => {
            ring.signal();
            return area.statusByte !== UNTOUCHED || ring.hasCall() || ring.hasReport();
          },
          (over) => over,
        );
      });
      frontend.close();
    }
  });
});
