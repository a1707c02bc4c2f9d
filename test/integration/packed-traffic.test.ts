/**
 * Packed rings of the other devices: packets of a network device both ways, connections of a socket device, and what a
 * killed network daemon leaves behind. Rings are of sizes that no split ring has.
 */

import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { hostileNetDaemon, NetDaemon } from '../support/frontend/net-daemon.ts';
import { NetDriver } from '../support/frontend/net-driver.ts';
import { exchangeFrames } from '../support/frontend/net-good-client.ts';
import { NET_FEATURE, seedOf, testFrame } from '../support/frontend/net-wire.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener, HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { F_STREAM } from '../support/frontend/vsock-wire.ts';
import { FEATURE, inflight, PROTOCOL, REQUEST, readInflight } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const { EVENT_IDX, IN_ORDER, RING_PACKED } = FEATURE;
const KINDS: [string, readonly number[]][] = [
  ['packed', [RING_PACKED]],
  ['packed with EVENT_IDX', [RING_PACKED, EVENT_IDX]],
  ['packed and in order', [RING_PACKED, EVENT_IDX, IN_ORDER]],
  ['split and in order', [EVENT_IDX, IN_ORDER]],
];

/** A split ring needs a power of two. */
const sizeFor = (features: readonly number[]): number => (features.includes(RING_PACKED) ? 100 : 128);

describeWithPeers(namespacePeers, 'a network device', () => {
  const daemon = hostileNetDaemon();

  describe.each(KINDS)('whose rings are %s', (_, features) => {
    const start = () =>
      daemon().start({ features: [NET_FEATURE.MRG_RXBUF, ...features], queueSize: sizeFor(features) });

    it('carries packets both ways, and stops where the driver stands', async () => {
      const driver = await start();

      await exchangeFrames(driver, daemon().host);

      for (const ring of driver.frontend.queues) {
        expect(await driver.frontend.stopRing(ring)).toBe(ring.drainedBase);
      }
    });

    it('carries packets over many laps, with restarts in between', async () => {
      const driver = await start();
      driver.post(40, 2048);

      for (let i = 0; i < 400; i += 1) {
        const lengths = 1 + (i % 3);
        for (let n = 0; n < lengths; n += 1) daemon().host.send(testFrame(10 * i + n));
        for (let n = 0; n < lengths; n += 1) {
          const packet = await driver.receive();
          expect(seedOf(packet.frame)).toBe(10 * i + n);
          driver.repost(packet);
        }
        if (i % 50 !== 49) continue;
        for (const ring of driver.frontend.queues) {
          const base = await driver.frontend.stopRing(ring);
          expect(base).toBe(ring.drainedBase);
          await driver.frontend.startRing(ring, base);
        }
        driver.frontend.queue(0).signal();
      }
    });

    it('puts a large packet together from many buffers', async () => {
      const driver = await start();
      driver.post(20, 64);
      const frame = testFrame(7, 1000);

      daemon().host.send(frame);
      const packet = await driver.receive();

      expect(packet.header.numBuffers).toBe(Math.ceil((1000 + 12) / 64));
      expect(Buffer.compare(packet.frame, frame)).toBe(0);
    });
  });
});

/** Packets to the guest one after the other, each seen once. */
const exchange = async (daemon: NetDaemon, driver: NetDriver, count: number): Promise<void> => {
  for (let i = 0; i < count; i += 1) {
    daemon.host.send(testFrame(i));
    const packet = await driver.receive();
    expect(seedOf(packet.frame)).toBe(i);
    driver.repost(packet);
  }
};

describeWithPeers(namespacePeers, 'a network device that is killed', () => {
  const cleanup = cleanupAfterEach();

  it.each(KINDS)('and started again goes on with the buffers that it had: %s', async (_, features) => {
    const before = 'ip tuntap add tap0 mode tap; ip link set tap0 up';
    const daemon = await NetDaemon.start(cleanup, { before });
    const queueSize = sizeFor(features);
    const shape = { mmapSize: 0, mmapOffset: 0, numQueues: 2, queueSize };
    const protocolFeatures = [PROTOCOL.INFLIGHT_SHMFD];
    let driver = NetDriver.connect(daemon.socket, {
      features: [NET_FEATURE.MRG_RXBUF, ...features],
      protocolFeatures,
      queueSize,
    });
    cleanup.add(() => driver.close());
    await driver.frontend.negotiate();
    await driver.frontend.shareMemory();
    const { payload, fds } = await driver.frontend.connection.call(REQUEST.GET_INFLIGHT_FD, inflight(shape));
    const [region] = fds as [OwnedFd];
    cleanup.add(() => region.close());
    const start = async ({ frontend }: NetDriver): Promise<void> => {
      await frontend.require(REQUEST.SET_INFLIGHT_FD, inflight(readInflight(payload)), [region]);
      for (const ring of frontend.queues) await frontend.startRing(ring, ring.drainedBase);
    };
    await start(driver);
    driver.post(40, 2048);
    await exchange(daemon, driver, 25);

    for (let round = 0; round < 3; round += 1) {
      await daemon.kill9();
      await daemon.restart();
      driver = driver.reconnect(daemon.socket);
      await driver.frontend.negotiate();
      await driver.frontend.shareMemory();
      await start(driver);
      await exchange(daemon, driver, 60);
    }
  });
});

describe.each(KINDS)('a socket device whose rings are %s', (_, features) => {
  const cleanup = cleanupAfterEach();

  it('carries connections both ways', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const frontend = { features: [F_STREAM, ...features], queueSize: sizeFor(features) };
    const guest = await daemon.guest({ frontend, buffers: 60 });
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_2000`);
    const out = await GuestSocket.connect(guest, { port: 1000, peerPort: 2000 });
    const host = await listener.accept();
    const dialled = await HostStream.dial(cleanup, daemon.uds, 52);
    const into = await GuestSocket.accept(guest, 52);
    await dialled.readLine();
    const data = randomBytes(1 << 20);

    const [, atHost] = await Promise.all([out.write(data), host.read(data.length)]);
    const [, atGuest] = await Promise.all([dialled.write(data), into.read(data.length)]);

    expect(atHost.equals(data)).toBe(true);
    expect(atGuest.equals(data)).toBe(true);
  });
});
