/**
 * A front end that breaks the protocol: its connection is closed, with everything it sent along, and the daemon goes on
 * listening. Source: vhost-user, Communication.
 */

import { describe, expect, it } from 'vitest';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  config,
  FLAGS,
  inflight,
  memoryTable,
  message,
  REQUEST,
  singleRegion,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';

const daemon = hostileDaemon();

const fds = (count: number): OwnedFd[] => Array.from({ length: count }, () => daemon().keep(createEventFd()));

/** Sends bytes on a connection that has negotiated, and expects it to be closed. */
const expectClosed = async (bytes: Uint8Array, attached: readonly OwnedFd[] = []): Promise<void> => {
  const { connection } = await daemon().negotiate();
  await connection.sendBytes(bytes, attached);
  await connection.waitForEnd();
};

describe('a header closes the connection', () => {
  it.each<[string, Uint8Array]>([
    ['with version 0', message(REQUEST.GET_FEATURES, undefined, { flags: 0 })],
    ['with version 2', message(REQUEST.GET_FEATURES, undefined, { flags: 2 })],
    ['with the reply flag', message(REQUEST.GET_FEATURES, undefined, { flags: FLAGS.VERSION | FLAGS.REPLY })],
    ['with reserved flags', message(REQUEST.GET_FEATURES, undefined, { flags: FLAGS.VERSION | 0x100 })],
    ['that announces 4097 bytes', message(REQUEST.SET_FEATURES, u64(0), { size: 4097 })],
    ['that announces 2^31 bytes', message(REQUEST.SET_FEATURES, u64(0), { size: 0x8000_0000 })],
    ['that announces 2^32 - 1 bytes', message(REQUEST.SET_FEATURES, u64(0), { size: 0xffff_ffff })],
    ['of request 0', message(0)],
    ['of request 46, which nobody defined', message(46)],
    ['of request 2^32 - 1', message(0xffff_ffff)],
    ['of bytes that are all ones', new Uint8Array(12).fill(0xff)],
    ['of an HTTP client', new TextEncoder().encode('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
  ])('%s', async (_, bytes) => {
    await expectClosed(bytes);
  });
});

const SIZES: [string, number, Uint8Array][] = [
  ['GET_FEATURES', REQUEST.GET_FEATURES, new Uint8Array(0)],
  ['SET_FEATURES', REQUEST.SET_FEATURES, u64(0)],
  ['SET_OWNER', REQUEST.SET_OWNER, new Uint8Array(0)],
  ['SET_VRING_NUM', REQUEST.SET_VRING_NUM, vringState(0, 128)],
  ['SET_VRING_ADDR', REQUEST.SET_VRING_ADDR, vringAddress(0, { descriptor: 0, used: 0, available: 0 })],
  ['SET_VRING_BASE', REQUEST.SET_VRING_BASE, vringState(0, 0)],
  ['GET_VRING_BASE', REQUEST.GET_VRING_BASE, vringState(0, 0)],
  ['SET_VRING_ENABLE', REQUEST.SET_VRING_ENABLE, vringState(0, 0)],
  ['SET_VRING_CALL', REQUEST.SET_VRING_CALL, vringFd(0, true)],
  ['GET_PROTOCOL_FEATURES', REQUEST.GET_PROTOCOL_FEATURES, new Uint8Array(0)],
  ['SET_PROTOCOL_FEATURES', REQUEST.SET_PROTOCOL_FEATURES, u64(0)],
  ['GET_QUEUE_NUM', REQUEST.GET_QUEUE_NUM, new Uint8Array(0)],
  ['GET_MAX_MEM_SLOTS', REQUEST.GET_MAX_MEM_SLOTS, new Uint8Array(0)],
  ['GET_CONFIG', REQUEST.GET_CONFIG, config(0, new Uint8Array(8))],
  ['SET_CONFIG', REQUEST.SET_CONFIG, config(32, new Uint8Array(1))],
  ['GET_INFLIGHT_FD', REQUEST.GET_INFLIGHT_FD, inflight({ mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 128 })],
  ['RESET_DEVICE', REQUEST.RESET_DEVICE, new Uint8Array(0)],
];

describe('a payload of the wrong size closes the connection', () => {
  it.each(SIZES)('one byte more than %s has', async (_, id, payload) => {
    await expectClosed(message(id, Buffer.concat([payload, Uint8Array.of(0)])));
  });

  it.each(SIZES.filter(([, , payload]) => payload.length > 0))('one byte less than %s has', async (_, id, payload) => {
    await expectClosed(message(id, payload.subarray(1)));
  });

  it.each([
    ['a memory table without a region where one is announced', REQUEST.SET_MEM_TABLE, memoryTable([], 1)],
    ['a memory table of nine regions', REQUEST.SET_MEM_TABLE, memoryTable([], 9)],
    ['a memory table of 2^32 - 1 regions', REQUEST.SET_MEM_TABLE, memoryTable([], 0xffff_ffff)],
    ['GET_CONFIG that says 2^32 - 1 bytes', REQUEST.GET_CONFIG, config(0, new Uint8Array(8), 0, 0xffff_ffff)],
    ['GET_CONFIG of 257 bytes', REQUEST.GET_CONFIG, config(0, new Uint8Array(257))],
    ['SET_CONFIG that says more than it has', REQUEST.SET_CONFIG, config(32, new Uint8Array(1), 0, 2)],
  ])('%s', async (_, id, payload) => {
    await expectClosed(message(id, payload));
  });
});

describe('descriptors in the wrong number close the connection and are closed', () => {
  const region = { guestAddress: 0, size: 4096, userAddress: 0, mmapOffset: 0 };
  const area = inflight({ mmapSize: 4096, mmapOffset: 0, numQueues: 1, queueSize: 128 });

  it.each<[string, number, Uint8Array | undefined, number]>([
    ['GET_FEATURES with one', REQUEST.GET_FEATURES, undefined, 1],
    ['SET_FEATURES with eight', REQUEST.SET_FEATURES, u64(0), 8],
    ['GET_FEATURES with 253', REQUEST.GET_FEATURES, undefined, 253],
    ['SET_VRING_KICK with two', REQUEST.SET_VRING_KICK, vringFd(0), 2],
    ['SET_VRING_CALL without one, though bit 8 is clear', REQUEST.SET_VRING_CALL, vringFd(0), 0],
    ['SET_VRING_CALL with one, though bit 8 is set', REQUEST.SET_VRING_CALL, vringFd(0, true), 1],
    ['SET_VRING_ERR without one, though bit 8 is clear', REQUEST.SET_VRING_ERR, vringFd(0), 0],
    ['SET_VRING_KICK without one, though bit 8 is clear', REQUEST.SET_VRING_KICK, vringFd(0), 0],
    ['SET_MEM_TABLE of one region without one', REQUEST.SET_MEM_TABLE, memoryTable([region]), 0],
    ['SET_MEM_TABLE of one region with two', REQUEST.SET_MEM_TABLE, memoryTable([region]), 2],
    ['SET_MEM_TABLE of no region with one', REQUEST.SET_MEM_TABLE, memoryTable([]), 1],
    ['SET_MEM_TABLE with nine', REQUEST.SET_MEM_TABLE, memoryTable([region]), 9],
    ['ADD_MEM_REG without one', REQUEST.ADD_MEM_REG, singleRegion(region), 0],
    ['ADD_MEM_REG with two', REQUEST.ADD_MEM_REG, singleRegion(region), 2],
    ['REM_MEM_REG with two', REQUEST.REM_MEM_REG, singleRegion(region), 2],
    ['SET_INFLIGHT_FD without one', REQUEST.SET_INFLIGHT_FD, area, 0],
    ['SET_INFLIGHT_FD with two', REQUEST.SET_INFLIGHT_FD, area, 2],
    ['SET_BACKEND_REQ_FD without one', REQUEST.SET_BACKEND_REQ_FD, undefined, 0],
    ['SET_BACKEND_REQ_FD with two', REQUEST.SET_BACKEND_REQ_FD, undefined, 2],
  ])('%s', async (_, id, payload, count) => {
    await expectClosed(message(id, payload), fds(count));
  });

  it('on a later byte of a message', async () => {
    const { connection } = await daemon().negotiate();
    const bytes = message(REQUEST.SET_MEM_TABLE, memoryTable([region]));
    await connection.sendBytes(bytes.subarray(0, 12));
    // The answer on another connection: by now the first part was read.
    await daemon().expectServesGoodClient();

    await connection.sendBytes(bytes.subarray(12), [daemon().keep(createMemfd(4096))]);

    await connection.waitForEnd();
  });
});

describe('a front end that goes away', () => {
  it.each([1, 5, 11, 12, 15, 19])('after %i bytes of a message is forgotten', async (length) => {
    const { connection } = await daemon().negotiate();

    await connection.sendBytes(message(REQUEST.SET_FEATURES, u64(0)).subarray(0, length), fds(2));
    connection.close();
  });

  it('before it said anything is forgotten', () => {
    for (let i = 0; i < 20; i += 1) daemon().connect().close();
  });

  it('with requests of which it does not read the answers is forgotten', async () => {
    const frontend = await daemon().negotiate();
    for (let i = 0; i < 50; i += 1) await frontend.connection.send(REQUEST.GET_FEATURES);

    frontend.close();
  });

  it('never reads while it asks and asks, costs its connection and no memory', async () => {
    const frontend = await daemon().negotiate();
    const flood = Buffer.concat(
      Array.from({ length: 200 }, () => message(REQUEST.GET_CONFIG, config(0, new Uint8Array(256)))),
    );
    const before = daemon().backend.rssBytes();

    await expect(floodUntilEnd(frontend, flood)).resolves.toBe('closed');

    expect(daemon().backend.rssBytes() - before).toBeLessThan(32 << 20);
  });
});

/** Sends without ever reading; the watch of the connection is on the same loop, so read nothing: close it there. */
const floodUntilEnd = async (frontend: RawFrontend, flood: Uint8Array): Promise<'closed'> => {
  frontend.connection.stopReading();
  try {
    for (;;) await frontend.connection.sendBytes(flood);
  } catch (error) {
    expect(String(error)).toMatch(/EPIPE|ECONNRESET/);
    return 'closed';
  }
};
