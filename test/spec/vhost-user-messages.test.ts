/**
 * vhost-user, Front-end message types and Back-end message types: one row a message, its payload and its reply's as
 * literal bytes. The bytes were laid out by hand from the protocol's text, not by the code under test.
 */

import { describe, expect, it } from 'vitest';
import { BACKEND_BY_ID, FRONTEND_BY_ID, type MessageType } from '../../protocol/vhost-user/messages.ts';
import { dump, hex } from '../support/hex.ts';

interface Payload {
  readonly bytes: string;
  readonly value: unknown;
}

interface Row {
  readonly id: number;
  readonly name: string;
  /** Descriptors: as many, or at least and at most. */
  readonly fds: number | readonly [number, number];
  readonly request: Payload;
  /** Answered even without need_reply. */
  readonly reply?: Payload;
}

const none: Payload = { bytes: '', value: undefined };
const u64: Payload = { bytes: '08 07 06 05 04 03 02 81', value: 0x8102_0304_0506_0708n };
const state: Payload = { bytes: '05 00 00 00  00 01 00 00', value: { index: 5, num: 256 } };
const withFd: Payload = { bytes: 'fe 00 00 00 00 00 00 00', value: { index: 254, noFd: false } };
const base: Payload = { bytes: '01 00 00 00  ff ff 00 00', value: { index: 1, num: 0xffff } };

const regionBytes =
  '00 00 00 00 01 00 00 00  00 00 00 80 00 00 00 00  00 10 00 00 00 7f 00 00  00 00 20 00 00 00 00 00';
const region = {
  guestAddress: 0x1_0000_0000,
  size: 0x8000_0000,
  userAddress: 0x7f00_0000_1000,
  mmapOffset: 0x20_0000,
};
const low = '00 00 00 00 00 00 00 00  00 00 0a 00 00 00 00 00  00 00 00 00 00 70 00 00  00 00 00 00 00 00 00 00';
const lowRegion = { guestAddress: 0, size: 0xa_0000, userAddress: 0x7000_0000_0000, mmapOffset: 0 };

const memoryTable: Payload = { bytes: `02 00 00 00  00 00 00 00 ${low} ${regionBytes}`, value: [lowRegion, region] };
const singleRegion: Payload = { bytes: `00 00 00 00 00 00 00 00 ${regionBytes}`, value: region };
const address: Payload = {
  bytes: `03 00 00 00  01 00 00 00
    00 10 00 00 00 7f 00 00  00 30 00 00 00 7f 00 00  00 20 00 00 00 7f 00 00  ff ff ff ff ff ff ff ff`,
  value: {
    index: 3,
    flags: 1,
    descriptor: 0x7f00_0000_1000,
    used: 0x7f00_0000_3000,
    available: 0x7f00_0000_2000,
    log: 0xffff_ffff_ffff_ffffn,
  },
};
const log: Payload = {
  bytes: '00 00 04 00 00 00 00 00  00 10 00 00 00 00 00 00',
  value: { size: 0x4_0000, offset: 0x1000 },
};
const iotlb: Payload = {
  bytes: `00 00 00 00 00 00 00 f0  00 10 00 00 00 00 00 00  00 00 00 00 00 7f 00 00  03 02 00 00 00 00 00 00`,
  value: { iova: 0xf000_0000_0000_0000n, size: 0x1000n, userAddress: 0x7f00_0000_0000n, permission: 3, type: 2 },
};
const config: Payload = {
  bytes: '20 00 00 00  04 00 00 00  01 00 00 00  01 02 03 04',
  value: { offset: 32, size: 4, flags: 1, data: Uint8Array.of(1, 2, 3, 4) },
};
const inflight: Payload = {
  bytes: '80 08 00 00 00 00 00 00  00 10 00 00 00 00 00 00  02 00 80 00 00 00 00 00',
  value: { mmapSize: 0x880, mmapOffset: 0x1000, numQueues: 2, queueSize: 128 },
};
const uuid: Payload = {
  bytes: '00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f',
  value: Uint8Array.from({ length: 16 }, (_, i) => i),
};
const transfer: Payload = { bytes: '01 00 00 00 00 00 00 00', value: { direction: 1, phase: 0 } };
const mapping: Payload = {
  bytes: `07 00 00 00 00 00 00 00  00 10 00 00 00 00 00 00  00 20 00 00 00 00 00 00  00 30 00 00 00 00 00 00
    01 00 00 00 00 00 00 00`,
  value: { shmid: 7, fdOffset: 0x1000, shmOffset: 0x2000, length: 0x3000, flags: 1n },
};
const area: Payload = {
  bytes: '02 01 00 00 00 00 00 00  00 10 00 00 00 00 00 00  00 40 00 00 00 00 00 00',
  value: { index: 2, noFd: true, size: 0x1000, offset: 0x4000 },
};
const shmem: Payload = {
  bytes: `01 00 00 00  00 00 00 00  00 00 10 00 00 00 00 00 ${'00'.repeat(8 * 255)}`,
  value: { sizes: [0x10_0000] },
};
const opaque: Payload = { bytes: 'de ad be ef 01', value: Uint8Array.of(0xde, 0xad, 0xbe, 0xef, 1) };

