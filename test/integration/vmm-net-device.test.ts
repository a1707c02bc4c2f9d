/**
 * A virtio-mmio network in front of a daemon, driven as a guest drives it: packets both ways, a command on the control
 * queue, and the daemon killed with buffers in its hands.
 */

import { expect, it } from 'vitest';
import { openNet } from '../../vmm-client/vmm/devices/net.ts';
import { VirtioMmioTransport } from '../../vmm-client/vmm/virtio-mmio/transport.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { takeEvent } from '../support/frontend/descriptors.ts';
import { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { NET_FEATURE, testFrame } from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { bits } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';
import { checkedNet } from '../unit/vmm-client/vmm/devices/checked.ts';
import { command, giveBuffers, receive, send } from './mmio-net.ts';

const cleanup = cleanupAfterEach();

describeWithPeers(namespacePeers, 'a network', () => {
  it('carries packets both ways, over a control queue and over the death of its daemon', async () => {
    const daemon = await NetDaemon.start(cleanup, {
      before: 'ip tuntap add tap0 mode tap; ip link set tap0 up',
      extra: ['--ctrl-vq'],
    });
    const guest = new MmioGuest({ queueSizes: [64, 64, 64] });
    cleanup.add(() => guest.close());
    const lines: string[] = [];
    const log = (line: string) => void lines.push(line);
    const device = await openNet(
      checkedNet({ id: 'net0', vhost_socket: daemon.socket, queue_size: 64, mac: '52:54:00:12:34:56', mtu: 1400 }),
      { ram: guest.deviceMemory, log },
    );
    const transport = new VirtioMmioTransport(device, { ...guest.wiring, log });
    cleanup.add(() => transport.close());
    const driver = guest.plug(transport);

    expect(driver.read(8)).toBe(1);
    expect(Buffer.from(driver.config(0, 6)).toString('hex')).toBe('525400123456');
    expect([...driver.config(10, 2)]).toEqual([0x78, 0x05]);
    const { MAC, MTU, MRG_RXBUF, CTRL_VQ, CTRL_RX, MQ } = NET_FEATURE;
    const wanted = bits(MAC, MTU, CTRL_VQ, CTRL_RX);
    expect((await driver.offered()) & (wanted | bits(MQ))).toBe(wanted);
    expect(await guest.start(wanted | bits(MRG_RXBUF))).toBe(15);

    giveBuffers(guest);
    takeEvent(guest.ring().call);

    for (let round = 0; round < 3; round += 1) {
      const frame = testFrame(round, 300);
      await send(guest, frame);
      const [seen] = await daemon.host.receive(1);
      expect(Buffer.compare(seen as Uint8Array, frame)).toBe(0);
      const answer = testFrame(100 + round, 600);
      expect(daemon.host.send(answer)).toBe(true);
      expect(Buffer.compare(await receive(guest, answer.length), answer)).toBe(0);
      await eventually(
        'interrupts',
        () => takeEvent(guest.ring().call),
        (count) => count > 0n,
      );

      // Class RX, command PROMISC, on.
      expect(await command(guest, 0, 0, 1)).toBe(0);

      await daemon.kill9();
      await daemon.restart();
      await eventually(
        'reconnects',
        () => transport.counters().reconnects,
        (count) => count === round + 1,
      );
    }
    await driver.reset();
    expect(driver.status).toBe(0);
    expect(transport.counters()).toMatchObject({ notify_exits: 0, activations: 1, reconnects: 3 });
    expect(lines.filter((line) => !/the back end (is back|went away)/.test(line))).toEqual([]);
  });
});
