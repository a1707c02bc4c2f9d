/** Several front ends at once: any number may ask, one at a time runs rings, and none can hold up another. */

import { describe, expect, it } from 'vitest';
import { createEventFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { eventually, rss } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  bits,
  config,
  FEATURE,
  memoryTable,
  message,
  PROTOCOL,
  REQUEST,
  u64,
  vringFd,
} from '../support/frontend/wire.ts';

const daemon = hostileDaemon();

const read = (frontend: RawFrontend) => doRequest(frontend, { type: TYPE.IN, inBytes: 512 });

describe('a front end that stops in the middle of a message', () => {
  it.each([1, 12, 13])('after %i bytes does not hold up one that comes later', async (length) => {
    const { connection } = daemon().connect();
    await connection.sendBytes(message(REQUEST.SET_FEATURES, u64(0)).subarray(0, length));

    await daemon().expectServesGoodClient();

    await connection.sendBytes(message(REQUEST.SET_FEATURES, u64(0)).subarray(length));
    expect(await connection.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);
  });

  it('with its rings running is served on them', async () => {
    const frontend = await daemon().start();
    await frontend.connection.sendBytes(message(REQUEST.GET_FEATURES).subarray(0, 5));

    expect((await read(frontend)).status).toBe(STATUS.OK);
    expect((await read(frontend)).status).toBe(STATUS.OK);
  });
});

describe('a second front end', () => {
  it('is answered while the first one runs rings', async () => {
    const first = await daemon().start();
    const second = await daemon().negotiate();

    expect(await second.connection.ask(REQUEST.GET_QUEUE_NUM)).toBeGreaterThan(0n);
    expect((await read(first)).status).toBe(STATUS.OK);
  });

  it('may not start rings while the first one runs its own, and may after that', async () => {
    const first = await daemon().start();
    const second = await daemon().negotiate();
    await second.shareMemory();
    const ring = second.ring();
    await second.configureRing(ring);

    expect(await second.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick])).toBe('nack');
    expect((await read(first)).status).toBe(STATUS.OK);

    await first.stopRing(first.ring());
    await second.startRing(ring);
    expect((await read(second)).status).toBe(STATUS.OK);
  });

  it('that starts rings while the first one is going away waits for that', async () => {
    const first = await daemon().start();
    const second = await daemon().negotiate();
    await second.shareMemory();
    first.connection.close();

    await second.startRing(second.ring());

    expect((await read(second)).status).toBe(STATUS.OK);
  });

  it('has features and configuration of its own', async () => {
    const features = [FEATURE.FLUSH, FEATURE.CONFIG_WCE];
    const first = await daemon().start({ features });
    const second = await daemon().negotiate({ features });
    await first.require(REQUEST.SET_CONFIG, config(32, Uint8Array.of(0)));

    const modes = [];
    for (const { connection } of [first, second]) {
      modes.push((await connection.call(REQUEST.GET_CONFIG, config(32, new Uint8Array(1)))).payload[12]);
    }

    expect(modes).toEqual([0, 1]);
  });
});

describe('many connections', () => {
  it('up to 64 are served at once, further ones closed, and every one is forgotten in the end', async () => {
    const before = daemon().backend.fdCount();
    const frontends = Array.from({ length: 70 }, () => daemon().connect({ ramBytes: 0x1_0000, queueSize: 16 }));

    const outcomes = await Promise.allSettled(frontends.map(({ connection }) => connection.ask(REQUEST.GET_FEATURES)));

    const answered = outcomes.filter(({ status }) => status === 'fulfilled').length;
    // The connection of a test before may still be on its way out.
    expect(answered).toBeGreaterThan(60);
    expect(answered).toBeLessThanOrEqual(64);
    for (const frontend of frontends) frontend.close();
    // A client that comes before the daemon noticed would be one too many.
    await eventually(
      'descriptors',
      () => daemon().backend.fdCount(),
      (count) => count <= before,
    );
  });

  it('one after the other, a hundred times with rings, leave no memory behind', async () => {
    for (let i = 0; i < 10; i += 1) await daemon().expectServesGoodClient();
    const before = rss(daemon().backend.pid);

    for (let i = 0; i < 100; i += 1) await daemon().expectServesGoodClient();

    expect(rss(daemon().backend.pid) - before).toBeLessThan(24 << 20);
  });
});

