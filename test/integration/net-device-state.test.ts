/**
 * A driver's choices on the way to another host: what the daemon there does of what the one here was told on the control
 * queue, before the driver says a word. Source: vhost-user, Migrating back-end state.
 */

import { describe, expect, it } from 'vitest';
import { type Cleanup, cleanupAfterEach } from '../support/cleanup.ts';
import { loadState, saveState } from '../support/frontend/device-state.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { NetDriver } from '../support/frontend/net-driver.ts';
import { NetGuest } from '../support/frontend/net-guest.ts';
import { NET_FEATURE as NET, seedOf, testFrame, udpFrame } from '../support/frontend/net-wire.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { config, PROTOCOL, REQUEST, u64 } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const ETHERTYPE_IPV4 = 0x0800;
const OWN = [2, 0, 0, 0, 0, 9];
const OTHER = [2, 0, 0, 0, 0, 10];
const FEATURES = [NET.CTRL_RX, NET.CTRL_RX_EXTRA, NET.CTRL_MAC_ADDR, NET.STATUS, NET.GUEST_ANNOUNCE];
const OFFLOADS = [NET.CTRL_GUEST_OFFLOADS, NET.GUEST_CSUM, NET.GUEST_TSO4];
const STATE = [PROTOCOL.DEVICE_STATE, PROTOCOL.RARP];

const cleanup: Cleanup = cleanupAfterEach();

const frameTo = (address: readonly number[], seed: number): Uint8Array => {
  const frame = testFrame(seed);
  frame.set(address);
  return frame;
};

const startDaemon = (extra: readonly string[] = []): Promise<NetDaemon> =>
  NetDaemon.start(cleanup, { extra: ['--ctrl-vq', ...extra] });

const startGuest = async (daemon: NetDaemon, pairs = 1, features = [...FEATURES, ...OFFLOADS]): Promise<NetGuest> => {
  const guest = await NetGuest.start(daemon.socket, { pairs, features, protocolFeatures: STATE });
  cleanup.add(() => guest.close());
  return guest;
};

/** A front end with the driver's features of another one, and nothing started. */
const arrive = async (daemon: NetDaemon, { frontend }: NetGuest, withFeatures: boolean): Promise<NetDriver> => {
  const queues = frontend.rings.length;
  const driver = NetDriver.connect(daemon.socket, { queues, protocolFeatures: STATE });
  cleanup.add(() => driver.close());
  await driver.frontend.negotiate();
  if (withFeatures) await driver.frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
  await driver.frontend.shareMemory();
  return driver;
};

const stopAll = async ({ frontend }: NetGuest): Promise<void> => {
  for (const ring of frontend.rings) await frontend.stopRing(ring);
};

const readConfig = async (frontend: RawFrontend): Promise<number[]> => {
  const { payload } = await frontend.connection.call(REQUEST.GET_CONFIG, config(0, new Uint8Array(8)));
  return [...payload.subarray(12, 20)];
};

