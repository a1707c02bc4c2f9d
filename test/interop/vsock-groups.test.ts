/** Three guests of one daemon: the first has a group in common with each of the others, and they have none. */

import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import type { Guest } from '../support/guest/guest.ts';
import { bootUml, umlPeers } from '../support/guest/uml.ts';
import { describeWithPeers } from '../support/peers.ts';
import { HostPrograms, socketPeers, socketPrograms, startInGuest, vsockPeerProgram } from '../support/vsock/traffic.ts';

const MIB = 32;
/** The guest's own CID, whatever it is: VMADDR_CID_ANY (linux/vm_sockets.h). */
const anyCid = 'vsock:4294967295';

describeWithPeers([...umlPeers, ...socketPeers], 'three User-mode Linux guests of one vhost-user-vsock', () => {
  const cleanup = cleanupAfterAll();
  let daemon: VsockDaemon;
  let first: Guest;
  let second: Guest;
  let third: Guest;
  let idleFds: number;

  beforeAll(async () => {
    const vm = (cid: number, groups: string): string[] => [
      '--vm',
      `guest-cid=${cid},socket=@/vhost${cid}.sock,uds-path=@/v${cid},groups=${groups}`,
    ];
    daemon = await VsockDaemon.start(cleanup, {
      arguments: [...vm(3, 'web+all'), ...vm(4, 'all'), ...vm(5, 'web')],
      sockets: 3,
    });
    const boot = (cid: number): Promise<Guest> =>
      bootUml(cleanup, {
        vsockSocket: join(daemon.directory, `vhost${cid}.sock`),
        programs: socketPrograms,
        staticPrograms: [vsockPeerProgram()],
      });
    [first, second, third] = await Promise.all([boot(3), boot(4), boot(5)]);
    idleFds = daemon.fdCount();
  });

  it('connects those that have a group in common, who see the CID of each other', async () => {
    await startInGuest(second, `/usr/bin/socat -d -d -u VSOCK-LISTEN:6000 - | sha256sum >/tmp/sum`);
    const sent = await first.run(
      `dd if=/dev/urandom of=/tmp/random bs=1M count=${MIB} 2>/dev/null
      sha256sum </tmp/random
      /usr/bin/socat -u -b 65536 OPEN:/tmp/random VSOCK-CONNECT:4:6000; rm /tmp/random`,
      60_000,
    );
    await second.waitUntil('[ -s /tmp/sum ]');
    expect(await second.run('cat /tmp/sum')).toBe(sent);
    expect(await second.run('cat /tmp/log-*')).toMatch(/accept.* from .*cid:3 /i);
  });

  it('has 200 connections between two guests at the same time, and messages, both ways', async () => {
    for (const [from, to, cid, port] of [
      [first, second, 4, 6001],
      [third, first, 3, 6003],
    ] as const) {
      await startInGuest(to, `/usr/bin/vsock-peer echo stream ${anyCid}:${port}`);
      const output = await from.run(`/usr/bin/vsock-peer exchange vsock:${cid}:${port} 200 5000`);
      expect(output).toBe('exchanged 5000 bytes on 200 connections');
      await startInGuest(to, `/usr/bin/vsock-peer echo seqpacket ${anyCid}:${port + 1}`);
      const messages = await from.run(`/usr/bin/vsock-peer messages vsock:${cid}:${port + 1} 1 5000 65536 262144`);
      expect(messages).toBe('68 messages came back');
    }
  });

  it('refuses those that have none, and a port where nobody listens', async () => {
    await startInGuest(third, `/usr/bin/vsock-peer echo stream ${anyCid}:6005`);
    for (const [guest, peer] of [
      [second, '5:6005'],
      [third, '4:6001'],
      [first, '5:6999'],
    ] as const) {
      const { code, output } = await guest.try(`/usr/bin/socat -u /dev/null VSOCK-CONNECT:${peer}`);
      expect(code).toBe(1);
      expect(output).toMatch(/Connection reset by peer/);
    }
    expect(await first.run('/usr/bin/vsock-peer exchange vsock:5:6005 1 10')).toContain('on 1 connections');
  });

  it('ends connections with a guest that reboots, and leaves the others alone', async () => {
    const host = new HostPrograms(cleanup, join(daemon.directory, 'v5'));
    const kept = await host.connect(6005);
    await first.run('(/usr/bin/socat -d -d -u VSOCK-CONNECT:4:6001 -; echo over) >/tmp/open 2>&1 &');
    await first.waitUntil('grep -q "starting data transfer" /tmp/open');
    await second.reboot();
    await first.waitUntil('grep -q over /tmp/open');
    await startInGuest(second, `/usr/bin/vsock-peer echo stream ${anyCid}:6001`);
    const output = await first.run('/usr/bin/vsock-peer exchange vsock:4:6001 5 1000');
    expect(output).toBe('exchanged 1000 bytes on 5 connections');
    await kept.write('still here');
    expect(`${await kept.read(10)}`).toBe('still here');
    kept.destroy();
    await daemon.waitForFds(idleFds);
  });
});
