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
import { NET_FEATURE, netHeader, testFrame } from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { bits } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';
import { checkedNet } from '../unit/vmm-client/vmm/devices/checked.ts';

const [RECEIVE, TRANSMIT, CONTROL] = [0, 1, 2];
const HEADER = 12;
const BUFFER = 2048;
const BUFFERS = 8;

const cleanup = cleanupAfterEach();

/** Waits until the device has used `count` more buffers of a ring. */
const used = async (guest: MmioGuest, queue: number, count: number): Promise<number[]> => {
  const ring = guest.ring(queue);
  const until = (ring.seen + count) & 0xffff;
  await eventually(
    `used index of queue ${queue}`,
    () => ring.usedIndex,
    (index) => index === until,
  );
  return Array.from({ length: count }, () => {
    const { id } = ring.usedEntry(ring.seen);
    ring.seen = (ring.seen + 1) & 0xffff;
    return id;
  });
};

const send = async (guest: MmioGuest, frame: Uint8Array): Promise<void> => {
  const at = guest.dataStart + BUFFERS * BUFFER;
  guest.ram.bytes.set(netHeader(), at);
  guest.ram.bytes.set(frame, at + HEADER);
  guest.ring(TRANSMIT).setChain(0, [{ address: guest.ram.guest(at), length: HEADER + frame.length }]);
  guest.ring(TRANSMIT).publish(0);
  guest.ring(TRANSMIT).signal();
  await used(guest, TRANSMIT, 1);
};

const bufferAt = (guest: MmioGuest, head: number): number => guest.dataStart + head * BUFFER;

/** Takes one packet and gives its buffer back. */
const receive = async (guest: MmioGuest, length: number): Promise<Uint8Array> => {
  const [head = 0] = await used(guest, RECEIVE, 1);
  const at = bufferAt(guest, head) + HEADER;
  const frame = guest.ram.bytes.slice(at, at + length);
  guest.ring(RECEIVE).publish(head);
  guest.ring(RECEIVE).signal();
  return frame;
};

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

    for (let head = 0; head < BUFFERS; head += 1) {
      guest.ring(RECEIVE).setDescriptor(head, {
        address: guest.ram.guest(bufferAt(guest, head)),
        length: BUFFER,
        flags: WRITE,
      });
      guest.ring(RECEIVE).publish(head);
    }
    guest.ring(RECEIVE).signal();
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

      // Class RX, command PROMISC, on; the answer OK.
      const at = guest.dataStart + (BUFFERS + 2) * BUFFER;
      guest.ram.bytes.set([0, 0, 1, 0xff], at);
      guest.ring(CONTROL).setChain(0, [
        { address: guest.ram.guest(at), length: 3 },
        { address: guest.ram.guest(at + 3), length: 1, flags: WRITE },
      ]);
      guest.ring(CONTROL).publish(0);
      guest.ring(CONTROL).signal();
      await used(guest, CONTROL, 1);
      expect(guest.ram.bytes[at + 3]).toBe(0);

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
