/**
 * Block requests that a correct driver would not send: each is answered with a status, and changes nothing on the disk.
 * Source: VIRTIO 1.3, 5.2.6.
 */

import { describe, expect, it } from 'vitest';
import { doRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { type RawDescriptor, WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE } from '../support/frontend/wire.ts';

const CAPACITY = 8192n;
const SERIAL = 'hostile-disk';
const daemon = hostileDaemon({ serial: SERIAL });

const ALL = [FEATURE.FLUSH, FEATURE.DISCARD, FEATURE.WRITE_ZEROES, FEATURE.BLK_SIZE];
const start = (features = ALL): Promise<RawFrontend> => daemon().start({ features });

/** Submits a chain on descriptor 0 and returns its answer. */
const submit = async (
  frontend: RawFrontend,
  type: number,
  sector: number | bigint,
  chain: (area: RequestArea) => RawDescriptor[],
) => {
  const area = new RequestArea(frontend);
  area.putHeader(type, sector);
  frontend.ring().setChain(0, chain(area));
  const [used] = await frontend.ring().run(0);
  return { usedLength: used?.length, status: area.statusByte };
};

const ioError = { usedLength: 1, status: STATUS.IOERR };
const unsupported = { usedLength: 1, status: STATUS.UNSUPP };

describe('a header', () => {
  it.each([0, 1, 8, 15])('of %i bytes gets IOERR', async (length) => {
    const frontend = await start();

    const answer = await submit(frontend, TYPE.IN, 0, (area) => [
      area.headerDescriptor(length),
      area.statusDescriptor(),
    ]);

    expect(answer).toEqual(ioError);
  });

  it.each([1, 4, 8, 15])('split after %i bytes is understood', async (at) => {
    const frontend = await start();

    const answer = await submit(frontend, TYPE.IN, 8, (area) => [
      area.headerDescriptor(at),
      { address: frontend.ram.guest(area.header + at), length: 16 - at },
      area.dataDescriptor(512, WRITE),
      area.statusDescriptor(),
    ]);

    expect(answer).toEqual({ usedLength: 513, status: STATUS.OK });
  });

  it('joined with the data of a write is understood', async () => {
    const frontend = await start();
    const { data } = await doRequest(frontend, { type: TYPE.IN, sector: 16, inBytes: 512 });
    const area = new RequestArea(frontend);
    frontend.ram.bytes.set(data, area.header + 16);

    const answer = await submit(frontend, TYPE.OUT, 16, () => [
      { address: frontend.ram.guest(area.header), length: 16 + 512 },
      area.dataDescriptor(1, WRITE),
    ]);

    expect(answer.usedLength).toBe(1);
    expect(frontend.ram.bytes[area.data]).toBe(STATUS.OK);
  });
});

describe('a transfer', () => {
  it.each([0, 1, 511, 513, 4095])('of %i bytes, not whole sectors, gets IOERR', async (length) => {
    const frontend = await start();

    const read = await submit(frontend, TYPE.IN, 0, (area) => [
      area.headerDescriptor(),
      area.dataDescriptor(length, WRITE),
      area.statusDescriptor(),
    ]);
    const write = await submit(frontend, TYPE.OUT, 0, (area) => [
      area.headerDescriptor(),
      area.dataDescriptor(length),
      area.statusDescriptor(),
    ]);

    expect([read, write]).toEqual([ioError, ioError]);
  });

  it.each<[string, bigint, number]>([
    ['at the end of the disk', CAPACITY, 512],
    ['over the end of the disk', CAPACITY - 1n, 1024],
    ['at sector 2^32', 2n ** 32n, 512],
    ['at sector 2^54, where the byte offset is 2^63', 2n ** 54n, 512],
    ['at sector 2^55, where the byte offset wraps to 0', 2n ** 55n, 512],
    ['at sector 2^55 + 1', 2n ** 55n + 1n, 512],
    ['at sector 2^63', 2n ** 63n, 512],
    ['at sector 2^64 - 1', 2n ** 64n - 1n, 512],
    ['at sector 2^64 - 1, two sectors long', 2n ** 64n - 1n, 1024],
  ])('%s gets IOERR, read or write', async (_, sector, length) => {
    const frontend = await start();

    const read = await doRequest(frontend, { type: TYPE.IN, sector, inBytes: length });
    const write = await doRequest(frontend, { type: TYPE.OUT, sector, out: new Uint8Array(length) });

    expect([read.status, write.status]).toEqual([STATUS.IOERR, STATUS.IOERR]);
  });

  it('of the last sector succeeds', async () => {
    const frontend = await start();

    expect((await doRequest(frontend, { type: TYPE.IN, sector: CAPACITY - 1n, inBytes: 512 })).status).toBe(STATUS.OK);
  });

  it('with the data on the wrong side gets IOERR', async () => {
    const frontend = await start();

    const read = await doRequest(frontend, { type: TYPE.IN, out: new Uint8Array(512) });
    const write = await doRequest(frontend, { type: TYPE.OUT, inBytes: 512 });

    expect([read.status, write.status]).toEqual([STATUS.IOERR, STATUS.IOERR]);
  });

  it('of 1000 one-sector buffers, far more than seg_max, is answered', async () => {
    const frontend = await daemon().start({ features: [FEATURE.INDIRECT_DESC], queueSize: 64 });
    const table = frontend.dataStart + 0x2_0000;
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const chain = [
      area.headerDescriptor(),
      ...Array.from({ length: 1000 }, (_, i) => area.dataDescriptor(512, WRITE, 512 * (i % 16))),
      area.statusDescriptor(),
    ];
    frontend.ring().setChain(0, chain, table);
    frontend.ring().setDescriptor(0, { address: frontend.ram.guest(table), length: 16 * chain.length, flags: 4 });

    const [used] = await frontend.ring().run(0);

    expect(used).toEqual({ id: 0, length: 512_001 });
    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('of the whole disk in one buffer is answered', async () => {
    const frontend = await daemon().start({ ramBytes: 8 << 20 });
    const area = new RequestArea(frontend, 0, 4 << 20);
    area.putHeader(TYPE.IN, 0);
    frontend
      .ring()
      .setChain(0, [area.headerDescriptor(), area.dataDescriptor(4 << 20, WRITE), area.statusDescriptor()]);

    const [used] = await frontend.ring().run(0);

    expect(used).toEqual({ id: 0, length: (4 << 20) + 1 });
  });
});

describe('a flush', () => {
  it.each<[string, Parameters<typeof doRequest>[1]]>([
    ['with a sector', { type: TYPE.FLUSH, sector: 12345 }],
    ['with data to write', { type: TYPE.FLUSH, out: new Uint8Array(512) }],
    ['with data to read', { type: TYPE.FLUSH, inBytes: 512 }],
  ])('%s succeeds and touches no data', async (_, request) => {
    const frontend = await start();

    const answer = await doRequest(frontend, request);

    expect(answer).toMatchObject({ usedLength: 1, status: STATUS.OK });
  });

  it('that was not negotiated is answered', async () => {
    const frontend = await start([]);

    expect((await doRequest(frontend, { type: TYPE.FLUSH })).usedLength).toBe(1);
  });
});

describe('GET_ID', () => {
  const padded = Buffer.alloc(20);
  padded.write(SERIAL);

  it.each([20, 21, 100, 4096])('into %i bytes gives the serial number, padded with NUL to 20', async (length) => {
    const frontend = await start();

    const answer = await doRequest(frontend, { type: TYPE.GET_ID, inBytes: length });

    expect(answer).toMatchObject({ status: STATUS.OK, usedLength: 21 });
    expect(Buffer.from(answer.data.subarray(0, 20))).toEqual(padded);
  });

  it.each([1, 7, 19])('into %i bytes gives as much as fits', async (length) => {
    const frontend = await start();

    const answer = await doRequest(frontend, { type: TYPE.GET_ID, inBytes: length });

    expect(answer).toMatchObject({ status: STATUS.OK, usedLength: length + 1 });
    expect(Buffer.from(answer.data)).toEqual(padded.subarray(0, length));
  });

  it('into no data at all only gives a status', async () => {
    const frontend = await start();

    expect(await doRequest(frontend, { type: TYPE.GET_ID })).toMatchObject({ status: STATUS.OK, usedLength: 1 });
  });

  it('into several buffers goes on from one to the next', async () => {
    const frontend = await start();
    const area = new RequestArea(frontend);

    const answer = await submit(frontend, TYPE.GET_ID, 0, () => [
      area.headerDescriptor(),
      area.dataDescriptor(3, WRITE),
      area.dataDescriptor(5, WRITE, 100),
      area.dataDescriptor(12, WRITE, 200),
      area.statusDescriptor(),
    ]);

    expect(answer).toEqual({ usedLength: 21, status: STATUS.OK });
    const { bytes } = frontend.ram;
    const parts = [bytes.slice(area.data, area.data + 3), bytes.slice(area.data + 100, area.data + 105)];
    expect(Buffer.concat(parts).toString()).toBe(SERIAL.slice(0, 8));
  });
});

describe('an unknown request', () => {
  it.each([
    TYPE.SCSI_CMD,
    3,
    5,
    7,
    9,
    10,
    12,
    TYPE.SECURE_ERASE,
    15,
    26,
    27,
    28,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_ffff,
  ])('of type %i gets UNSUPP', async (type) => {
    const frontend = await start();

    expect(await doRequest(frontend, { type, out: new Uint8Array(512) })).toMatchObject(unsupported);
    expect(await doRequest(frontend, { type, inBytes: 512 })).toMatchObject(unsupported);
  });
});

/** One segment of DISCARD and WRITE_ZEROES: sector u64, num_sectors u32, flags u32. */
const segment = (sector: bigint | number, sectors: number, flags = 0): Uint8Array => {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(sector), true);
  view.setUint32(8, sectors, true);
  view.setUint32(12, flags, true);
  return bytes;
};

const MAX_SEGMENTS = 32;

describe.each([
  ['DISCARD', TYPE.DISCARD],
  ['WRITE_ZEROES', TYPE.WRITE_ZEROES],
])('%s', (_, type) => {
  it.each<[string, Uint8Array]>([
    ['without segments', new Uint8Array(0)],
    ['with 15 bytes of segments', new Uint8Array(15)],
    ['with 17 bytes of segments', new Uint8Array(17)],
    ['with more segments than max_*_seg', new Uint8Array(16 * (MAX_SEGMENTS + 1))],
    ['beyond the end of the disk', segment(CAPACITY, 1)],
    ['over the end of the disk', segment(CAPACITY - 1n, 2)],
    ['of 2^32 - 1 sectors', segment(0, 0xffff_ffff)],
    ['at sector 2^55, where the byte offset wraps to 0', segment(2n ** 55n, 1)],
    ['at sector 2^64 - 1', segment(2n ** 64n - 1n, 1)],
    ['at sector 2^64 - 1, two sectors long', segment(2n ** 64n - 1n, 2)],
    ['with a good segment before a bad one', Buffer.concat([segment(0, 8), segment(CAPACITY, 1)])],
  ])('%s gets IOERR and changes nothing', async (_title, out) => {
    const frontend = await start();

    expect(await doRequest(frontend, { type, out })).toMatchObject(ioError);
  });

  it.each([2, 0x8000_0000, 0xffff_fffe])('with unknown flags %i gets UNSUPP', async (flags) => {
    const frontend = await start();

    expect(await doRequest(frontend, { type, out: segment(0, 8, flags) })).toMatchObject(unsupported);
  });

  it('that was not negotiated gets UNSUPP', async () => {
    const frontend = await start([FEATURE.FLUSH]);

    expect(await doRequest(frontend, { type, out: segment(0, 8) })).toMatchObject(unsupported);
  });
});

describe('DISCARD', () => {
  it('with the unmap flag gets UNSUPP', async () => {
    const frontend = await start();

    expect(await doRequest(frontend, { type: TYPE.DISCARD, out: segment(0, 8, 1) })).toMatchObject(unsupported);
  });
});

describe('more requests than any limit', () => {
  it('fill a ring of 32768 entries and come back, every one', async () => {
    const size = 32768;
    const frontend = await daemon().start({ queueSize: size, ramBytes: 8 << 20 });
    const ring = frontend.ring();
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 3);
    // 10922 requests of three descriptors that share header, data and status.
    const requests = Math.floor(size / 3);
    const heads = Array.from({ length: requests }, (_, i) => 3 * i);
    for (const head of heads) {
      ring.setChain(head, [area.headerDescriptor(), area.dataDescriptor(512, WRITE), area.statusDescriptor()]);
    }

    const used = await ring.run(...heads);

    expect(used.map((entry) => entry.id).sort((a, b) => a - b)).toEqual(heads);
    expect(used.every((entry) => entry.length === 513)).toBe(true);
  });
});
