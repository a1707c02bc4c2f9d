/** `ringside vm run` with a guest without an operating system, vhost-user-vsock, and a program of the host. */

import { expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { describeWithPeers } from '../support/peers.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';
import { HostPrograms, socketPeers } from '../support/vsock/traffic.ts';

const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 60_000;
const RESPONSE = 2;
const RST = 3;
const TRANSPORT_RESET = 0;

describeWithPeers([...vmGuestPeers, ...socketPeers], 'sockets of the virtual machine, vhost-user-vsock', () => {
  const cleanup = cleanupAfterEach();

  const start = async (parameters: Record<string, string | number>) => {
    const daemon = await VsockDaemon.start(cleanup, { cid: 77 });
    const host = new HostPrograms(cleanup, daemon.uds);
    await host.echo(5000, 'stream');
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'vsock', ...parameters },
      memory: 'size=5G',
      extra: ['--vsock', `cid=77,socket=${daemon.socket}`],
    });
    return { daemon, vmm };
  };

  it('carry data there and back', async () => {
    // More than what may be under way.
    const bytes = 150_000;
    const { daemon, vmm } = await start({ port: 5000, bytes });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    const good = { cid: 77, answer: RESPONSE, sent: bytes, received: bytes, mismatches: 0, end: RST };
    expect(vmm.guest.numbers('vsock')).toMatchObject(good);
    await daemon.waitForFds(daemon.idleFds);
  });

  it('are refused where nobody listens', async () => {
    const { vmm } = await start({ port: 5999 });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('vsock')).toMatchObject({ answer: RST, sent: 0, end: RST });
  });

  it('are there again when the daemon was killed, and the driver is told', async () => {
    const { daemon, vmm } = await start({ port: 5000, bytes: 20_000, rounds: 2 });
    await vmm.guest.waitFor('vsock.round', DEADLINE_MS);
    await daemon.kill9();
    await daemon.restart();
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    const good = { event: TRANSPORT_RESET, round: 2, sent: 20_000, received: 20_000, mismatches: 0, end: RST };
    expect(vmm.guest.numbers('vsock')).toMatchObject(good);
  });
});