describeWithPeers(namespacePeers, 'what a driver chose', () => {
  describe.each([
    ['before', true],
    ['after', false],
  ])('and a front end that tells the features %s the state', (_, featuresFirst) => {
    const move = async (guest: NetGuest, there: NetDaemon): Promise<NetDriver> => {
      await stopAll(guest);
      const state = await saveState(guest.frontend);
      const driver = await arrive(there, guest, featuresFirst);
      expect(await loadState(driver.frontend, state)).toBe(0n);
      expect(await saveState(driver.frontend)).toEqual(state);
      await driver.frontend.require(REQUEST.SET_FEATURES, u64(guest.frontend.features));
      expect(await saveState(driver.frontend)).toEqual(state);
      return driver;
    };

    it('is in force on the other host: address, filter, announcement', async () => {
      const [here, there] = [await startDaemon(), await startDaemon()];
      const guest = await startGuest(here);
      await guest.require(1, 1, ...OWN);
      await guest.require(0, 0, 0);
      await guest.frontend.require(REQUEST.SEND_RARP, u64(0x0900_0000_0002n));

      const driver = await move(guest, there);

      for (const ring of driver.frontend.rings) await driver.frontend.startRing(ring);
      driver.post(8, 2048);
      expect(await readConfig(driver.frontend)).toEqual([...OWN, 3, 0]);
      there.host.send(frameTo(OTHER, 1));
      there.host.send(frameTo(OWN, 2));
      expect(seedOf((await driver.receive()).frame)).toBe(2);
    });

    it('is in force on the other host: offloads', async () => {
      const [here, there] = [await startDaemon(), await startDaemon()];
      const guest = await startGuest(here);
      const segmentation = (): Promise<string> =>
        there.namespace.run('PATH=$PATH:/usr/sbin; ethtool -k tap0 | grep -o "tx-tcp-segmentation: [a-z]*"');
      await guest.require(5, 0, 2, 0, 0, 0, 0, 0, 0, 0);

      const driver = await move(guest, there);

      for (const ring of driver.frontend.rings) await driver.frontend.startRing(ring);
      expect(await segmentation()).toContain(': off');
      await driver.frontend.require(REQUEST.RESET_DEVICE);
      await driver.frontend.require(REQUEST.SET_FEATURES, u64(guest.frontend.features));
      for (const ring of driver.frontend.rings) await driver.frontend.startRing(ring);
      expect(await segmentation()).toContain(': on');
    });

    it.each([1, 2])('is in force on the other host: pairs in use, with %i threads', async (threads) => {
      const extra = ['--num-queue-pairs=2', `--threads=${threads}`];
      const [here, there] = [await startDaemon(extra), await startDaemon(extra)];
      const guest = await startGuest(here, 2);
      await guest.require(4, 0, 2, 0);

      const driver = await move(guest, there);

      for (const ring of driver.frontend.rings) await driver.frontend.startRing(ring);
      driver.post(64, 2048, 0);
      driver.post(64, 2048, 1);
      const host = there.openHost({ ethertype: ETHERTYPE_IPV4 });
      for (let port = 1; driver.rx(1).usedIndex === 0 && port < 5000; port += 1) {
        const frame = udpFrame(1, 100);
        new DataView(frame.buffer).setUint16(34, port);
        host.send(frame);
        while (driver.rx(0).seen !== driver.rx(0).usedIndex) driver.repost(await driver.receive(0), 0);
        await driver.frontend.connection.ask(REQUEST.GET_FEATURES);
      }
      expect(driver.rx(1).usedIndex).toBeGreaterThan(0);
    });
  });

  it('is forgotten when the driver is another one', async () => {
    const [here, there] = [await startDaemon(), await startDaemon()];
    const guest = await startGuest(here);
    await guest.require(1, 1, ...OWN);
    await stopAll(guest);
    const state = await saveState(guest.frontend);
    const driver = await arrive(there, guest, true);
    expect(await loadState(driver.frontend, state)).toBe(0n);
    expect((await readConfig(driver.frontend)).slice(0, 6)).toEqual(OWN);

    await driver.frontend.require(REQUEST.RESET_DEVICE);
    await driver.frontend.require(REQUEST.SET_FEATURES, u64(guest.frontend.features));

    expect((await readConfig(driver.frontend)).slice(0, 6)).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('is refused by a device that cannot have it, which serves on', async () => {
    const [here, smaller, plain] = [
      await startDaemon(['--num-queue-pairs=2']),
      await startDaemon(),
      await NetDaemon.start(cleanup, { extra: ['--num-queue-pairs=2'] }),
    ];
    const guest = await startGuest(here, 2);
    await guest.require(4, 0, 2, 0);
    await stopAll(guest);
    const state = await saveState(guest.frontend);

    const others: [NetDaemon, RegExp][] = [
      [smaller, /uses 2 pairs of queues, there are 1/],
      [plain, /features that are not offered here/],
    ];
    for (const [daemon, sentence] of others) {
      const driver = await daemon.start({ protocolFeatures: STATE });
      for (const ring of driver.frontend.rings) await driver.frontend.stopRing(ring);
      expect(await loadState(driver.frontend, state)).not.toBe(0n);
      await daemon.waitForLog(sentence);
      await daemon.expectUnharmed();
    }
  });
});
