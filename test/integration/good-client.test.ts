/**
 * What every correct back end does, ours and qemu-storage-daemon (RINGSIDE_TEST_BACKEND=qsd): it shows that the raw front
 * end of these tests is right where the hostile ones rely on it.
 */

import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { connectGood } from '../support/frontend/good-client.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { config, FEATURE, REQUEST, vringState } from '../support/frontend/wire.ts';
import { randomImage, sha256OfFile } from '../support/image.ts';

const cleanup = cleanupAfterEach();

const startBackend = (options: { numQueues?: number } = {}): Promise<BlkBackend> =>
  BlkBackend.start(cleanup, { image: randomImage(join(cleanup.directory(), 'disk.img'), 4 << 20), ...options });

const connect = async (backend: BlkBackend, options: Parameters<typeof RawFrontend.start>[1]): Promise<RawFrontend> => {
  const frontend = await RawFrontend.start(backend.socket, options);
  cleanup.add(() => frontend.close());
  return frontend;
};

const RING_FEATURES: [string, number[]][] = [
  ['plain', []],
  ['with INDIRECT_DESC', [FEATURE.INDIRECT_DESC]],
  ['with EVENT_IDX', [FEATURE.EVENT_IDX]],
  ['with both', [FEATURE.INDIRECT_DESC, FEATURE.EVENT_IDX]],
];

describe('a correct client', () => {
  it('is served, again and again, and leaves the image as it was', async () => {
    const backend = await startBackend();
    const before = sha256OfFile(backend.image);

    for (let i = 0; i < 5; i += 1) await connectGood(backend.socket, { block: i * 7 });

    expect(sha256OfFile(backend.image)).toBe(before);
  });

  it.each(RING_FEATURES)('reads what the image holds and writes what it then holds, %s', async (_, ringFeatures) => {
    const backend = await startBackend();
    const indirect = ringFeatures.includes(FEATURE.INDIRECT_DESC);
    const frontend = await connect(backend, { features: [FEATURE.FLUSH, ...ringFeatures] });
    const image = readFileSync(backend.image);
    const pattern = randomBytes(8192);

    const read = await doRequest(frontend, { type: TYPE.IN, sector: 100, inBytes: 65536, indirect });
    const written = await doRequest(frontend, { type: TYPE.OUT, sector: 500, out: pattern, indirect });
    const flushed = await doRequest(frontend, { type: TYPE.FLUSH, indirect });

    expect(Buffer.compare(read.data, image.subarray(51_200, 51_200 + 65536))).toBe(0);
    expect([read.status, written.status, flushed.status]).toEqual([STATUS.OK, STATUS.OK, STATUS.OK]);
    pattern.copy(image, 256_000);
    expect(Buffer.compare(readFileSync(backend.image), image)).toBe(0);
  });

  it('has 32 requests in flight, and each comes back with its own data', async () => {
    const backend = await startBackend();
    const frontend = await connect(backend, { ramBytes: 4 << 20 });
    const image = readFileSync(backend.image);
    const areas = Array.from({ length: 32 }, (_, i) =>
      prepareRequest(frontend, { type: TYPE.IN, sector: 8 * i, inBytes: 4096 }, 3 * i, i),
    );

    const used = await frontend.ring().run(...areas.map((_, i) => 3 * i));

    expect(used.map(({ id }) => id).sort((a, b) => a - b)).toEqual(areas.map((_, i) => 3 * i));
    areas.forEach(({ data, statusByte }, i) => {
      expect(statusByte).toBe(STATUS.OK);
      const bytes = frontend.ram.bytes.slice(data, data + 4096);
      expect(Buffer.compare(bytes, image.subarray(4096 * i, 4096 * (i + 1)))).toBe(0);
    });
  });

  it('uses two queues side by side', async () => {
    const backend = await startBackend({ numQueues: 2 });
    const frontend = await connect(backend, { queues: 2, features: [FEATURE.MQ] });

    const answers = [
      await doRequest(frontend, { type: TYPE.IN, inBytes: 512, queue: 0 }),
      await doRequest(frontend, { type: TYPE.IN, inBytes: 512, queue: 1 }),
    ];

    expect(answers.map(({ status }) => status)).toEqual([STATUS.OK, STATUS.OK]);
    expect(answers[0]?.data).toEqual(answers[1]?.data);
  });

  it('reads the capacity from the configuration space', async () => {
    const backend = await startBackend();
    const frontend = await connect(backend, {});

    const { payload } = await frontend.connection.call(REQUEST.GET_CONFIG, config(0, new Uint8Array(60)));

    expect(payload).toHaveLength(72);
    expect(Buffer.from(payload).readBigUInt64LE(12)).toBe(8192n);
  });

  it('stops a ring and starts it again where it was', async () => {
    const backend = await startBackend();
    const frontend = await connect(backend, {});
    await doRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 0));

    const base = await frontend.stopRing(frontend.ring());
    await frontend.startRing(frontend.ring(), base);

    expect(base).toBe(1);
    expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
  });
});
