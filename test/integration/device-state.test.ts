/**
 * The state that a daemon has of its device and no ring knows: what it exports another daemon takes up, and nothing that
 * is not such a state.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkDriver } from '../../vmm-client/driver/blk-driver.ts';
import { NetDriver } from '../../vmm-client/driver/net-driver.ts';
import { VsockDriver } from '../../vmm-client/driver/vsock-driver.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener } from '../support/frontend/vsock-host.ts';
import { createImage } from '../support/image.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const DEVICE_STATE = 19;
const cleanup = cleanupAfterEach();

const connect = async (socket: string): Promise<VhostUserFrontend> => {
  const frontend = await VhostUserFrontend.connect(socket);
  cleanup.add(() => frontend.close());
  return frontend;
};

it('a disk has none', async () => {
  const image = createImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
  const { socket } = await BlkBackend.start(cleanup, { image });
  const frontend = await connect(socket);
  const driver = await BlkDriver.open(frontend);
  cleanup.add(() => driver.close());
  expect(frontend.hasProtocolFeature(DEVICE_STATE)).toBe(false);
  expect((await frontend.migration.suspend()).deviceState).toBeUndefined();
  await frontend.migration.resume();
});

/** What cannot be a state: cut off, longer, much longer. */
const misshapen = (state: Uint8Array): Uint8Array[] => [
  ...[0, 1, state.length >> 1, state.length - 1].map((length) => state.slice(0, length)),
  new Uint8Array([...state, 0]),
  new Uint8Array(100_000),
];

/** The state with one byte changed, at 12 places. */
const changed = (state: Uint8Array): Uint8Array[] =>
  Array.from({ length: 12 }, (_, i) => Math.floor((i * state.length) / 12)).map((place) =>
    state.map((byte, at) => (at === place ? byte ^ 0xff : byte)),
  );

describeWithPeers(namespacePeers, 'a network device', () => {
  const PAIRS = ['--tap=tap0', '--num-queue-pairs=2'];
  /** CTRL_RX, CTRL_VLAN, CTRL_MAC_ADDR. */
  const FILTERS = (1n << 18n) | (1n << 19n) | (1n << 23n);
  const open = async () => {
    const namespaced = { tap: PAIRS, extra: ['--ctrl-vq'] };
    const [first, second] = [await NetDaemon.start(cleanup, namespaced), await NetDaemon.start(cleanup, namespaced)];
    const frontend = await connect(first.socket);
    const driver = await NetDriver.open(frontend, { pairs: 2, controlQueue: true, offloads: FILTERS });
    cleanup.add(() => driver.close());
    return { first, second, frontend, driver };
  };

  it('takes the filters, queues and addresses that the driver chose along', async () => {
    const { frontend, driver, first, second } = await open();
    const { deviceState: initial } = await frontend.migration.suspend();
    await frontend.migration.resume();
    // MAC: ADDR_SET. RX: PROMISC off, ALLMULTI on. VLAN: ADD 7. MQ: one pair.
    await driver.command('address', 1, 1, Uint8Array.of(2, 0, 0, 0, 0, 9));
    await driver.command('promiscuous mode', 0, 0, Uint8Array.of(0));
    await driver.command('all groups', 0, 1, Uint8Array.of(1));
    await driver.command('VLAN', 2, 0, Uint8Array.of(7, 0));
    await driver.command('pairs', 4, 0, Uint8Array.of(1, 0));
    const snapshot = await frontend.migration.suspend({ configBytes: 12 });
    expect(snapshot.deviceState).not.toEqual(initial);
    await frontend.migration.moveTo(second.socket, snapshot);
    const after = await frontend.migration.suspend({ configBytes: 12 });
    expect(after.deviceState).toEqual(snapshot.deviceState);
    // And back, which shows that the first one has not kept what it had.
    await frontend.migration.moveTo(first.socket, after);
    await driver.command('VLAN', 2, 1, Uint8Array.of(7, 0));
    const { deviceState } = await frontend.migration.suspend();
    expect(deviceState).not.toEqual(after.deviceState);
    await frontend.migration.resume();
  });

  it('refuses states that are none, and runs on', async () => {
    const { frontend, driver, second } = await open();
    const snapshot = await frontend.migration.suspend();
    const state = snapshot.deviceState as Uint8Array;
    for (const deviceState of misshapen(state)) {
      await expect(frontend.migration.moveTo(second.socket, { ...snapshot, deviceState })).rejects.toThrow();
    }
    for (const deviceState of changed(state)) {
      // It may be the state of another device, and is taken up then.
      const isTaken = await frontend.migration.moveTo(second.socket, { ...snapshot, deviceState }).then(
        () => true,
        () => false,
      );
      if (isTaken) await frontend.migration.suspend();
      expect(second.running).toBe(true);
    }
    await frontend.migration.moveTo(second.socket, snapshot);
    await driver.command('promiscuous mode', 0, 0, Uint8Array.of(1));
  });
});

describe('a socket device', () => {
  it('tells the driver that its connections are gone', async () => {
    const [first, second] = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup)];
    const frontend = await connect(first.socket);
    const driver = await VsockDriver.open(frontend);
    cleanup.add(() => driver.close());
    const listener = await HostListener.listen(cleanup, `${first.uds}_5000`);
    const socket = await driver.connect(5000);
    const { socket: host } = await listener.accept();
    host.resume();
    // Nobody sends anything: only the device can say so.
    const ended = expect(socket.read(Buffer.alloc(1))).rejects.toThrow();
    const snapshot = await frontend.migration.suspend({ configBytes: 8 });
    expect(snapshot.deviceState?.length).toBeGreaterThan(0);
    await frontend.migration.moveTo(second.socket, snapshot);
    await ended;
    expect(driver.connectionCount).toBe(0);
  });

  it('refuses states that are none, and runs on', async () => {
    const [first, second] = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup)];
    const frontend = await connect(first.socket);
    const driver = await VsockDriver.open(frontend);
    cleanup.add(() => driver.close());
    const snapshot = await frontend.migration.suspend();
    const state = snapshot.deviceState as Uint8Array;
    for (const deviceState of misshapen(state)) {
      await expect(frontend.migration.moveTo(second.socket, { ...snapshot, deviceState })).rejects.toThrow();
      expect(second.running).toBe(true);
    }
    await frontend.migration.moveTo(second.socket, snapshot);
    const listener = await HostListener.listen(cleanup, `${second.uds}_5000`);
    await driver.connect(5000);
    await listener.accept();
  });
});
