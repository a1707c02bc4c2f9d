/**
 * The control queue of vhost-user-net: commands that a correct driver would not send, and what commands do to a real TAP.
 * Source: VIRTIO 1.3, 5.1.6.5 Control Virtqueue.
 */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { Child } from '../support/child.ts';
import { type Cleanup, cleanupAfterEach } from '../support/cleanup.ts';
import { quietNamespace } from '../support/frontend/net-daemon.ts';
import { NetGuest, type NetGuestOptions, UNTOUCHED } from '../support/frontend/net-guest.ts';
import { NET_FEATURE as NET } from '../support/frontend/net-wire.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { NEXT, WRITE } from '../support/frontend/raw-ring.ts';
import { PROTOCOL, REQUEST, u64 } from '../support/frontend/wire.ts';
import { NetBackend } from '../support/net/backend.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers, projectDirectory } from '../support/peers.ts';

const SEND_RARP = 19;
const MAC = '52:54:00:12:34:56';
const OK = { ack: 0, usedLength: 1 };
const ERR = { ack: 1, usedLength: 1 };
const FILTERS = [NET.MAC, NET.CTRL_RX, NET.CTRL_RX_EXTRA, NET.CTRL_VLAN, NET.CTRL_MAC_ADDR];
const EVERYTHING = [
  ...FILTERS,
  NET.STATUS,
  NET.GUEST_ANNOUNCE,
  NET.CTRL_GUEST_OFFLOADS,
  NET.GUEST_CSUM,
  NET.GUEST_TSO4,
];

const bytesOf = (address: string): number[] => address.split(':').map((byte) => Number.parseInt(byte, 16));
const le32 = (value: number): number[] => [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24];
const tables = (unicast: readonly string[], multicast: readonly string[]): number[] =>
  [unicast, multicast].flatMap((table) => [...le32(table.length), ...table.flatMap(bytesOf)]);

const connect = async (cleanup: Cleanup, socket: string, options: NetGuestOptions): Promise<NetGuest> => {
  const guest = await NetGuest.start(socket, options);
  cleanup.add(() => guest.close());
  return guest;
};