describe('a front end that goes away', () => {
  it('with requests in flight does not take the daemon along', async () => {
    for (let round = 0; round < 10; round += 1) {
      const frontend = await daemon().start({ ramBytes: 4 << 20 });
      const heads = Array.from({ length: 32 }, (_, i) => {
        prepareRequest(frontend, { type: TYPE.IN, sector: (i % 8) * 128, inBytes: 65536 }, 3 * i, i);
        return 3 * i;
      });
      frontend.ring().publish(...heads);
      frontend.ring().signal();
      frontend.close();
    }
  });

  it.each<[string, (frontend: RawFrontend) => Promise<void>]>([
    ['negotiating', (f) => f.negotiate()],
    [
      'sharing memory',
      async (f) => {
        await f.negotiate();
        await f.shareMemory();
      },
    ],
    [
      'configuring a ring',
      async (f) => {
        await f.negotiate();
        await f.shareMemory();
        await f.configureRing(f.ring());
      },
    ],
  ])('after %s is forgotten', async (_, steps) => {
    const frontend = daemon().connect();

    await steps(frontend);

    frontend.close();
  });
});

/** A protocol feature that is offered by nobody here. */
const HOST_NOTIFIER = 11;

describe('messages in an order of their own', () => {
  it('features may come last, memory after the ring addresses', async () => {
    const frontend = daemon().connect();
    await frontend.negotiate();
    await frontend.configureRing(frontend.ring());
    await frontend.shareMemory();
    await frontend.startRing(frontend.ring());
    await frontend.require(REQUEST.SET_FEATURES, u64(bits(FEATURE.VERSION_1, FEATURE.PROTOCOL_FEATURES)));

    expect((await read(frontend)).status).toBe(STATUS.OK);
  });

  it('what is said twice does not count twice', async () => {
    const frontend = await daemon().start();
    await frontend.negotiate();
    await frontend.shareMemory();
    await frontend.startRing(frontend.ring()).catch(() => undefined);

    expect((await read(frontend)).status).toBe(STATUS.OK);
  });

  it('SET_VRING_ENABLE may come before SET_FEATURES, as QEMU sends it', async () => {
    const { connection } = daemon().connect();
    await connection.send(REQUEST.SET_VRING_ENABLE, Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0));

    expect(await connection.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);
  });

  it('GET_VRING_BASE of a ring that never was started gives the base that was set', async () => {
    const frontend = await daemon().negotiate();
    await frontend.configureRing(frontend.ring(), 77);

    expect(await frontend.stopRing(frontend.ring())).toBe(77);
  });

  it('without need_reply a success is not answered', async () => {
    const { connection } = await daemon().negotiate();
    await connection.send(REQUEST.SET_OWNER);

    expect(await connection.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);
  });

  it('need_reply without REPLY_ACK negotiated is not answered', async () => {
    const { connection } = daemon().connect();
    await connection.send(REQUEST.SET_OWNER, undefined, [], 1 | 8);

    expect(await connection.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);
  });

  it('RESET_DEVICE and RESET_OWNER stop the rings and keep the connection', async () => {
    const frontend = await daemon().start({ protocolFeatures: [PROTOCOL.RESET_DEVICE] });
    await read(frontend);

    for (const id of [REQUEST.RESET_DEVICE, REQUEST.RESET_OWNER]) {
      await frontend.require(id);
      frontend.ring().signal();
      await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([frontend.ram.region()]), [frontend.ram.fd]);
      await frontend.startRing(frontend.ring(), frontend.ring().usedIndex);
      expect((await read(frontend)).status).toBe(STATUS.OK);
    }
  });

  it.each([
    ['features', REQUEST.SET_FEATURES, 63],
    ['protocol features', REQUEST.SET_PROTOCOL_FEATURES, HOST_NOTIFIER],
  ])('%s that were not offered are refused', async (_, id, bit) => {
    const frontend = await daemon().negotiate();

    expect(await frontend.isRefused(id, u64(bits(bit)))).toBe('nack');
  });
});

describe('the back-end channel', () => {
  it.each<[string, () => { fd: ReturnType<typeof createEventFd> }]>([['an eventfd', () => ({ fd: createEventFd() })]])(
    'is refused when it is %s',
    async (_, create) => {
      const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.BACKEND_REQ] });
      const { fd } = create();
      daemon().keep(fd);

      expect(await frontend.isRefused(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd])).toBe('nack');
    },
  );

  it('whose other end is closed, or that was replaced, is let go of', async () => {
    const frontend = await daemon().negotiate({ protocolFeatures: [PROTOCOL.BACKEND_REQ] });

    for (let i = 0; i < 5; i += 1) {
      const [ours, theirs] = UnixStream.pair();
      const fd = theirs.detach();
      await frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
      fd.close();
      ours.close();
    }
    daemon().backend.signal('SIGHUP');

    await eventually(
      'log',
      () => daemon().backend.log(),
      (log) => log.includes('still 4194304 bytes'),
    );
    expect(await frontend.connection.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);
  });
});
