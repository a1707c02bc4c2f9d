/**
 * A guest on the way to another host: its connections cannot come along, and its driver is told so there. Source: VIRTIO
 * 1.3, 5.10.6.7.1; vhost-user, Migrating back-end state.
 */

import { expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { loadState, saveState } from '../support/frontend/device-state.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { VsockGuest } from '../support/frontend/vsock-guest.ts';
import { PROTOCOL, REQUEST, u64 } from '../support/frontend/wire.ts';

const OPTIONS = { frontend: { protocolFeatures: [PROTOCOL.DEVICE_STATE] } };
const cleanup = cleanupAfterEach();

/** What a guest leaves with: its rings are stopped. */
const leave = async (daemon: VsockDaemon, cid: number): Promise<Uint8Array> => {
  const guest = await daemon.guest({ ...OPTIONS, cid });
  for (const ring of guest.frontend.rings) await guest.frontend.stopRing(ring);
  return saveState(guest.frontend);
};

const arrive = async (daemon: VsockDaemon): Promise<RawFrontend> => {
  const frontend = RawFrontend.connect(daemon.socket, VsockGuest.frontendOptions(OPTIONS));
  cleanup.add(() => frontend.close());
  await frontend.negotiate();
  await frontend.shareMemory();
  return frontend;
};

/** Starts the rings at their beginning, and offers a buffer for an event. */
const start = async (frontend: RawFrontend): Promise<void> => {
  for (const ring of frontend.rings) await frontend.startRing(ring);
  const event = frontend.ring(2);
  event.setDescriptor(0, { address: frontend.ram.guest(frontend.ram.length - 4096), length: 4, flags: WRITE });
  event.publish(0);
  event.signal();
};

it('a driver that came from another host is told, also when its rings were not used yet: its CID is another one', async () => {
  const [here, there] = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup, { cid: 77 })];
  const state = await leave(here, 3);
  const frontend = await arrive(there);
  expect(await loadState(frontend, state)).toBe(0n);
  await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
  await there.waitForLog(/its CID was 3/);

  await start(frontend);

  expect(await frontend.ring(2).take()).toEqual([{ id: 0, length: 4 }]);
  // Once.
  const bases: number[] = [];
  for (const ring of frontend.rings) bases.push(await frontend.stopRing(ring));
  expect(bases).toEqual([0, 0, 1]);
  for (const ring of frontend.rings) await frontend.startRing(ring, bases[ring.index]);
  expect(await frontend.stopRing(frontend.ring(2))).toBe(1);
});

it('a reset makes it a new driver, who is told nothing', async () => {
  const [here, there] = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup)];
  const frontend = await arrive(there);
  expect(await loadState(frontend, await leave(here, 3))).toBe(0n);
  await frontend.require(REQUEST.RESET_DEVICE);
  await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));

  await start(frontend);

  await frontend.connection.ask(REQUEST.GET_FEATURES);
  expect(await frontend.stopRing(frontend.ring(2))).toBe(0);
});

it('what is no state is refused, and the guest served', async () => {
  const daemon = await VsockDaemon.start(cleanup);
  const state = await leave(daemon, 3);
  const frontend = await arrive(daemon);
  for (const bytes of [state.slice(0, 15), new Uint8Array(16), new Uint8Array([...state, 0])]) {
    expect(await loadState(frontend, bytes)).not.toBe(0n);
  }
  await start(frontend);
  expect(await frontend.stopRing(frontend.ring(2))).toBe(0);
});
