/**
 * Guest memory that grows while a guest is migrated: no write to a page that the dirty log has no bit for. The log grows
 * first; a device that is started again says its memory before its log, and is not served in between.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, RequestArea, STATUS, TYPE, UNTOUCHED } from '../support/frontend/blk-request.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { bits, FEATURE, memoryTable, PROTOCOL, REQUEST, singleRegion, u64 } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const PAGE = 4096;
/** The memory of the front end ends at 0x4020_0000, the one that comes at 0x5010_0000. */
const LOG_BYTES = 0x4020_0000 / PAGE / 8;
const LARGER_LOG_BYTES = 0x5010_0000 / PAGE / 8;
const cleanup = cleanupAfterEach();
const read = { type: TYPE.IN, sector: 8, inBytes: 512 };

const setLog = async (frontend: RawFrontend, bytes: number): Promise<OwnedFd> => {
  const log = createMemfd(bytes);
  cleanup.add(() => log.close());
  const area = Uint8Array.of(...u64(bytes), ...u64(0));
  expect(await frontend.connection.call(REQUEST.SET_LOG_BASE, area, [log])).toMatchObject({ payload: u64(0) });
  return log;
};

const isMarked = (log: OwnedFd, guestAddress: number): boolean => {
  const page = Math.floor(guestAddress / PAGE);
  const byte = readFileSync(`/proc/self/fd/${log.fd}`)[page >> 3];
  return byte !== undefined && (byte & (1 << (page & 7))) !== 0;
};

const more = (guestAddress = 0x5000_0000): GuestRam => {
  const ram = new GuestRam(1 << 20, guestAddress, 0x7f00_0000_0000);
  cleanup.add(() => ram.close());
  return ram;
};

/** Lays out a read of a sector to the beginning of `ram`. */
const prepareRead = (frontend: RawFrontend, ram: GuestRam): RequestArea => {
  const area = new RequestArea(frontend);
  area.putHeader(TYPE.IN, 8);
  const data = { address: ram.guest(0), length: 512, flags: WRITE };
  frontend.queue().setChain(0, [area.headerDescriptor(), data, area.statusDescriptor()]);
  return area;
};

describe.each([
  ['a disk', []],
  ['a disk that is served by a thread', ['--threads=1']],
])('memory that comes while %s logs what it writes', (_, extra) => {
  const start = async (logging = true): Promise<{ frontend: RawFrontend; image: string }> => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
    const { socket } = await BlkBackend.start(cleanup, { image, extra });
    const frontend = await RawFrontend.start(socket, {
      protocolFeatures: [PROTOCOL.LOG_SHMFD, PROTOCOL.CONFIGURE_MEM_SLOTS],
    });
    cleanup.add(() => frontend.close());
    await setLog(frontend, LOG_BYTES);
    if (logging) await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features | bits(FEATURE.LOG_ALL)));
    return { frontend, image };
  };
  const add = (ram: GuestRam) => [REQUEST.ADD_MEM_REG, singleRegion(ram.region()), [ram.fd]] as const;

  it('is refused where it lies beyond the log, and taken when there is a larger one', async () => {
    const { frontend, image } = await start();
    const ram = more();

    expect(await frontend.isRefused(...add(ram))).toBe('nack');
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);

    const log = await setLog(frontend, LARGER_LOG_BYTES);
    await frontend.require(...add(ram));
    const area = prepareRead(frontend, ram);
    await frontend.queue().run(0);
    expect(area.statusByte).toBe(STATUS.OK);
    expect(Buffer.from(ram.bytes.subarray(0, 512))).toEqual(readFileSync(image).subarray(4096, 4608));
    expect(isMarked(log, ram.guest(0))).toBe(true);
    expect(isMarked(log, ram.guest(PAGE))).toBe(false);
  });

  it('is refused in a table too, which leaves the one before in its place', async () => {
    const { frontend } = await start();
    const ram = more();

    const table = memoryTable([frontend.ram.region(), ram.region()]);
    expect(await frontend.isRefused(REQUEST.SET_MEM_TABLE, table, [frontend.ram.fd, ram.fd])).toBe('nack');
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);
  });

  it('is taken where the log reaches', async () => {
    const { frontend } = await start();
    const ram = more(0x1000_0000);

    await frontend.require(...add(ram));
    const area = prepareRead(frontend, ram);
    await frontend.queue().run(0);
    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('is taken while no ring is started; rings are served when there is a log that reaches there', async () => {
    const { frontend } = await start();
    const ram = more();
    const base = await frontend.stopRing(frontend.queue());

    await frontend.require(...add(ram));
    await frontend.startRing(frontend.queue(), base);
    const area = prepareRead(frontend, ram);
    frontend.queue().publish(0);
    frontend.queue().signal();
    // Each answer comes after a turn of the loop in which the ring would be served.
    for (let i = 0; i < 100; i += 1) await frontend.connection.ask(REQUEST.GET_FEATURES);
    expect(area.statusByte).toBe(UNTOUCHED);

    const log = await setLog(frontend, LARGER_LOG_BYTES);
    await frontend.queue().take();
    expect(area.statusByte).toBe(STATUS.OK);
    expect(isMarked(log, ram.guest(0))).toBe(true);
  });

  it('that came before, beyond a log of an earlier migration, wants a larger one before writes are logged', async () => {
    const { frontend } = await start(false);
    const logging = u64(frontend.features | bits(FEATURE.LOG_ALL));
    const ram = more();

    await frontend.require(...add(ram));
    expect(await frontend.isRefused(REQUEST.SET_FEATURES, logging)).toBe('nack');
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);

    const log = await setLog(frontend, LARGER_LOG_BYTES);
    await frontend.require(REQUEST.SET_FEATURES, logging);
    prepareRead(frontend, ram);
    await frontend.queue().run(0);
    expect(isMarked(log, ram.guest(0))).toBe(true);
  });
});
