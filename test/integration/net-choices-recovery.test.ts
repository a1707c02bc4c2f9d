/**
 * What a driver said on the control queue, after the daemon that it told was killed: the next one finds it with the
 * in-flight region, which the front end kept.
 */

import { describe, expect, it } from 'vitest';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { NET_FEATURE, testFrame } from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { bits } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';
import { checkedNet } from '../unit/vmm-client/vmm/devices/checked.ts';
import { DeviceRig } from './device-rig.ts';
import { command, giveBuffers, receive } from './mmio-net.ts';

const MAC = '52:54:00:12:34:56';
const FEATURES = bits(NET_FEATURE.MAC, NET_FEATURE.CTRL_VQ, NET_FEATURE.CTRL_RX, NET_FEATURE.MRG_RXBUF);
const [RX, PROMISCUOUS, OFF, ON] = [0, 0, 0, 1];

const cleanup = cleanupAfterEach();

const netAt = (socket: string): DeviceDescription => ({
  kind: 'net',
  config: checkedNet({ id: 'net0', vhost_socket: socket, queue_size: 64, mac: MAC }),
});

/** An address that is not the guest's: only a promiscuous device has it. */
const stranger = (seed: number): Uint8Array => {
  const frame = testFrame(seed, 300);
  frame.set([2, 0, 0, 0, 0, 7]);
  return frame;
};

const own = (seed: number): Uint8Array => {
  const frame = testFrame(seed, 300);
  frame.set(Buffer.from(MAC.replaceAll(':', ''), 'hex'));
  return frame;
};

describeWithPeers(namespacePeers, 'a daemon that was told what to let pass', () => {
  const startDaemon = (): Promise<NetDaemon> =>
    NetDaemon.start(cleanup, {
      before: 'ip tuntap add tap0 mode tap; ip link set tap0 up',
      extra: ['--ctrl-vq', `--mac=${MAC}`],
    });

  const plug = async (): Promise<{ daemon: NetDaemon; rig: DeviceRig }> => {
    const daemon = await startDaemon();
    const rig = await DeviceRig.plug(cleanup, netAt(daemon.socket), { queueSizes: [64, 64, 64] });
    expect(await rig.guest.start(FEATURES)).toBe(15);
    giveBuffers(rig.guest);
    return { daemon, rig };
  };

  const kill = async (daemon: NetDaemon, rig: DeviceRig): Promise<void> => {
    const before = rig.lines.length;
    await daemon.kill9();
    await daemon.restart();
    await eventually(
      'the reconnect',
      () => rig.lines.slice(before).join('\n'),
      (lines) => lines.includes('the back end is back'),
      10_000,
    );
  };

  describe('and is killed', () => {
    it('has a successor that knows it, again and again, until the driver says something else', async () => {
      const { daemon, rig } = await plug();
      expect(await command(rig.guest, RX, PROMISCUOUS, OFF)).toBe(0);
      for (let round = 0; round < 3; round += 1) {
        await kill(daemon, rig);
        // The first one is not for this guest.
        daemon.host.send(stranger(round));
        daemon.host.send(own(round));
        expect(Buffer.compare(await receive(rig.guest, 300), own(round))).toBe(0);
      }
      expect(await command(rig.guest, RX, PROMISCUOUS, ON)).toBe(0);
      await kill(daemon, rig);
      daemon.host.send(stranger(9));
      expect(Buffer.compare(await receive(rig.guest, 300), stranger(9))).toBe(0);
    });

    it('has a successor that knows it, also where another daemon was told', async () => {
      const { rig } = await plug();
      expect(await command(rig.guest, RX, PROMISCUOUS, OFF)).toBe(0);
      const there = await startDaemon();
      const state = await rig.suspend();
      const next = await rig.elsewhere(netAt(there.socket));
      rig.close();
      await next.transport.restore(state);
      await kill(there, next);
      there.host.send(stranger(1));
      there.host.send(own(1));
      expect(Buffer.compare(await receive(next.guest, 300), own(1))).toBe(0);
    });

    it('has a successor that knows nothing of a driver before the last reset', async () => {
      const { daemon, rig } = await plug();
      expect(await command(rig.guest, RX, PROMISCUOUS, OFF)).toBe(0);
      await rig.driver.reset();
      expect(await rig.guest.start(FEATURES)).toBe(15);
      giveBuffers(rig.guest);
      await kill(daemon, rig);
      daemon.host.send(stranger(1));
      expect(Buffer.compare(await receive(rig.guest, 300), stranger(1))).toBe(0);
    });
  });
});