describe('the control queue without a TAP', () => {
  const cleanup = cleanupAfterEach();

  const start = async (options: NetGuestOptions = { features: EVERYTHING }) => {
    const socket = join(cleanup.directory(), 'net.sock');
    const pairs = options.pairs ?? 1;
    const main = join(projectDirectory, 'dist/backends/net/main.js');
    const args = [main, `--socket-path=${socket}`, '--null', '--ctrl-vq', `--mac=${MAC}`, '--log-format=json'];
    const daemon = new Child(process.execPath, [...args, `--num-queue-pairs=${pairs}`]);
    cleanup.add(() => daemon.stop());
    await daemon.waitFor(/"listening on /, 15_000);
    return { daemon, socket, guest: await connect(cleanup, socket, options) };
  };

  it('answers each wrong command by ERR, and serves on', async () => {
    const { guest } = await start({ pairs: 2, features: EVERYTHING });
    const wrong = [
      [255, 0, 0],
      [6, 0, 0, 0],
      [0, 6, 1],
      [0],
      [0, 0],
      [0, 0, 2],
      [1, 0, ...le32(2), ...bytesOf(MAC), ...le32(0)],
      [1, 0, ...le32(0xffff_ffff), ...bytesOf(MAC), ...le32(0)],
      [1, 1, ...bytesOf(MAC).slice(1)],
      [2, 0, 0, 0x10],
      [3, 1],
      [4, 0, 0, 0],
      [4, 0, 3, 0],
      [4, 1, 0, 0],
      [5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    ];

    for (const bytes of wrong) expect(await guest.run(...bytes)).toEqual(ERR);

    for (const bytes of [
      [0, 0, 0],
      [1, 0, ...tables(['02:00:00:00:00:01'], ['01:00:5e:00:00:01'])],
      [2, 0, 5, 0],
      [3, 0],
      [4, 0, 2, 0],
      [5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
    ]) {
      expect(await guest.run(...bytes)).toEqual(OK);
    }
  });

  it('refuses commands whose feature was not negotiated', async () => {
    const { guest } = await start({ pairs: 1, features: [] });

    for (const bytes of [
      [0, 0, 1],
      [0, 2, 1],
      [1, 0, ...tables([], [])],
      [1, 1, ...bytesOf(MAC)],
      [2, 0, 1, 0],
      [3, 0],
    ]) {
      expect(await guest.run(...bytes)).toEqual(ERR);
    }
    for (const bytes of [
      [4, 0, 1, 0],
      [5, 0, ...new Uint8Array(8)],
    ])
      expect(await guest.run(...bytes)).toEqual(ERR);
  });

  it('gives chains back that have no place for an answer, or cannot be read', async () => {
    const { guest, daemon } = await start();
    const fds = daemon.fdCount();
    const command = [1, 1, 2, 0, 0, 0, 0, 9];
    const data = guest.commandDescriptor(8);
    const unmapped = { address: 0x10, length: 8 };
    const none = { ack: UNTOUCHED, usedLength: 0 };

    expect(await guest.submit(command, [data])).toEqual(none);
    expect(await guest.submit(command, [data, guest.ackDescriptor(0)])).toEqual(none);
    expect(await guest.submit(command, [data, { ...unmapped, flags: WRITE }])).toEqual(none);
    expect(await guest.submit(command, [guest.ackDescriptor()])).toEqual(ERR);
    expect(await guest.submit(command, [guest.ackDescriptor(), data])).toEqual(ERR);
    expect(await guest.submit(command, [unmapped, guest.ackDescriptor()])).toEqual(ERR);
    guest.controlRing.setDescriptor(0, { ...data, flags: NEXT, next: 0 });
    expect((await guest.controlRing.run(0))[0]).toEqual({ id: 0, length: 0 });

    expect(await guest.readConfig(0, 6)).toEqual(Uint8Array.from(bytesOf(MAC)));
    expect(await guest.run(...command)).toEqual(OK);
    expect(daemon.fdCount()).toBe(fds);
  });

  it('does the first of two commands in one chain', async () => {
    const { guest } = await start();

    expect(await guest.run(0, 0, 0, 0, 0, 2)).toEqual(OK);
    expect(await guest.run(1, 1, ...bytesOf(MAC), 1, 1, ...bytesOf(MAC))).toEqual(ERR);
  });

  it('sets the address in the configuration space until a reset, for this driver alone', async () => {
    const { guest, socket } = await start();
    const other = '52:54:00:00:00:77';
    const address = async (of: NetGuest): Promise<number[]> => [...(await of.readConfig(0, 6))];

    await guest.require(1, 1, ...bytesOf(other));

    expect(await address(guest)).toEqual(bytesOf(other));
    const bystander = await connect(cleanup, socket, { pairs: 0, control: false });
    expect(await address(bystander)).toEqual(bytesOf(MAC));
    await guest.frontend.require(REQUEST.RESET_DEVICE);
    expect(await address(guest)).toEqual(bytesOf(MAC));
  });

  it('lets the driver announce itself after SEND_RARP, and takes its acknowledgement', async () => {
    const { guest } = await start({ features: EVERYTHING, protocolFeatures: [2, PROTOCOL.BACKEND_REQ] });
    const [ours, theirs] = UnixStream.pair();
    const fd = theirs.detach();
    await guest.frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
    fd.close();
    const channel = new RawConnection(ours);
    cleanup.add(() => channel.close());
    expect(await guest.readConfig(6, 2)).toEqual(Uint8Array.of(1, 0));

    await guest.frontend.require(SEND_RARP, u64(0x5634_1200_5452n));

    // BACKEND_CONFIG_CHANGE_MSG is 2.
    expect(await channel.receive()).toMatchObject({ id: 2, payload: new Uint8Array(0) });
    expect(await guest.readConfig(6, 2)).toEqual(Uint8Array.of(3, 0));
    expect(await guest.run(3, 0)).toEqual(OK);
    expect(await guest.readConfig(6, 2)).toEqual(Uint8Array.of(1, 0));
  });
});

const DESTINATIONS = {
  own: MAC,
  other: '52:54:00:12:34:57',
  group: '01:00:5e:00:00:01',
  otherGroup: '01:00:5e:00:00:02',
  all: 'ff:ff:ff:ff:ff:ff',
} as const;
type Destination = keyof typeof DESTINATIONS;
const PEER = '52:54:00:00:00:09';

/** A UDP packet of its own flow, with `mark` as its payload. */
const frameTo = (destination: string, mark: number, tag: readonly number[] = []): Uint8Array => {
  // 0x66bd is the checksum of this header: a bridge may look at it.
  const ip = [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x66, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2];
  const udp = [mark >> 8, mark & 0xff, 0, 9, 0, 26, 0, 0];
  const head = [...bytesOf(destination), ...bytesOf(PEER), ...tag, 8, 0, ...ip, ...udp];
  return Uint8Array.from([...head, ...le32(mark), ...new Uint8Array(14)]);
};

/** The mark of a frame; undefined when somebody else sent it. */
const markOf = (frame: Uint8Array): number | undefined => {
  if (Buffer.compare(frame.subarray(6, 12), Uint8Array.from(bytesOf(PEER))) !== 0) return undefined;
  return Buffer.from(frame).readUInt32LE(frame.length - 18);
};

describeWithPeers([...namespacePeers, 'ethtool'], 'the control queue of a TAP', () => {
  const cleanup = cleanupAfterEach();
  let mark = 0;

  /** A daemon on tap0, and a guest on tap1 of the same bridge, who sends. Nobody else does. */
  const start = async (options: { pairs?: number; threads?: number } = {}) => {
    const { pairs = 1, threads = 1 } = options;
    const namespace = await quietNamespace(cleanup);
    await namespace.addBridge('br0');
    await namespace.run('ip link set br0 type bridge mcast_snooping 0');
    await namespace.addTap('tap0', { queuePairs: pairs, bridge: 'br0' });
    await namespace.addTap('tap1', { bridge: 'br0' });
    const extra = [`--mac=${MAC}`, `--threads=${threads}`];
    const backend = await NetBackend.start(cleanup, { namespace, queuePairs: pairs, ctrlVq: true, extra });
    const peerBackend = await NetBackend.start(cleanup, { namespace, tap: 'tap1' });
    const peer = await connect(cleanup, peerBackend.socket, { control: false });
    return { namespace, backend, peer };
  };

  const startWithGuest = async (options: { pairs?: number; threads?: number; features?: readonly number[] } = {}) => {
    const { features = FILTERS, pairs = 1, threads = 1 } = options;
    const world = await start({ pairs, threads });
    const guest = await connect(cleanup, world.backend.socket, { pairs, features });
    await reach(world.peer, guest);
    return { ...world, guest };
  };

  /** Waits until the bridge forwards. */
  const reach = async (peer: NetGuest, guest: NetGuest): Promise<void> => {
    const end = performance.now() + 10_000;
    while (!guest.takeFrames().some((frame) => markOf(frame) === 0)) {
      if (performance.now() > end) throw new Error('the bridge does not forward');
      await peer.driver.sendFrame(frameTo(DESTINATIONS.all, 0));
      await delay(10);
    }
  };

  /** Sends frames, and one that will pass; returns for each whether it arrived. */
  const probe = async (
    peer: NetGuest,
    guest: NetGuest,
    frames: Uint8Array[],
    last: Destination,
  ): Promise<boolean[]> => {
    const end = ++mark;
    for (const frame of frames) await peer.driver.sendFrame(frame);
    await peer.driver.sendFrame(frameTo(DESTINATIONS[last], end));
    const received = await guest.receiveUntil((frame) => markOf(frame) === end);
    const arrived = new Set(received.flat().map(markOf));
    return frames.map((frame) => arrived.has(markOf(frame)));
  };

  /** Which destinations pass. */
  const passing = async (peer: NetGuest, guest: NetGuest, last: Destination = 'own'): Promise<string[]> => {
    const names = Object.keys(DESTINATIONS) as Destination[];
    const arrived = await probe(
      peer,
      guest,
      names.map((name) => frameTo(DESTINATIONS[name], ++mark)),
      last,
    );
    return names.filter((_, i) => arrived[i]);
  };

  const EVERYONE = Object.keys(DESTINATIONS);

  it('filters by address and mode as the driver says', async () => {
    const { peer, guest } = await startWithGuest();
    const many = Array.from({ length: 70 }, (_, i) => `02:00:00:00:00:${i.toString(16).padStart(2, '0')}`);

    expect(await passing(peer, guest)).toEqual(EVERYONE);
    await guest.require(0, 0, 0);
    expect(await passing(peer, guest)).toEqual(['own', 'all']);
    await guest.require(1, 0, ...tables([DESTINATIONS.other], [DESTINATIONS.group]));
    expect(await passing(peer, guest)).toEqual(['own', 'other', 'group', 'all']);
    await guest.require(1, 0, ...tables(many, [DESTINATIONS.otherGroup]));
    expect(await passing(peer, guest)).toEqual(['own', 'other', 'otherGroup', 'all']);
    await guest.require(1, 0, ...tables([], []));
    await guest.require(0, 1, 1);
    expect(await passing(peer, guest)).toEqual(['own', 'group', 'otherGroup', 'all']);
    await guest.require(0, 5, 1);
    expect(await passing(peer, guest)).toEqual(['own', 'group', 'otherGroup']);
    await guest.require(0, 5, 0);
    await guest.require(0, 3, 1);
    await guest.require(0, 4, 1);
    expect(await passing(peer, guest, 'all')).toEqual(['all']);
    await guest.require(0, 0, 1);
    expect(await passing(peer, guest)).toEqual(EVERYONE);
  });

  it.each([
    ['beside the frame', ''],
    ['in the frame', 'PATH=$PATH:/usr/sbin; ethtool -K tap0 tx-vlan-hw-insert off'],
  ])('filters by a VLAN tag %s', async (_, prepare) => {
    const { peer, guest, namespace } = await startWithGuest();
    await namespace.run(prepare);
    await guest.require(0, 0, 0);
    await guest.require(2, 0, 5, 0);
    await guest.require(2, 0, 0xff, 0x0f);
    await guest.require(2, 0, 6, 0);
    await guest.require(2, 1, 6, 0);
    const tags = [[], [0x81, 0, 0, 5], [0x81, 0, 0x20, 6], [0x81, 0, 0xef, 0xff], [0x81, 0, 0, 37], [0x88, 0xa8, 0, 6]];

    const arrived = await probe(
      peer,
      guest,
      tags.map((tag) => frameTo(MAC, ++mark, tag)),
      'own',
    );

    expect(arrived).toEqual([true, true, false, true, false, true]);
  });

  it('follows the address that the driver sets', async () => {
    const { peer, guest } = await startWithGuest();
    await guest.require(0, 0, 0);

    await guest.require(1, 1, ...bytesOf(DESTINATIONS.other));

    expect(await passing(peer, guest, 'other')).toEqual(['other', 'all']);
  });

  it('has no filter for the next driver, nor after a reset', async () => {
    const { peer, guest, backend } = await startWithGuest();
    await guest.require(0, 0, 0);
    expect(await passing(peer, guest)).toEqual(['own', 'all']);
    const { frontend } = guest;
    // QEMU repeats them for each pair of queues, which is no reset.
    await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
    expect(await passing(peer, guest)).toEqual(['own', 'all']);
    const bases: number[] = [];
    for (const ring of frontend.rings) bases.push(await frontend.stopRing(ring));
    await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
    for (const ring of frontend.rings) await frontend.startRing(ring, bases[ring.index]);
    expect(await passing(peer, guest)).toEqual(EVERYONE);
    await guest.require(0, 0, 0);
    guest.close();

    const next = await connect(cleanup, backend.socket, { features: [], control: false });
    await reach(peer, next);

    expect(await passing(peer, next)).toEqual(EVERYONE);
  });

  it('keeps the filter while rings are stopped and started', async () => {
    const { peer, guest } = await startWithGuest();
    await guest.require(0, 0, 0);
    const { frontend } = guest;

    const bases: number[] = [];
    for (const ring of frontend.rings) bases.push(await frontend.stopRing(ring));
    for (const ring of frontend.rings) await frontend.startRing(ring, bases[ring.index]);

    expect(await passing(peer, guest)).toEqual(['own', 'all']);
  });

  it.each([1, 2])('puts the filter onto a TAP that was deleted and is back, with %i threads', async (threads) => {
    const { peer, guest, backend, namespace } = await startWithGuest({ pairs: threads, threads });
    await guest.require(0, 0, 0);

    await namespace.run('ip link del tap0');
    await backend.waitForLog(/tap0 was deleted/);
    await namespace.addTap('tap0', { queuePairs: threads, bridge: 'br0' });
    await backend.waitForLog(/tap0 is back/);
    await reach(peer, guest);

    expect(await passing(peer, guest)).toEqual(['own', 'all']);
  });

  /** Sends packets of 64 flows to an address; returns how many come to each pair. */
  const spread = async (peer: NetGuest, guest: NetGuest, to: Destination): Promise<number[]> => {
    const first = mark + 1;
    for (let i = 0; i < 64; i += 1) await peer.driver.sendFrame(frameTo(DESTINATIONS[to], ++mark));
    const isCounted = (frame: Uint8Array): boolean => (markOf(frame) ?? 0) >= first;
    let count = 0;
    const received = await guest.receiveUntil((frame) => {
      count += isCounted(frame) ? 1 : 0;
      return count === 64;
    });
    return received.map((frames) => frames.filter(isCounted).length);
  };

  it.each([1, 2])('uses as many pairs as the driver says, with %i threads', async (threads) => {
    const { peer, guest, backend } = await startWithGuest({ pairs: 2, threads });

    // With a filter and without.
    for (const promiscuous of [1, 0]) {
      await guest.require(0, 0, promiscuous);
      expect(await spread(peer, guest, 'own')).toEqual([64, 0]);
      await guest.require(4, 0, 2, 0);
      expect((await spread(peer, guest, 'own'))[1]).toBeGreaterThan(0);
      await guest.require(4, 0, 1, 0);
      expect(await spread(peer, guest, 'own')).toEqual([64, 0]);
    }
    expect(backend.log()).not.toContain('TUNSETQUEUE');
  });

  it.each([1, 2])(
    'filters on every pair, also on one that was out of use when the filter changed, with %i threads',
    async (threads) => {
      const { peer, guest } = await startWithGuest({ pairs: 2, threads });
      await guest.require(4, 0, 2, 0);
      await guest.require(0, 0, 0);
      await spread(peer, guest, 'own');
      for (let i = 0; i < 64; i += 1) await peer.driver.sendFrame(frameTo(DESTINATIONS.other, ++mark));
      expect((await spread(peer, guest, 'own'))[1]).toBeGreaterThan(0);

      await guest.require(4, 0, 1, 0);
      await guest.require(0, 0, 1);
      await guest.require(4, 0, 2, 0);

      expect((await spread(peer, guest, 'other'))[1]).toBeGreaterThan(0);
    },
  );

  it.each([1, 2])('does not inherit the filter of a daemon that was killed, with %i threads', async (threads) => {
    const { peer, guest, backend } = await startWithGuest({ pairs: 2, threads });
    await guest.require(4, 0, 2, 0);
    await guest.require(0, 0, 0);
    await spread(peer, guest, 'own');

    await backend.kill9();
    guest.close();
    await backend.restart();
    const next = await connect(cleanup, backend.socket, { pairs: 2, features: FILTERS });
    await reach(peer, next);
    await next.require(4, 0, 2, 0);

    expect((await spread(peer, next, 'other'))[1]).toBeGreaterThan(0);
  });

  it.each([1, 2])('sets the offloads of the TAP, with %i threads', async (threads) => {
    const { guest, namespace } = await startWithGuest({
      pairs: threads,
      threads,
      features: [NET.CTRL_GUEST_OFFLOADS, NET.GUEST_CSUM, NET.GUEST_TSO4],
    });
    const segmentation = (): Promise<string> =>
      namespace.run('PATH=$PATH:/usr/sbin; ethtool -k tap0 | grep -o "tx-tcp-segmentation: [a-z]*"');

    expect(await segmentation()).toContain(': on');
    await guest.require(5, 0, 2, 0, 0, 0, 0, 0, 0, 0);
    expect(await segmentation()).toContain(': off');
    await guest.require(5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0);
    expect(await segmentation()).toContain(': on');
    expect(await guest.run(5, 0, 0x82, 1, 0, 0, 0, 0, 0, 0)).toEqual(ERR);
  });
});
