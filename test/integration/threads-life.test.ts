/** Connections that come and go at a daemon of several threads, in order or not, and daemons that are killed. */

import { afterEach, describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { rss } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { FEATURE, inflight, PROTOCOL, REQUEST, readInflight, vringFd } from '../support/frontend/wire.ts';
import { RING_SIZE, ThreadsRig } from './threads-rig.ts';

const QUEUES = 5;

describe('a daemon of three threads', () => {
  // Checked after each test: it serves a good client, and holds no descriptor or mapping more than before.
  const daemon = hostileDaemon({ numQueues: QUEUES, extra: ['--threads=3'] });
  afterEach(() => expect(daemon().backend.log()).not.toMatch(/taken away|Error/));

  const start = (): Promise<RawFrontend> => daemon().start({ queues: QUEUES, ramBytes: 4 << 20 });

  const readOn = async (frontend: RawFrontend): Promise<void> => {
    for (let queue = 0; queue < QUEUES; queue += 1) {
      expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512, queue })).status).toBe(STATUS.OK);
    }
  };

  it('lets go of front ends that leave with requests in flight on all of them', async () => {
    for (let round = 0; round < 20; round += 1) {
      const frontend = await start();
      for (const ring of frontend.queues) {
        const heads = Array.from({ length: 8 }, (_, i) => {
          const slot = 8 * ring.index + i;
          prepareRequest(frontend, { type: TYPE.IN, sector: i * 128, inBytes: 65536, queue: ring.index }, 3 * i, slot);
          return 3 * i;
        });
        ring.publish(...heads);
        ring.signal();
      }
      frontend.close();
    }
  });

  it('lets go of front ends that leave before their last request was answered', async () => {
    for (let round = 0; round < 20; round += 1) {
      const frontend = await start();
      const ring = frontend.queue(round % QUEUES);
      const requests: [number, Uint8Array, OwnedFd[]][] = [
        [REQUEST.SET_VRING_CALL, vringFd(ring.index), [ring.call]],
        [REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]],
        [REQUEST.SET_VRING_ERR, vringFd(ring.index), [ring.err]],
      ];
      for (const [id, payload, fds] of requests) await frontend.connection.send(id, payload, fds);
      await frontend.connection.send(REQUEST.RESET_OWNER);
      for (const [id, payload, fds] of requests) await frontend.connection.send(id, payload, fds);
      frontend.close();
    }
  });

  it('closes the descriptors of rings that it refuses', async () => {
    const frontend = await daemon().negotiate({ queues: QUEUES });
    const fds = daemon().backend.fdCount();

    // Nothing is where the addresses say: there is no memory.
    for (const ring of frontend.queues) {
      await frontend.configureRing(ring);
      expect(await frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick])).toBe('nack');
      // A file is nothing that can be waited for.
      expect(await frontend.isRefused(REQUEST.SET_VRING_CALL, vringFd(ring.index), [frontend.ram.fd])).toBe('nack');
      await frontend.require(REQUEST.SET_VRING_CALL, vringFd(ring.index, true));
      await frontend.require(REQUEST.SET_VRING_ERR, vringFd(ring.index, true));
    }

    expect(daemon().backend.fdCount()).toBe(fds);
  });

  it('keeps no memory of a hundred that came one after the other', async () => {
    const come = async (): Promise<void> => {
      const frontend = await start();
      await readOn(frontend);
      for (const ring of frontend.queues) await frontend.stopRing(ring);
      frontend.close();
    };
    for (let i = 0; i < 20; i += 1) await come();
    const before = rss(daemon().backend.pid);

    for (let i = 0; i < 100; i += 1) await come();

    // A thread grows by itself until its garbage is collected.
    expect(rss(daemon().backend.pid) - before).toBeLessThan(48 << 20);
  });

  it('lets one front end at a time run rings', async () => {
    const first = await start();
    const second = await daemon().negotiate({ queues: QUEUES, ramBytes: 4 << 20 });
    await second.shareMemory();
    const ring = second.queue(1);
    await second.configureRing(ring);

    expect(await second.isRefused(REQUEST.SET_VRING_KICK, vringFd(1), [ring.kick])).toBe('nack');
    await readOn(first);
    for (const each of first.queues) await first.stopRing(each);
    for (const each of second.queues) await second.startRing(each);
    await readOn(second);
  });

  it('lets the next front end run rings when the first one, which has requests in flight, is gone', async () => {
    const first = await start();
    const second = await daemon().negotiate({ queues: QUEUES, ramBytes: 4 << 20 });
    await second.shareMemory();
    for (const ring of first.queues) {
      prepareRequest(first, { type: TYPE.IN, inBytes: 65536, queue: ring.index }, 0, ring.index);
      ring.publish(0);
      ring.signal();
    }
    first.connection.close();

    for (const ring of second.queues) await second.startRing(ring);
    await readOn(second);
  });
});

const cleanup = cleanupAfterEach();

/** Requests that were in flight at one of the kills. */
let resubmitted = 0;

describe.each([
  ['split', []],
  ['packed', [FEATURE.RING_PACKED]],
  ['packed and in order', [FEATURE.RING_PACKED, FEATURE.IN_ORDER]],
])('a daemon of three threads that is killed under load, with %s rings,', (_, features) => {
  it('loses and repeats nothing', async () => {
    const shape = { mmapSize: 0, mmapOffset: 0, numQueues: QUEUES, queueSize: RING_SIZE };
    const rig = await ThreadsRig.negotiate(cleanup, {
      threads: 3,
      queues: QUEUES,
      features,
      protocolFeatures: [PROTOCOL.INFLIGHT_SHMFD],
    });
    const { payload, fds } = await rig.frontend.connection.call(REQUEST.GET_INFLIGHT_FD, inflight(shape));
    const region = fds[0] as OwnedFd;
    cleanup.add(() => region.close());
    const begin = async (): Promise<void> => {
      await rig.frontend.shareMemory();
      await rig.frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(readInflight(payload)), [region]);
      for (const ring of rig.frontend.queues) await rig.frontend.startRing(ring, ring.initialBase);
      for (const ring of rig.frontend.queues) ring.signal();
    };
    await begin();

    for (let round = 0; round < 4; round += 1) {
      await rig.run(20 + 7 * round);
      rig.submit();
      await rig.backend.kill9();
      await rig.backend.restart();
      rig.frontend = rig.frontend.reconnect(rig.backend.socket);
      await rig.frontend.negotiate();
      await begin();
      resubmitted += rig.backend.log().split('resubmitting').length - 1;
    }
    await rig.run(10);
    await rig.drain();

    expect(rig.loads.map((load) => load.returned)).toEqual(rig.loads.map((load) => load.submitted));
    expect(rig.wrongSectors()).toEqual([]);
  });
});

describe('of the kills above', () => {
  it('some hit requests in flight, or they showed nothing', () => {
    expect(resubmitted).toBeGreaterThan(0);
  });
});
