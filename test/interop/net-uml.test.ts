import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import type { Guest } from '../support/guest/guest.ts';
import { bootUml, umlPeers } from '../support/guest/uml.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace } from '../support/net/namespace.ts';
import {
  bringUp,
  busyQueues,
  FileServer,
  GUEST_ADDRESS,
  GUEST_ADDRESS6,
  HOST_ADDRESS,
  HOST_ADDRESS6,
  iperf,
  ping,
  queuePackets,
  startIperfServer,
  startLoad,
  trafficPeers,
  trafficPrograms,
} from '../support/net/traffic.ts';
import { describeWithPeers, peerPath } from '../support/peers.ts';

const MiB = 1 << 20;
const MAC = '52:54:00:77:00:02';
const peers = [...umlPeers, ...trafficPeers] as const;
const hostAddresses = [`--ip=${HOST_ADDRESS}/24`, `--ip6=${HOST_ADDRESS6}/64`];

describeWithPeers(peers, 'User-mode Linux, vhost-user-net with control queue', () => {
  const cleanup = cleanupAfterAll();
  let host: NetworkNamespace;
  let backend: NetBackend;
  let guest: Guest;
  let files: FileServer;
  let idleFds: number;

  beforeAll(async () => {
    host = await NetworkNamespace.create(cleanup);
    backend = await NetBackend.start(cleanup, {
      namespace: host,
      queuePairs: 4,
      ctrlVq: true,
      extra: [...hostAddresses, `--mac=${MAC}`, '--mtu=9000', '--speed=10000'],
    });
    idleFds = backend.fdCount();
    await startIperfServer(host);
    files = await FileServer.start(cleanup, host, 256 * MiB);
    guest = await bootUml(cleanup, { netSockets: [backend.socket], programs: trafficPrograms, memoryMiB: 640 });
    await bringUp(guest);
  });

  const carrier = (state: 0 | 1): Promise<void> =>
    guest.waitUntil(`[ "$(cat /sys/class/net/eth0/carrier)" = ${state} ]`);

  it('has the address, MTU and speed that the daemon was given', async () => {
    const output = await guest.run('cd /sys/class/net/eth0; cat address mtu speed duplex');
    expect(output.split('\n')).toEqual([MAC, '9000', '10000', 'full']);
  });

  it('pings the host, and the host pings it', async () => {
    await ping(guest, HOST_ADDRESS);
    await ping(host, GUEST_ADDRESS);
  });

  it('carries packets of 9000 bytes in one piece, both ways', async () => {
    await ping(guest, HOST_ADDRESS, 9000);
    await ping(host, GUEST_ADDRESS, 9000);
    await expect(ping(guest, HOST_ADDRESS, 9001)).rejects.toThrow(/message too long/i);
  });

  it('speaks IPv6', async () => {
    await ping(guest, HOST_ADDRESS6);
    await ping(host, GUEST_ADDRESS6);
    await iperf(guest, HOST_ADDRESS6);
  });

  it('streams TCP and UDP both ways', async () => {
    await iperf(guest, HOST_ADDRESS);
    await iperf(guest, HOST_ADDRESS, '--reverse');
    await iperf(guest, HOST_ADDRESS, '--bidir --parallel 3');
    await iperf(guest, HOST_ADDRESS, '--udp --bitrate 50M --length 1400');
    await iperf(guest, HOST_ADDRESS, '--udp --bitrate 50M --length 1400 --reverse');
  });

  it('carries 256 MiB both ways unchanged, segmented by the host', { timeout: 120_000 }, async () => {
    const offloads = await guest.run('/usr/bin/ethtool -k eth0');
    expect(offloads).toMatch(/^tx-checksumming: on$/m);
    expect(offloads).toMatch(/^tcp-segmentation-offload: on$/m);
    expect(await files.sendTo(guest)).toBe(files.sha256);
    expect(await files.receiveFrom(guest)).toBe(files.sha256);
  });

  it('carries them unchanged without offloads too', { timeout: 120_000 }, async () => {
    // Without large receive offload the driver has the TAP told so, by the control queue.
    await guest.run('/usr/bin/ethtool -K eth0 tx off tso off gso off gro off rx-gro-hw off');
    expect(await files.sendTo(guest)).toBe(files.sha256);
    expect(await files.receiveFrom(guest)).toBe(files.sha256);
    await guest.run('/usr/bin/ethtool -K eth0 tx on tso on gso on gro on rx-gro-hw on');
  });

  it('uses as many queue pairs as the driver sets', async () => {
    for (const pairs of [4, 1, 2]) {
      await guest.run(`/usr/bin/ethtool -L eth0 combined ${pairs}`);
      const before = await queuePackets(guest);
      await iperf(guest, HOST_ADDRESS, '--bidir --parallel 16');
      const busy = Array.from({ length: pairs }, () => true);
      expect(busyQueues(before, await queuePackets(guest))).toEqual({ rx: busy, tx: busy });
    }
    await guest.run('/usr/bin/ethtool -L eth0 combined 1');
  });

  it('takes the filter settings of the driver', async () => {
    await guest.run(`ip link set eth0 promisc on; ip link set eth0 promisc off
      ifconfig eth0 allmulti; ifconfig eth0 -allmulti
      vconfig add eth0 9; vconfig rem eth0.9
      ip link set eth0 down; ip link set eth0 address 52:54:00:77:00:99; ip link set eth0 up`);
    await ping(guest, HOST_ADDRESS);
    await guest.run(`ip link set eth0 down; ip link set eth0 address ${MAC}; ip link set eth0 up`);
    await ping(guest, HOST_ADDRESS);
  });

  it('loses the carrier when the TAP goes down, and goes on when it is up again', async () => {
    await carrier(1);
    await host.run('ip link set tap0 down');
    await carrier(0);
    await host.run('ip link set tap0 up');
    await carrier(1);
    await ping(guest, HOST_ADDRESS);
  });

  it('goes on when the TAP was deleted, and made again by somebody else or by the daemon', async () => {
    const mac = await host.run('cat /sys/class/net/tap0/address');
    for (const makeAgain of [
      // The guest remembers its address for a while.
      async () => {
        await host.addTap('tap0', { queuePairs: 4 });
        await host.run(`ip link set tap0 address ${mac}`);
      },
      () => backend.signal('SIGHUP'),
    ]) {
      await host.run('ip link del tap0');
      await carrier(0);
      await makeAgain();
      await carrier(1);
      await ping(guest, HOST_ADDRESS);
      await iperf(guest, HOST_ADDRESS, '--bidir');
    }
  });

  it('has a network again after a reboot under load', async () => {
    await startLoad(host, guest);
    // net-qemu.test.ts says why a driver that shuts devices down must not be sending then. The host goes on.
    await guest.run('ip link set eth0 down');
    await guest.reboot();
    await bringUp(guest);
    await ping(guest, HOST_ADDRESS, 9000);
    await iperf(guest, HOST_ADDRESS, '--bidir');
  });

  it('is done with a guest that is off: the daemon runs and holds no descriptor of it', async () => {
    await startLoad(host, guest);
    await guest.run('ip link set eth0 down');
    await guest.powerOff();
    await expect.poll(() => backend.fdCount(), { timeout: 20_000 }).toBe(idleFds);
    expect(backend.running).toBe(true);
  });

  it('ends on SIGTERM under load', async () => {
    const another = await bootUml(cleanup, { netSockets: [backend.socket], programs: trafficPrograms });
    await bringUp(another);
    await startLoad(host, another);
    expect(await backend.sigterm()).toEqual({ code: 0, signal: null });
  });
});

