/**
 * Networks and sockets behind virtio-mmio that go from one daemon to another: what their drivers told them goes along, and
 * drivers are told of what cannot.
 */

import { describe, expect, it } from 'vitest';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { VmError } from '../../vmm-client/vmm/errors.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { takeEvent } from '../support/frontend/descriptors.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { NET_FEATURE, testFrame } from '../support/frontend/net-wire.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { bits } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';
import { checkedNet, checkedVsock } from '../unit/vmm-client/vmm/devices/checked.ts';
import { DeviceRig } from './device-rig.ts';
import { command, giveBuffers, receive, send, used } from './mmio-net.ts';

const cleanup = cleanupAfterEach();

describeWithPeers(namespacePeers, 'a network', () => {
  const MAC = '52:54:00:12:34:56';
  const netAt = (socket: string, mac = MAC): DeviceDescription => ({
    kind: 'net',
    config: checkedNet({ id: 'net0', vhost_socket: socket, queue_size: 64, mac }),
  });
  const startDaemon = () =>
    NetDaemon.start(cleanup, {
      before: 'ip tuntap add tap0 mode tap; ip link set tap0 up',
      extra: ['--ctrl-vq', `--mac=${MAC}`],
    });
  const FEATURES = bits(NET_FEATURE.MAC, NET_FEATURE.CTRL_VQ, NET_FEATURE.CTRL_RX, NET_FEATURE.MRG_RXBUF);
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

  it('takes its filters along, and its receive buffers', async () => {
    const daemons = [await startDaemon(), await startDaemon()] as const;
    let rig = await DeviceRig.plug(cleanup, netAt(daemons[0].socket), { queueSizes: [64, 64, 64] });
    expect(await rig.guest.start(FEATURES)).toBe(15);
    giveBuffers(rig.guest);
    // RX, PROMISC: off. It is on in a device that nobody told anything.
    expect(await command(rig.guest, 0, 0, 0)).toBe(0);
    const before = countOwnFds();
    for (let round = 0; round < 4; round += 1) {
      const [here, there] = [daemons[round % 2], daemons[(round + 1) % 2]] as [NetDaemon, NetDaemon];
      await rig.transport.startDirtyLog();
      here.host.send(own(round));
      await receive(rig.guest, 300);
      const state = await rig.suspend();
      expect(rig.transport.takeDirty().length).toBeGreaterThan(0);
      const next = await rig.elsewhere(netAt(there.socket));
      rig.close();
      await next.transport.restore(state);
      rig = next;
      await eventually(
        'interrupt',
        () => takeEvent(rig.guest.ring().call),
        (count) => count > 0n,
      );
      await send(rig.guest, testFrame(round, 200));
      const [seen] = await there.host.receive(1);
      expect(Buffer.compare(seen as Uint8Array, testFrame(round, 200))).toBe(0);
      // The first one is not for this guest.
      there.host.send(stranger(round));
      there.host.send(own(round));
      expect(Buffer.compare(await receive(rig.guest, 300), own(round))).toBe(0);
    }
    expect(countOwnFds()).toBe(before);
  });

  it('is not taken by one of another address, nor with a state that is none', async () => {
    const [first, second] = [await startDaemon(), await startDaemon()];
    const rig = await DeviceRig.plug(cleanup, netAt(first.socket), { queueSizes: [64, 64, 64] });
    await rig.guest.start(FEATURES);
    giveBuffers(rig.guest);
    const state = (await rig.suspend()) as { device: Record<string, unknown> };
    const other = await rig.elsewhere(netAt(second.socket, '52:54:00:00:00:01'));
    await expect(other.transport.restore(state)).rejects.toThrow(
      'net net0: it cannot go on here: mac was 525400123456, the back end here has 525400000001',
    );
    other.close();
    const backend = state.device.backend as Uint8Array;
    const hostile = [new Uint8Array(), backend.slice(1), new Uint8Array(backend.length), new Uint8Array(1 << 20)];
    for (const bytes of hostile) {
      const next = await rig.elsewhere(netAt(second.socket));
      const restored = next.transport.restore({ ...state, device: { ...state.device, backend: bytes } });
      await expect(restored).rejects.toThrow(VmError);
      next.close();
    }
    await rig.transport.resume();
    await send(rig.guest, testFrame(1, 200));
    expect((await first.host.receive(1)).length).toBe(1);
  });
});

describe('a socket device', () => {
  const vsockAt = ({ socket }: VsockDaemon, cid = 3): DeviceDescription => ({
    kind: 'vsock',
    config: checkedVsock({ cid, socket, queue_size: 64 }),
  });

  it('tells its driver elsewhere that connections are gone, by the event queue', async () => {
    const daemons = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup)] as const;
    let rig = await DeviceRig.plug(cleanup, vsockAt(daemons[0]), { queueSizes: [64, 64, 64] });
    expect(await rig.guest.start()).toBe(15);
    for (let round = 0; round < 4; round += 1) {
      const { guest } = rig;
      guest.ring(2).setDescriptor(round, { address: guest.ram.guest(guest.dataStart), length: 8, flags: WRITE });
      guest.ring(2).publish(round);
      guest.ring(2).signal();
      await rig.transport.startDirtyLog();
      const state = await rig.suspend();
      expect(guest.ring(2).usedIndex).toBe(round);
      const next = await rig.elsewhere(vsockAt(daemons[(round + 1) % 2] as VsockDaemon));
      rig.close();
      next.guest.ram.bytes.fill(0xff, next.guest.dataStart, next.guest.dataStart + 8);
      await next.transport.restore(state);
      expect(await used(next.guest, 2, 1)).toEqual([round]);
      // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
      expect([...next.guest.ram.bytes.subarray(next.guest.dataStart, next.guest.dataStart + 4)]).toEqual([0, 0, 0, 0]);
      rig = next;
    }
  });

  it('is suspended and goes on where it is, with nothing told', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const rig = await DeviceRig.plug(cleanup, vsockAt(daemon), { queueSizes: [64, 64, 64] });
    await rig.guest.start();
    rig.guest.ring(2).setDescriptor(0, { address: rig.guest.ram.guest(rig.guest.dataStart), length: 8, flags: WRITE });
    rig.guest.ring(2).publish(0);
    for (let round = 0; round < 20; round += 1) {
      await rig.transport.suspend();
      await rig.transport.resume();
    }
    expect(rig.guest.ring(2).usedIndex).toBe(0);
    expect(rig.driver.status).toBe(15);
  });
});
