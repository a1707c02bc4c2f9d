/** Configuration space, cache mode, read-only devices, and a disk that grows. Source: VIRTIO 1.3, 5.2.4 and 5.2.5. */

import { readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { config, FEATURE, hasBit, PROTOCOL, REQUEST } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const MiB = 1 << 20;
const WRITEBACK = 32;

/** `size` bytes of the configuration space; empty when the back end refuses. */
const readConfig = async ({ connection }: RawFrontend, offset: number, size: number, flags = 0) => {
  const { payload } = await connection.call(REQUEST.GET_CONFIG, config(offset, new Uint8Array(size), flags));
  return payload.slice(12);
};

const u32At = async (frontend: RawFrontend, offset: number): Promise<number> =>
  Buffer.from(await readConfig(frontend, offset, 4)).readUInt32LE();

const capacity = async (frontend: RawFrontend): Promise<bigint> =>
  Buffer.from(await readConfig(frontend, 0, 8)).readBigUInt64LE();

describe('the configuration space', () => {
  const daemon = hostileDaemon({ numQueues: 3, blockSize: 4096 });

  it('says capacity, limits, block size and queues', async () => {
    const frontend = await daemon().negotiate();

    expect(await capacity(frontend)).toBe(8192n);
    expect(await u32At(frontend, 12)).toBeGreaterThanOrEqual(126);
    expect(await u32At(frontend, 20)).toBe(4096);
    expect(Buffer.from(await readConfig(frontend, 34, 2)).readUInt16LE()).toBe(3);
    expect(await frontend.connection.ask(REQUEST.GET_QUEUE_NUM)).toBe(3n);
  });

  it('may be read at any offset and length up to 256 bytes, zero beyond its end', async () => {
    const frontend = await daemon().negotiate();
    const whole = await readConfig(frontend, 0, 256);

    expect(whole.subarray(96)).toEqual(new Uint8Array(160));
    for (const [offset, size] of [
      [0, 1],
      [7, 1],
      [31, 3],
      [60, 196],
      [255, 1],
    ] as const) {
      expect(await readConfig(frontend, offset, size)).toEqual(whole.slice(offset, offset + size));
    }
  });

  it.each([0, 1, 2, 0xffff_ffff])('may be read with flags %i: rust-vmm and QEMU disagree about them', async (flags) => {
    const frontend = await daemon().negotiate();

    expect(await readConfig(frontend, 0, 60, flags)).toHaveLength(60);
  });

  it.each([
    [256, 1],
    [255, 2],
    [0xffff_ffff, 1],
    [0xffff_ff01, 255],
    [0, 0],
  ])('read at %i for %i bytes is refused by an empty payload', async (offset, size) => {
    const frontend = await daemon().negotiate();

    const reply = await frontend.connection.call(REQUEST.GET_CONFIG, config(offset, new Uint8Array(size)));

    expect(reply.payload).toHaveLength(0);
  });

  it.each([0, 1, 2])('lets writeback be written with flags %i', async (flags) => {
    const frontend = await daemon().negotiate({ features: [FEATURE.FLUSH, FEATURE.CONFIG_WCE] });

    for (const value of [0, 1]) {
      await frontend.require(REQUEST.SET_CONFIG, config(WRITEBACK, Uint8Array.of(value), flags));
      expect(await readConfig(frontend, WRITEBACK, 1)).toEqual(Uint8Array.of(value));
    }
  });

  it.each<[string, number, Uint8Array]>([
    ['the capacity', 0, new Uint8Array(8).fill(0xff)],
    ['the first byte', 0, Uint8Array.of(1)],
    ['the number of queues', 34, Uint8Array.of(1, 0)],
    ['the byte before writeback', 31, Uint8Array.of(1)],
    ['the byte behind writeback', 33, Uint8Array.of(1)],
    ['writeback and the byte behind it', WRITEBACK, Uint8Array.of(1, 0)],
    ['writeback as a u32', WRITEBACK, Uint8Array.of(1, 0, 0, 0)],
    ['writeback with a value of 2', WRITEBACK, Uint8Array.of(2)],
    ['nothing at writeback', WRITEBACK, new Uint8Array(0)],
    ['what is behind the end', 200, Uint8Array.of(1)],
    ['what is at 2^32 - 1', 0xffff_ffff, Uint8Array.of(1)],
  ])('refuses a write to %s', async (_, offset, data) => {
    const frontend = await daemon().negotiate();
    const before = await readConfig(frontend, 0, 256);

    expect(await frontend.isRefused(REQUEST.SET_CONFIG, config(offset, data))).toBe('nack');

    expect(await readConfig(frontend, 0, 256)).toEqual(before);
  });

  it('takes a whole migrated space, of which only writeback counts', async () => {
    const frontend = await daemon().negotiate({ features: [FEATURE.FLUSH, FEATURE.CONFIG_WCE] });
    const whole = await readConfig(frontend, 0, 60);
    const migrated = whole.map((byte, i) => (i === WRITEBACK ? 0 : byte ^ 0xff));

    await frontend.require(REQUEST.SET_CONFIG, config(0, migrated, 1));

    const now = await readConfig(frontend, 0, 60);
    expect(now[WRITEBACK]).toBe(0);
    expect(now.filter((_, i) => i !== WRITEBACK)).toEqual(whole.filter((_, i) => i !== WRITEBACK));
  });
});

describe('the cache mode', () => {
  const daemon = hostileDaemon();

  it.each<[string, number[], number]>([
    ['is writeback with FLUSH and CONFIG_WCE', [FEATURE.FLUSH, FEATURE.CONFIG_WCE], 1],
    ['starts as writethrough with CONFIG_WCE but without FLUSH', [FEATURE.CONFIG_WCE], 0],
  ])('%s', async (_, features, writeback) => {
    const frontend = await daemon().negotiate({ features });

    expect(await readConfig(frontend, WRITEBACK, 1)).toEqual(Uint8Array.of(writeback));
  });

  it('of one front end is not inherited by the next', async () => {
    const features = [FEATURE.FLUSH, FEATURE.CONFIG_WCE];
    const first = await daemon().negotiate({ features });
    await first.require(REQUEST.SET_CONFIG, config(WRITEBACK, Uint8Array.of(0)));
    first.close();

    const second = await daemon().negotiate({ features });

    expect(await readConfig(second, WRITEBACK, 1)).toEqual(Uint8Array.of(1));
  });

  it.each<[string, number[]]>([
    ['writethrough', []],
    ['writeback', [FEATURE.FLUSH, FEATURE.CONFIG_WCE]],
  ])('%s serves writes and flushes', async (_, features) => {
    const frontend = await daemon().start({ features });
    const { data } = await doRequest(frontend, { type: TYPE.IN, sector: 64, inBytes: 8192 });

    const written = await doRequest(frontend, { type: TYPE.OUT, sector: 64, out: data });
    const flushed = await doRequest(frontend, { type: TYPE.FLUSH });

    expect([written.status, flushed.status]).toEqual([STATUS.OK, STATUS.OK]);
  });
});

describe('a read-only device', () => {
  const daemon = hostileDaemon({ readOnly: true });

  it('offers RO and neither DISCARD nor WRITE_ZEROES', async () => {
    const { offered } = await daemon().negotiate();

    const bits = [FEATURE.RO, FEATURE.DISCARD, FEATURE.WRITE_ZEROES].map((bit) => hasBit(offered, bit));

    expect(bits).toEqual([true, false, false]);
  });

  it.each([
    ['write', TYPE.OUT],
    ['discard', TYPE.DISCARD],
    ['write zeroes', TYPE.WRITE_ZEROES],
    ['secure erase', TYPE.SECURE_ERASE],
  ])('refuses to %s', async (_, type) => {
    const frontend = await daemon().start({ features: [FEATURE.RO] });
    const out = new Uint8Array(512);
    new DataView(out.buffer).setUint32(8, 1, true);

    const { status } = await doRequest(frontend, { type, out: type === TYPE.OUT ? out : out.slice(0, 16) });

    expect(status).toBe(type === TYPE.OUT ? STATUS.IOERR : STATUS.UNSUPP);
  });

  it('refuses a write also to a driver that did not accept RO', async () => {
    const frontend = await daemon().start({ features: [] });

    expect((await doRequest(frontend, { type: TYPE.OUT, out: new Uint8Array(512) })).status).toBe(STATUS.IOERR);
  });
});

describe('a disk', () => {
  const cleanup = cleanupAfterEach();

  it('that grew is told to the front end on SIGHUP, and can be used to its new end', async () => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), MiB);
    const backend = await BlkBackend.start(cleanup, { image });
    const frontend = await RawFrontend.start(backend.socket, { protocolFeatures: [PROTOCOL.BACKEND_REQ] });
    cleanup.add(() => frontend.close());
    const [ours, theirs] = UnixStream.pair();
    const fd = theirs.detach();
    await frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
    fd.close();
    const channel = new RawConnection(ours);
    cleanup.add(() => channel.close());
    const lastSector = { type: TYPE.IN, sector: 4095, inBytes: 512 };
    expect((await doRequest(frontend, lastSector)).status).toBe(STATUS.IOERR);

    truncateSync(image, 2 * MiB);
    backend.signal('SIGHUP');

    // BACKEND_CONFIG_CHANGE_MSG is 2; nothing is attached, no answer is asked for.
    expect(await channel.receive()).toMatchObject({ id: 2, flags: 1, payload: new Uint8Array(0), fds: [] });
    expect(await capacity(frontend)).toBe(4096n);
    expect((await doRequest(frontend, lastSector)).status).toBe(STATUS.OK);
  });

  it('that shrank, or did not change, on SIGHUP is served on', async () => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), MiB);
    const backend = await BlkBackend.start(cleanup, { image });
    const frontend = await RawFrontend.start(backend.socket);
    cleanup.add(() => frontend.close());

    backend.signal('SIGHUP');
    await backend.waitForLog(/still 1048576 bytes/);
    truncateSync(image, MiB / 2);
    backend.signal('SIGHUP');
    await backend.waitForLog(/1048576 -> 524288 bytes/);

    expect(await capacity(frontend)).toBe(1024n);
    expect((await doRequest(frontend, { type: TYPE.IN, sector: 1023, inBytes: 512 })).status).toBe(STATUS.OK);
    expect((await doRequest(frontend, { type: TYPE.IN, sector: 1024, inBytes: 512 })).status).toBe(STATUS.IOERR);
  });

  it('discards, and writes zeroes with and without unmapping', async () => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), MiB);
    const before = readFileSync(image);
    const backend = await BlkBackend.start(cleanup, { image });
    const frontend = await RawFrontend.start(backend.socket, { features: [FEATURE.DISCARD, FEATURE.WRITE_ZEROES] });
    cleanup.add(() => frontend.close());
    const segments = (...ranges: [sector: number, sectors: number, flags: number][]): Uint8Array => {
      const view = new DataView(new ArrayBuffer(16 * ranges.length));
      ranges.forEach(([sector, sectors, flags], i) => {
        view.setBigUint64(16 * i, BigInt(sector), true);
        view.setUint32(16 * i + 8, sectors, true);
        view.setUint32(16 * i + 12, flags, true);
      });
      return new Uint8Array(view.buffer);
    };

    const answers = [
      await doRequest(frontend, { type: TYPE.DISCARD, out: segments([0, 8, 0]) }),
      await doRequest(frontend, { type: TYPE.WRITE_ZEROES, out: segments([16, 1, 0], [19, 2, 1], [20, 4, 0]) }),
      await doRequest(frontend, { type: TYPE.WRITE_ZEROES, out: segments([64, 8, 1]) }),
      await doRequest(frontend, { type: TYPE.DISCARD, out: segments([100, 0, 0]) }),
    ];

    expect(answers.map(({ status }) => status)).toEqual([0, 0, 0, 0]);
    const expected = Buffer.from(before);
    for (const [sector, sectors] of [
      [0, 8],
      [16, 1],
      [19, 5],
      [64, 8],
    ] as const) {
      expected.fill(0, sector * 512, (sector + sectors) * 512);
    }
    expect(Buffer.compare(readFileSync(image), expected)).toBe(0);
  });
});