const FRONT_END: Row[] = [
  { id: 1, name: 'GET_FEATURES', fds: 0, request: none, reply: u64 },
  { id: 2, name: 'SET_FEATURES', fds: 0, request: u64 },
  { id: 3, name: 'SET_OWNER', fds: 0, request: none },
  { id: 4, name: 'RESET_OWNER', fds: 0, request: none },
  { id: 5, name: 'SET_MEM_TABLE', fds: [0, 8], request: memoryTable },
  { id: 6, name: 'SET_LOG_BASE', fds: 1, request: log, reply: u64 },
  { id: 7, name: 'SET_LOG_FD', fds: 1, request: none },
  { id: 8, name: 'SET_VRING_NUM', fds: 0, request: state },
  { id: 9, name: 'SET_VRING_ADDR', fds: 0, request: address },
  { id: 10, name: 'SET_VRING_BASE', fds: 0, request: base },
  { id: 11, name: 'GET_VRING_BASE', fds: 0, request: state, reply: base },
  { id: 12, name: 'SET_VRING_KICK', fds: [0, 1], request: withFd },
  { id: 13, name: 'SET_VRING_CALL', fds: [0, 1], request: withFd },
  { id: 14, name: 'SET_VRING_ERR', fds: [0, 1], request: withFd },
  { id: 15, name: 'GET_PROTOCOL_FEATURES', fds: 0, request: none, reply: u64 },
  { id: 16, name: 'SET_PROTOCOL_FEATURES', fds: 0, request: u64 },
  { id: 17, name: 'GET_QUEUE_NUM', fds: 0, request: none, reply: u64 },
  { id: 18, name: 'SET_VRING_ENABLE', fds: 0, request: state },
  { id: 19, name: 'SEND_RARP', fds: 0, request: u64 },
  { id: 20, name: 'NET_SET_MTU', fds: 0, request: u64 },
  { id: 21, name: 'SET_BACKEND_REQ_FD', fds: 1, request: none },
  { id: 22, name: 'IOTLB_MSG', fds: 0, request: iotlb, reply: u64 },
  { id: 23, name: 'SET_VRING_ENDIAN', fds: 0, request: state },
  { id: 24, name: 'GET_CONFIG', fds: 0, request: config, reply: config },
  { id: 25, name: 'SET_CONFIG', fds: 0, request: config },
  { id: 26, name: 'CREATE_CRYPTO_SESSION', fds: 0, request: opaque, reply: opaque },
  { id: 27, name: 'CLOSE_CRYPTO_SESSION', fds: 0, request: u64 },
  { id: 28, name: 'POSTCOPY_ADVISE', fds: 0, request: none, reply: none },
  { id: 29, name: 'POSTCOPY_LISTEN', fds: 0, request: none },
  { id: 30, name: 'POSTCOPY_END', fds: 0, request: none, reply: u64 },
  { id: 31, name: 'GET_INFLIGHT_FD', fds: 0, request: inflight, reply: inflight },
  { id: 32, name: 'SET_INFLIGHT_FD', fds: 1, request: inflight },
  { id: 33, name: 'GPU_SET_SOCKET', fds: 1, request: none },
  { id: 34, name: 'RESET_DEVICE', fds: 0, request: none },
  { id: 35, name: 'VRING_KICK', fds: 0, request: state },
  { id: 36, name: 'GET_MAX_MEM_SLOTS', fds: 0, request: none, reply: u64 },
  { id: 37, name: 'ADD_MEM_REG', fds: 1, request: singleRegion },
  { id: 38, name: 'REM_MEM_REG', fds: [0, 1], request: singleRegion },
  { id: 39, name: 'SET_STATUS', fds: 0, request: u64 },
  { id: 40, name: 'GET_STATUS', fds: 0, request: none, reply: u64 },
  { id: 41, name: 'GET_SHARED_OBJECT', fds: 0, request: uuid, reply: u64 },
  { id: 42, name: 'SET_DEVICE_STATE_FD', fds: 1, request: transfer, reply: u64 },
  { id: 43, name: 'CHECK_DEVICE_STATE', fds: 0, request: none, reply: u64 },
  { id: 44, name: 'GET_SHMEM_CONFIG', fds: 0, request: none, reply: shmem },
  { id: 45, name: 'GET_VRING_BASE_SKIP_DRAIN', fds: 0, request: state, reply: base },
];

