/** What only QEMU does: a device that is plugged in, pulled out, and that stays when its daemon does not. */

import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { bootQemu, type QemuGuest, qemuPeers } from '../support/guest/qemu.ts';
import { describeWithPeers } from '../support/peers.ts';
import { HostPrograms, socketPeers, socketPrograms, startInGuest, vsockPeerProgram } from '../support/vsock/traffic.ts';

const DONE = 'exchanged 5000 bytes on 20 connections';

describeWithPeers([...qemuPeers, ...socketPeers], 'QEMU q35, a vhost-user-vsock that is plugged in', () => {
  const cleanup = cleanupAfterAll();
  let daemon: VsockDaemon;
  let host: HostPrograms;
  let guest: QemuGuest;
  let idleFds: number;

  beforeAll(async () => {
    daemon = await VsockDaemon.start(cleanup, { cid: 7 });
    idleFds = daemon.fdCount();
    host = new HostPrograms(cleanup, daemon.uds);
    guest = await bootQemu(cleanup, {
      machine: 'q35',
      cpus: 2,
      sockets: [],
      extra: ['-device', 'pcie-root-port,id=slot1,slot=1'],
      vsockModules: true,
      programs: socketPrograms,
      staticPrograms: [vsockPeerProgram()],
    });
    await host.echo(5000, 'stream');
  });

  const use = async (): Promise<void> => {
    expect(await guest.run('/usr/bin/vsock-peer exchange vsock:2:5000 20 5000')).toBe(DONE);
    expect(await host.run('$PEER exchange hybrid:5001:$U 20 5000')).toBe(DONE);
  };

  it('is used, pulled out with open connections, and plugged in again', async () => {
    await startInGuest(guest, '/usr/bin/vsock-peer echo stream vsock:4294967295:5001');
    for (const id of ['one', 'two']) {
      await guest.plugSockets(id, daemon.socket, 'slot1');
      await use();
      const open = await host.connect(5001);
      await guest.unplug(id);
      await open.waitForEnd();
      await expect.poll(() => daemon.fdCount(), { timeout: 20_000 }).toBe(idleFds);
    }
  });

  it('is replaced when the daemon was killed: connections are over, new ones are made', async () => {
    await guest.plugSockets('killed', daemon.socket, 'slot1');
    // The guest's connections wait for the daemon to have the rings; without a driver it refuses the host's.
    await use();
    const open = await host.connect(5001);
    await daemon.kill9();
    await open.waitForEnd();
    await daemon.restart();
    await guest.unplug('killed');
    await guest.plugSockets('again', daemon.socket, 'slot1');
    await use();
  });
});
