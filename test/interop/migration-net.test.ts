/**
 * A guest with open TCP connections that moves from one QEMU to another, from one TAP interface of a bridge to the
 * next.
 */

import { expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { Migration } from '../support/guest/migration.ts';
import { awaitMigration, bootQemu, type QemuOptions, qemuPeersOf } from '../support/guest/qemu.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace } from '../support/net/namespace.ts';
import { OpenConnections, openConnectionPeers } from '../support/net/open-connections.ts';
import {
  bringUp,
  GUEST_ADDRESS,
  HOST_ADDRESS,
  iperf,
  ping,
  startIperfServer,
  trafficPeers,
  trafficPrograms,
} from '../support/net/traffic.ts';
import { describeWithPeers, peerPath } from '../support/peers.ts';

/**
 * The newer one: under TCG, QEMU 7.2 loses pages that the guest's CPUs write while it migrates. Guests with its own
 * virtio-blk-pci and no back end hung or panicked in 6 of 6 migrations under this load, and in none of 6 with QEMU 10.0.
 */
const version = 'newer qemu-system-x86_64';

const peers = [...qemuPeersOf(version), ...trafficPeers, ...openConnectionPeers, 'tcpdump'] as const;
describeWithPeers(peers, `migration by ${version} of a guest with vhost-user-net`, () => {
  const cleanup = cleanupAfterAll();

  it('keeps connections, with every byte of them', { timeout: 240_000 }, async () => {
    const host = await NetworkNamespace.create(cleanup);
    await host.addBridge('br0');
    await host.run(`ip addr add ${HOST_ADDRESS}/24 dev br0`);
    for (const tap of ['tap0', 'tap1']) await host.addTap(tap, { bridge: 'br0' });
    const source = await NetBackend.start(cleanup, { namespace: host, tap: 'tap0' });
    const options = (socket: string): QemuOptions => ({
      machine: 'q35',
      version,
      cpus: 2,
      memoryMiB: 512,
      interfaces: [{ socket, properties: 'mac=52:54:00:00:00:07' }],
      programs: trafficPrograms,
      // Or the guest itself would make each page dirty that it gives to the device.
      kernelArguments: 'init_on_alloc=0',
    });
    const guest = await bootQemu(cleanup, options(source.socket));
    await bringUp(guest);
    await startIperfServer(host);
    await ping(host, GUEST_ADDRESS);

    const connections = await OpenConnections.start(cleanup, host, guest);

    const target = await NetBackend.start(cleanup, { namespace: host, tap: 'tap1' });
    const destination = await awaitMigration(cleanup, options(target.socket));
    const rarp = host.spawn(peerPath('tcpdump'), ['-n', '-l', '-i', 'tap1', 'rarp']);
    await rarp.waitFor(/listening on tap1/, 10_000);
    const migration = await Migration.start(cleanup, guest, destination);
    await migration.hold();
    await connections.fill(guest);
    await migration.expectHeld();
    await migration.finish();

    await rarp.waitFor(/52:54:00:00:00:07/, 10_000);
    expect(await host.run('bridge fdb show br br0 | grep ^52:54:00:00:00:07')).toContain('dev tap1');
    const { down, up, waiting } = await connections.finish(destination);
    expect(waiting[1]).toBe(waiting[0]);
    expect(down[1]).toBe(down[0]);
    expect(up[1]).toBe(up[0]);
    await ping(destination, HOST_ADDRESS);
    await iperf(destination, HOST_ADDRESS, '--bidir');
    await guest.qmp.execute('quit');
    expect(await source.sigterm()).toEqual({ code: 0, signal: null });
  });
});