const BACK_END: Row[] = [
  { id: 1, name: 'BACKEND_IOTLB_MSG', fds: 0, request: iotlb },
  { id: 2, name: 'BACKEND_CONFIG_CHANGE_MSG', fds: 0, request: none },
  { id: 3, name: 'BACKEND_VRING_HOST_NOTIFIER_MSG', fds: [0, 1], request: area },
  { id: 4, name: 'BACKEND_VRING_CALL', fds: 0, request: state },
  { id: 5, name: 'BACKEND_VRING_ERR', fds: 0, request: state },
  { id: 6, name: 'BACKEND_SHARED_OBJECT_ADD', fds: 0, request: uuid },
  { id: 7, name: 'BACKEND_SHARED_OBJECT_REMOVE', fds: 0, request: uuid },
  { id: 8, name: 'BACKEND_SHARED_OBJECT_LOOKUP', fds: 0, request: uuid, reply: u64 },
  { id: 9, name: 'BACKEND_SHMEM_MAP', fds: 1, request: mapping },
  { id: 10, name: 'BACKEND_SHMEM_UNMAP', fds: 0, request: mapping },
];

const find = (table: ReadonlyMap<number, MessageType>, id: number): MessageType => {
  const type = table.get(id);
  if (type === undefined) throw new Error(`message ${id} is not known`);
  return type;
};

const suites = [
  { title: 'front-end messages', rows: FRONT_END, table: FRONTEND_BY_ID },
  { title: 'back-end messages', rows: BACK_END, table: BACKEND_BY_ID },
];

describe.each(suites)('$title', ({ rows, table }) => {
  it('are all in the table and no others', () => {
    expect([...table.keys()].sort((a, b) => a - b)).toEqual(rows.map((row) => row.id));
  });

  it.each(rows)('$id is $name with its descriptors and its reply', ({ id, name, fds, reply }) => {
    const type = find(table, id);

    expect(type.name).toBe(name);
    expect([type.fds.min, type.fds.max]).toEqual(typeof fds === 'number' ? [fds, fds] : fds);
    expect(type.reply !== undefined).toBe(reply !== undefined);
  });

  it.each(rows)('$id $name: the request is encoded and decoded byte for byte', ({ id, request }) => {
    const codec = find(table, id).request;

    expect(dump(codec.encode(request.value))).toBe(dump(hex(request.bytes)));
    expect(codec.decode(hex(request.bytes))).toEqual(request.value);
  });

  it.each(rows.filter((row) => row.reply !== undefined))(
    '$id $name: the reply is encoded and decoded byte for byte',
    ({ id, reply }) => {
      const codec = find(table, id).reply;

      expect(dump(codec?.encode(reply?.value) ?? hex('00'))).toBe(dump(hex(reply?.bytes ?? '')));
      expect(codec?.decode(hex(reply?.bytes ?? ''))).toEqual(reply?.value);
    },
  );

  it.each(rows.filter((row) => !['CREATE_CRYPTO_SESSION'].includes(row.name)))(
    '$id $name: a payload one byte too short or too long is refused',
    ({ id, request }) => {
      const codec = find(table, id).request;
      const bytes = hex(request.bytes);

      expect(() => codec.decode(Uint8Array.of(...bytes, 0))).toThrow(/bytes/);
      if (bytes.length > 0) expect(() => codec.decode(bytes.slice(0, -1))).toThrow(/bytes/);
    },
  );
});
