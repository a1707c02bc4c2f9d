/**
 * Who has the lock of a disk when a guest does not arrive where it was to go, ends there, or moves without having used the
 * disk: nobody whom it does not run with, so that it can go on elsewhere.
 */

import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { openFile } from '../../protocol/sys/owned-fd.ts';
import { O_RDWR, tryLock } from '../../protocol/sys/storage.ts';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { type FrontendOptions, RawFrontend } from '../support/frontend/raw-frontend.ts';
import { bits, FEATURE, PROTOCOL, REQUEST, u64, vringAddress, vringFd } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';
import { checkedDisk } from '../unit/vmm-client/vmm/devices/checked.ts';
import { DeviceRig } from './device-rig.ts';

const cleanup = cleanupAfterEach();
const LOGGING: FrontendOptions = { features: [FEATURE.LOG_ALL], protocolFeatures: [PROTOCOL.LOG_SHMFD] };
const read = { type: TYPE.IN, sector: 8, inBytes: 512 };
let image: string;

beforeEach(() => {
  image = randomImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
});

const startDaemon = (...extra: string[]): Promise<BlkBackend> =>
  BlkBackend.start(cleanup, { image, numQueues: 2, extra });

/** Connects, with all but started rings. */
const prepare = async (daemon: BlkBackend, options: FrontendOptions = {}): Promise<RawFrontend> => {
  const frontend = RawFrontend.connect(daemon.socket, options);
  cleanup.add(() => frontend.close());
  await frontend.negotiate();
  await frontend.shareMemory();
  return frontend;
};

const start = async (daemon: BlkBackend, options: FrontendOptions = {}): Promise<RawFrontend> => {
  const frontend = await prepare(daemon, options);
  for (const queue of frontend.queues) await frontend.startRing(queue);
  return frontend;
};

/** Starts a ring where there is no memory. */
const startNowhere = async (frontend: RawFrontend, index = 0): Promise<'nack' | 'closed' | 'ok'> => {
  const queue = frontend.queue(index);
  await frontend.configureRing(queue);
  const nowhere = { ...queue.addresses(), descriptor: 0x1000 };
  await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(index, nowhere));
  return frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(index), [queue.kick]);
};

const isLocked = (): boolean => {
  const fd = openFile(image, O_RDWR);
  try {
    return !tryLock(fd.fd, true);
  } finally {
    fd.close();
  }
};

const untilUnlocked = (): Promise<boolean> => eventually('the lock', isLocked, (locked) => !locked);

describe('a daemon that waits for a guest', () => {
  it('lets go of the disk when its first ring cannot be started, so that the guest goes on where it was', async () => {
    const source = await start(await startDaemon(), LOGGING);
    const destination = await prepare(await startDaemon('--incoming'));
    const base = await source.stopRing(source.queue());

    expect(await startNowhere(destination)).toBe('nack');

    expect(isLocked()).toBe(false);
    await source.startRing(source.queue(), base);
    expect((await doRequest(source, read)).status).toBe(STATUS.OK);
  });

  it('keeps it while a ring runs, when another one cannot be started, and lets go of it with the connection', async () => {
    const frontend = await prepare(await startDaemon('--incoming'), { queues: 2 });
    await frontend.startRing(frontend.queue());

    expect(await startNowhere(frontend, 1)).toBe('nack');
    expect(isLocked()).toBe(true);
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);

    frontend.close();
    expect(await untilUnlocked()).toBe(false);
  });

  it('keeps it over a reset of a guest that is there, and has it for the next one', async () => {
    const daemon = await startDaemon('--incoming');
    const first = await start(daemon);
    const base = await first.stopRing(first.queue());
    expect(isLocked()).toBe(true);

    // Not even where the ring cannot be started then: it was here before.
    expect(await startNowhere(first)).toBe('nack');
    await first.startRing(first.queue(), base);
    await first.stopRing(first.queue());
    const second = await start(daemon);
    first.close();
    expect((await doRequest(second, read)).status).toBe(STATUS.OK);
    expect(isLocked()).toBe(true);

    second.close();
    expect(await untilUnlocked()).toBe(false);
  });
});

it('a daemon that has its disk from the start keeps it, whoever comes and goes', async () => {
  const daemon = await startDaemon();
  const frontend = await prepare(daemon);
  expect(await startNowhere(frontend)).toBe('nack');
  expect(isLocked()).toBe(true);
  await frontend.startRing(frontend.queue());
  frontend.close();

  // Rings can be started when those of the connection before are done with.
  await start(daemon);
  expect(isLocked()).toBe(true);
});

describe('a disk that its guest has not used', () => {
  it.each([
    ['a reset', (frontend: RawFrontend) => frontend.require(REQUEST.RESET_DEVICE)],
    ['the base of a ring', (frontend: RawFrontend) => frontend.stopRing(frontend.queue())],
  ])('goes with the guest: by %s while writes are logged', async (_, say) => {
    const daemon = await startDaemon();
    const frontend = await prepare(daemon, { protocolFeatures: [PROTOCOL.LOG_SHMFD, PROTOCOL.RESET_DEVICE] });
    await say(frontend);
    expect(isLocked()).toBe(true);

    await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features | bits(FEATURE.LOG_ALL)));
    await say(frontend);
    expect(isLocked()).toBe(false);

    // It did not go.
    await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
    await frontend.startRing(frontend.queue());
    expect((await doRequest(frontend, read)).status).toBe(STATUS.OK);
    expect(isLocked()).toBe(true);
  });

  const diskAt = (socket: string): DeviceDescription => ({
    kind: 'disk',
    config: checkedDisk({ id: 'disk0', vhost_socket: socket, queue_size: 64 }),
  });

  it.each([
    ['never', 0],
    ['before its last reset', 1],
  ])('is there for it in the next machine, while the daemon of the first one lives: used %s', async (_, starts) => {
    const [first, second] = [await startDaemon(), await startDaemon('--incoming')];
    const rig = await DeviceRig.plug(cleanup, diskAt(first.socket));
    for (let i = 0; i < starts; i += 1) {
      expect(await rig.guest.start()).toBe(15);
      await rig.driver.reset();
    }
    await rig.transport.startDirtyLog();
    const state = await rig.suspend();
    const next = await rig.elsewhere(diskAt(second.socket));
    await next.transport.restore(state);

    expect(await next.guest.start()).toBe(15);
    expect((await doRequest(next.guest, read)).status).toBe(STATUS.OK);
    expect(first.running).toBe(true);
    expect(rig.lines).toEqual([]);
  });

  it('is there for it in the machine that it did not leave after all', async () => {
    const first = await startDaemon();
    const rig = await DeviceRig.plug(cleanup, diskAt(first.socket));
    await rig.transport.startDirtyLog();
    await rig.suspend();
    expect(isLocked()).toBe(false);
    await rig.transport.resume();
    await rig.transport.stopDirtyLog();

    expect(await rig.guest.start()).toBe(15);
    expect((await doRequest(rig.guest, read)).status).toBe(STATUS.OK);
    expect(isLocked()).toBe(true);
  });

  it('stays locked while a snapshot of its guest is taken', async () => {
    const rig = await DeviceRig.plug(cleanup, diskAt((await startDaemon()).socket));
    await rig.suspend();
    expect(isLocked()).toBe(true);
  });
});
