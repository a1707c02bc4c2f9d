/**
 * What a connection keeps, and for how long: the choices of a driver whose device is in service, the features of a device
 * that was reset, the lock of a disk that somebody else's guest uses, the place of a ring that was stopped in order.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { createEventFd } from '../../protocol/sys/owned-fd.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { createMemfd, createPipe } from '../support/frontend/descriptors.ts';
import { type FrontendOptions, RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import {
  bits,
  config,
  FEATURE,
  inflight,
  PROTOCOL,
  REQUEST,
  readInflight,
  readU64,
  u64,
} from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const PAGE = 4096;
const WRITEBACK_AT = 32;
const cleanup = cleanupAfterEach();

const startDaemon = (extra: readonly string[] = []): Promise<BlkBackend> => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
  return BlkBackend.start(cleanup, { image, extra });
};

const start = async (socket: string, options: FrontendOptions): Promise<RawFrontend> => {
  const frontend = await RawFrontend.start(socket, options);
  cleanup.add(() => frontend.close());
  return frontend;
};

const memfd = (bytes: number): OwnedFd => {
  const fd = createMemfd(bytes);
  cleanup.add(() => fd.close());
  return fd;
};

const read = { type: TYPE.IN, sector: 8, inBytes: 512 };

describe('SET_FEATURES', () => {
  it('that repeats what is negotiated leaves a device in service as it is', async () => {
    const { socket } = await startDaemon();
    // With CONFIG_WCE and without FLUSH a driver begins with writethrough, and this one chooses writeback.
    const frontend = await start(socket, { features: [FEATURE.CONFIG_WCE] });
    await frontend.require(REQUEST.SET_CONFIG, config(WRITEBACK_AT, Uint8Array.of(1)));
    const writeback = async (): Promise<number | undefined> => {
      const { payload } = await frontend.connection.call(REQUEST.GET_CONFIG, config(WRITEBACK_AT, new Uint8Array(1)));
      return payload[12];
    };
    expect(await writeback()).toBe(1);
    await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
    expect(await writeback()).toBe(1);
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);
  });

  it('that differs by LOG_ALL gives a device that was reset its features again', async () => {
    const { socket } = await startDaemon();
    const options = { features: [FEATURE.DISCARD], protocolFeatures: [PROTOCOL.RESET_DEVICE, PROTOCOL.LOG_SHMFD] };
    const frontend = await start(socket, options);
    const ring = frontend.queue();
    const discard = { type: TYPE.DISCARD, out: new Uint8Array(new Uint32Array([0, 0, 8, 0]).buffer) };
    expect((await doRequest(frontend, discard)).status).toBe(STATUS.OK);

    const base = await frontend.stopRing(ring);
    await frontend.require(REQUEST.RESET_DEVICE);
    await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features | bits(FEATURE.LOG_ALL)));
    await frontend.startRing(ring, base);
    expect((await doRequest(frontend, discard)).status).toBe(STATUS.OK);
  });
});

it('a front end that logs and runs no ring does not give away the lock of a disk', async () => {
  const daemon = await startDaemon();
  const frontend = await start(daemon.socket, {});
  const other = RawFrontend.connect(daemon.socket, { features: [FEATURE.LOG_ALL] });
  cleanup.add(() => other.close());
  await other.negotiate();
  await other.stopRing(other.queue());
  expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);
  await expect(BlkBackend.start(cleanup, { image: daemon.image })).rejects.toThrow('in use');
});

it('a front end that logs and resets the device before it asks for the bases gives the lock away, as QEMU does', async () => {
  const daemon = await startDaemon();
  const frontend = await start(daemon.socket, { features: [FEATURE.LOG_ALL], protocolFeatures: [PROTOCOL.STATUS] });
  expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);

  await frontend.require(REQUEST.SET_STATUS, u64(0n));
  await frontend.stopRing(frontend.queue());

  const other = await BlkBackend.start(cleanup, { image: daemon.image });
  expect(other.running).toBe(true);
});

it.each([false, true])(
  'a ring that was stopped before a reset begins where it is told to (packed: %s)',
  async (packed) => {
    const { socket, image } = await startDaemon();
    const frontend = RawFrontend.connect(socket, {
      queueSize: 16,
      features: packed ? [FEATURE.RING_PACKED] : [],
      protocolFeatures: [PROTOCOL.INFLIGHT_SHMFD, PROTOCOL.RESET_DEVICE],
    });
    cleanup.add(() => frontend.close());
    await frontend.negotiate();
    await frontend.shareMemory();
    const shape = { mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 16 };
    const { payload, fds } = await frontend.connection.call(REQUEST.GET_INFLIGHT_FD, inflight(shape));
    cleanup.add(() => fds[0]?.close());
    await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(readInflight(payload)), fds);
    const ring = frontend.queue();
    await frontend.startRing(ring);
    for (let i = 0; i < 3; i += 1) expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);
    await frontend.stopRing(ring);
    await frontend.require(REQUEST.RESET_DEVICE);

    // A driver that begins anew, in the same memory.
    frontend.ram.bytes.fill(0);
    const next = new RawFrontend(frontend.connection, { queueSize: 16, features: packed ? [FEATURE.RING_PACKED] : [] });
    cleanup.add(() => next.close());
    next.features = frontend.features;
    next.protocolFeatures = frontend.protocolFeatures;
    next.queue().suppression = 'none';
    await next.require(REQUEST.SET_FEATURES, u64(next.features));
    await next.shareMemory();
    await next.startRing(next.queue());
    const { status, data } = await doRequest(next, read);
    expect(status).toBe(STATUS.OK);
    expect(Buffer.compare(data, readFileSync(image).subarray(4096, 4608))).toBe(0);
  },
);

describe('the dirty log', () => {
  const logArea = (size: number, offset = 0): Uint8Array => Uint8Array.of(...u64(size), ...u64(offset));
  const options = { features: [FEATURE.LOG_ALL], protocolFeatures: [PROTOCOL.LOG_SHMFD] };

  it('may be longer than any memory', async () => {
    const { socket } = await startDaemon();
    const frontend = await start(socket, options);
    const bytes = 3 * 2 ** 30;
    await frontend.connection.call(REQUEST.SET_LOG_BASE, logArea(bytes), [memfd(bytes)]);
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);
  });

  it('begins at a word', async () => {
    const { socket } = await startDaemon();
    const frontend = await start(socket, options);
    expect(await frontend.isRefused(REQUEST.SET_LOG_BASE, logArea(1 << 20, 2), [memfd(1 << 21)])).toBe('closed');
  });

  it('has the status of a request whose buffers are in the wrong order', async () => {
    const { socket } = await startDaemon();
    const frontend = await start(socket, { ...options, ramBytes: 0x40_0000 });
    const log = memfd(1 << 20);
    await frontend.connection.call(REQUEST.SET_LOG_BASE, logArea(1 << 20), [log]);
    const { ram } = frontend;
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN);
    const status = ram.length - PAGE;
    frontend
      .queue()
      .setChain(0, [
        area.headerDescriptor(),
        { address: ram.guest(status), length: 1, flags: WRITE },
        area.dataDescriptor(512),
      ]);
    ram.view.setUint8(status, 0xa5);
    await frontend.queue().run(0);
    expect(ram.view.getUint8(status)).toBe(STATUS.IOERR);
    const page = ram.guest(status) / PAGE;
    const bitmap = readFileSync(`/proc/self/fd/${log.fd}`);
    expect((bitmap[page >> 3] as number) & (1 << (page & 7))).not.toBe(0);
  });
});

it('a device state that cannot be transferred now is answered by an error', async () => {
  const daemon = await VsockDaemon.start(cleanup);
  const frontend = await start(daemon.socket, { queues: 2, protocolFeatures: [PROTOCOL.DEVICE_STATE] });
  const ends = createPipe();
  for (const end of ends) cleanup.add(() => end.close());
  const transfer = new Uint8Array(8);
  const { payload } = await frontend.connection.call(REQUEST.SET_DEVICE_STATE_FD, transfer, [ends[1]]);
  expect(readU64(payload)).toBe(0x101n);
  expect(await frontend.connection.ask(REQUEST.CHECK_DEVICE_STATE)).toBe(0n);
});

describe('a device state that never ends', () => {
  const LOAD = 1;
  const begin = async (socket: string, fd: OwnedFd): Promise<RawFrontend> => {
    const frontend = RawFrontend.connect(socket, { protocolFeatures: [PROTOCOL.DEVICE_STATE] });
    cleanup.add(() => frontend.close());
    await frontend.negotiate();
    const transfer = new Uint8Array(new Uint32Array([LOAD, 0]).buffer);
    const { payload } = await frontend.connection.call(REQUEST.SET_DEVICE_STATE_FD, transfer, [fd]);
    expect(readU64(payload)).toBe(0x100n);
    return frontend;
  };

  it('has failed for who asks', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const ends = createPipe();
    for (const end of ends) cleanup.add(() => end.close());
    const frontend = await begin(daemon.socket, ends[0]);
    expect(await frontend.connection.ask(REQUEST.CHECK_DEVICE_STATE)).toBe(1n);
    await frontend.shareMemory();
  });

  it('does not keep a connection that its front end left', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const event = createEventFd();
    const frontend = await begin(daemon.socket, event);
    event.close();
    await frontend.connection.send(REQUEST.CHECK_DEVICE_STATE);
    frontend.close();
    await daemon.waitForFds(daemon.idleFds);
  });
});

it('RESET_DEVICE leaves no device status', async () => {
  const { socket } = await startDaemon();
  const frontend = await start(socket, { protocolFeatures: [PROTOCOL.STATUS, PROTOCOL.RESET_DEVICE] });
  await frontend.require(REQUEST.SET_STATUS, u64(0xf));
  expect(await frontend.connection.ask(REQUEST.GET_STATUS)).toBe(0xfn);
  await frontend.require(REQUEST.RESET_DEVICE);
  expect(await frontend.connection.ask(REQUEST.GET_STATUS)).toBe(0n);
});