describeWithPeers([...peers, 'tcpdump'], 'two User-mode Linux guests on a bridge', () => {
  const cleanup = cleanupAfterAll();
  const addresses = [
    { address: '10.7.0.11', address6: 'fd00:7::11' },
    { address: '10.7.0.12', address6: 'fd00:7::12' },
  ] as const;
  let host: NetworkNamespace;
  let first: Guest;
  let second: Guest;

  beforeAll(async () => {
    host = await NetworkNamespace.create(cleanup);
    await host.addBridge('br0');
    await host.run(`ip addr add ${HOST_ADDRESS}/24 dev br0`);
    const boot = async (index: 0 | 1): Promise<Guest> => {
      const backend = await NetBackend.start(cleanup, {
        namespace: host,
        tap: `tap${index}`,
        extra: ['--bridge=br0', `--mac=52:54:00:77:01:0${index}`],
      });
      const guest = await bootUml(cleanup, { netSockets: [backend.socket], programs: trafficPrograms });
      await bringUp(guest, addresses[index]);
      return guest;
    };
    [first, second] = await Promise.all([boot(0), boot(1)]);
    await second.run('/usr/bin/iperf3 --server --daemon');
  });

  it('talk to each other', async () => {
    await ping(first, addresses[1].address);
    await ping(second, addresses[0].address6);
    await iperf(first, addresses[1].address);
    await iperf(first, addresses[1].address6, '--reverse');
  });

  it('talk to the host', async () => {
    await ping(first, HOST_ADDRESS);
    await ping(host, addresses[1].address);
  });

  it('talk to each other on a VLAN, whose tags the bridge does not look at', async () => {
    for (const [guest, address] of [
      [first, '10.7.9.1'],
      [second, '10.7.9.2'],
    ] as const) {
      await guest.run(`vconfig add eth0 9; ip link set eth0.9 up; ip addr add ${address}/24 dev eth0.9`);
    }
    const capture = host.spawn(peerPath('tcpdump'), ['-n', '-e', '-l', '-i', 'br0', 'vlan', '9', 'and', 'icmp']);
    await capture.waitFor(/listening on/, 10_000);
    await ping(first, '10.7.9.2', 1500);
    await capture.waitFor(/ vlan 9, .*10\.7\.9\.1 > 10\.7\.9\.2: ICMP echo request/, 5_000);
    await iperf(first, '10.7.9.2', '--bidir');
  });
});
