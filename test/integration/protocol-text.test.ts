/**
 * Sentences of the vhost-user text that no other test is about, one test each: Ring states, Suspended device state, Memory
 * access, VHOST_USER_PROTOCOL_F_REPLY_ACK.
 */

import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { doRequest, prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { RINGS } from '../support/frontend/chain-probe.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  bits,
  config,
  FEATURE,
  inflight,
  memoryTable,
  PROTOCOL,
  REQUEST,
  readU64,
  singleRegion,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';

const daemon = hostileDaemon({ numQueues: 2 });
const ALL = [PROTOCOL.CONFIGURE_MEM_SLOTS, PROTOCOL.INFLIGHT_SHMFD, PROTOCOL.STATUS, PROTOCOL.RESET_DEVICE];

/** Makes a read available on ring 0 and kicks. */
const offerRead = (frontend: RawFrontend): RequestArea => {
  const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
  frontend.queue().publish(0);
  frontend.queue().signal();
  return area;
};

/** Nothing came back, though the daemon was busy meanwhile. */
const expectUntaken = async (frontend: RawFrontend): Promise<void> => {
  for (let i = 0; i < 3; i += 1) await frontend.connection.ask(REQUEST.GET_FEATURES);
  expect(frontend.queue().waiting).toBe(0);
};

describe.each(RINGS)('a %s ring', (_, features) => {
  const describeRing = async (frontend: RawFrontend): Promise<void> => {
    await frontend.shareMemory();
    await frontend.configureRing(frontend.queue());
  };
  const kick = (frontend: RawFrontend): Promise<void> =>
    frontend.require(REQUEST.SET_VRING_KICK, vringFd(0), [frontend.queue().kick]);
  const enable = (frontend: RawFrontend, num: number): Promise<void> =>
    frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, num));

  it('is initialized in a stopped and disabled state', async () => {
    const frontend = await daemon().negotiate({ features });
    await describeRing(frontend);
    offerRead(frontend);
    await expectUntaken(frontend);
    await kick(frontend);
    await expectUntaken(frontend);

    await enable(frontend, 1);

    expect(await frontend.queue().take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('that is stopped is tracked as enabled or disabled, so it can come into effect once it is started', async () => {
    const frontend = await daemon().negotiate({ features });
    await enable(frontend, 1);
    await describeRing(frontend);
    offerRead(frontend);
    await expectUntaken(frontend);
    await kick(frontend);
    await frontend.queue().take();

    const base = await frontend.stopRing(frontend.queue());
    await enable(frontend, 0);
    await frontend.configureRing(frontend.queue(), base);
    await kick(frontend);
    offerRead(frontend);
    await expectUntaken(frontend);

    await enable(frontend, 1);
    expect(await frontend.queue().take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('is enabled immediately by SET_FEATURES without PROTOCOL_FEATURES', async () => {
    const frontend = daemon().connect({ features });
    await frontend.connection.ask(REQUEST.GET_FEATURES);
    await frontend.connection.send(REQUEST.SET_FEATURES, u64(bits(FEATURE.VERSION_1, ...features)));
    await frontend.shareMemory();
    await frontend.startRing(frontend.queue());

    expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
  });

  it('that is stopped is not processed, and a suspended device writes nothing and tells nobody', async () => {
    const frontend = await daemon().start({ features, protocolFeatures: [PROTOCOL.BACKEND_REQ] });
    const [ours, theirs] = UnixStream.pair();
    const channel = daemon().keep(new RawConnection(ours));
    const theirEnd = theirs.detach();
    await frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [theirEnd]);
    theirEnd.close();
    await doRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    const ring = frontend.queue();
    await frontend.stopRing(ring);
    while (ring.hasCall());
    offerRead(frontend);
    const before = Buffer.from(frontend.ram.bytes);

    for (let i = 0; i < 20; i += 1) {
      ring.signal();
      expect(await frontend.connection.ask(REQUEST.GET_QUEUE_NUM)).toBe(2n);
    }

    expect(Buffer.compare(before, frontend.ram.bytes)).toBe(0);
    expect([ring.hasCall(), ring.hasReport()]).toEqual([false, false]);
    await expect(channel.receive(50)).rejects.toThrow(/no message/);
  });

  it('is stopped by RESET_DEVICE, disabled, and ready to be described again on the same connection', async () => {
    const frontend = await daemon().start({ features, protocolFeatures: ALL });
    await doRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    await frontend.require(REQUEST.RESET_DEVICE);
    const ring = frontend.queue();
    frontend.ram.bytes.fill(0, 0x1000, frontend.dataStart);
    ring.standAt(ring.initialBase);
    offerRead(frontend);
    await expectUntaken(frontend);

    await describeRing(frontend);
    await kick(frontend);
    await expectUntaken(frontend);
    await enable(frontend, 1);

    expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('that is started goes on while its call, err and kick descriptors are changed', async () => {
    const frontend = await daemon().start({ features });
    const ring = frontend.queue();

    for (let i = 0; i < 100; i += 1) {
      const area = offerRead(frontend);
      const [id, fd] = [
        [REQUEST.SET_VRING_CALL, ring.call],
        [REQUEST.SET_VRING_ERR, ring.err],
        [REQUEST.SET_VRING_KICK, ring.kick],
      ][i % 3] as [number, typeof ring.call];
      await frontend.require(id, vringFd(0), [fd]);
      expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
      expect(area.statusByte).toBe(STATUS.OK);
    }
  });

  it('has user addresses, and its descriptors guest addresses: neither is taken for the other', async () => {
    const frontend = await daemon().negotiate({ features });
    const { ram } = frontend;
    // The other way round in a second region: its guest addresses are the first one's user addresses.
    const twin = daemon().keep(createMemfd(ram.length));
    const swapped = {
      guestAddress: ram.userAddress,
      size: ram.length,
      userAddress: ram.guestAddress,
      mmapOffset: 0,
    };
    await frontend.require(REQUEST.SET_MEM_TABLE, memoryTable([ram.region(), swapped]), [ram.fd, twin]);
    await frontend.startRing(frontend.queue());

    expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
  });
});

describe('REM_MEM_REG', () => {
  it('finds a region by guest address, user address and size, whatever the mmap offset says', async () => {
    const frontend = await daemon().negotiate({ protocolFeatures: ALL });
    await frontend.shareMemory();
    const region = frontend.ram.region();
    for (const wrong of [{ guestAddress: 0 }, { userAddress: 0 }, { size: 4096 }]) {
      expect(await frontend.isRefused(REQUEST.REM_MEM_REG, singleRegion({ ...region, ...wrong }))).toBe('nack');
    }

    await frontend.require(REQUEST.REM_MEM_REG, singleRegion({ ...region, mmapOffset: 0x1234_5000 }));

    await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(region), [frontend.ram.fd]);
  });
});

describe('REPLY_ACK', () => {
  const request = inflight({ mmapSize: 0, mmapOffset: 0, numQueues: 2, queueSize: 128 });

  it.each<[string, number, Uint8Array | undefined]>([
    ['GET_FEATURES', REQUEST.GET_FEATURES, undefined],
    ['GET_PROTOCOL_FEATURES', REQUEST.GET_PROTOCOL_FEATURES, undefined],
    ['GET_VRING_BASE', REQUEST.GET_VRING_BASE, vringState(0, 0)],
    ['GET_QUEUE_NUM', REQUEST.GET_QUEUE_NUM, undefined],
    ['GET_CONFIG', REQUEST.GET_CONFIG, config(0, new Uint8Array(8))],
    ['GET_MAX_MEM_SLOTS', REQUEST.GET_MAX_MEM_SLOTS, undefined],
    ['GET_STATUS', REQUEST.GET_STATUS, undefined],
    ['GET_INFLIGHT_FD', REQUEST.GET_INFLIGHT_FD, request],
  ])('brings no behavioural change to %s, which is answered anyway: once', async (_, id, payload) => {
    const { connection } = await daemon().negotiate({ protocolFeatures: ALL });

    const plain = await connection.call(id, payload);
    const asked = await connection.call(id, payload, [], 1 | 8);

    for (const fd of [...plain.fds, ...asked.fds]) fd.close();
    expect([asked.payload, asked.fds.length]).toEqual([plain.payload, plain.fds.length]);
    // Another message would come before the answer to this.
    expect(await connection.ask(REQUEST.GET_QUEUE_NUM)).toBe(2n);
  });

  it('has a message answered by a u64 of the same type, zero for success, after it was done', async () => {
    const frontend = await daemon().negotiate({ protocolFeatures: ALL });
    const { connection } = frontend;
    await frontend.shareMemory();
    const ring = frontend.queue();
    const steps: [number, Uint8Array][] = [
      [REQUEST.SET_OWNER, new Uint8Array(0)],
      [REQUEST.SET_VRING_NUM, vringState(0, 64)],
      [REQUEST.SET_VRING_BASE, vringState(0, 5)],
      [REQUEST.SET_VRING_ADDR, vringAddress(0, ring.addresses())],
      [REQUEST.SET_VRING_ENABLE, vringState(0, 1)],
      [REQUEST.SET_STATUS, u64(15)],
    ];

    for (const [id, payload] of steps) {
      const reply = await connection.call(id, payload, [], 1 | 8);
      expect([reply.flags, readU64(reply.payload)]).toEqual([5, 0n]);
    }

    expect(await connection.ask(REQUEST.GET_STATUS)).toBe(15n);
    expect(await frontend.stopRing(ring)).toBe(5);
  });
});
