/** Linux' own driver and socat, in a guest of User-mode Linux and in one of QEMU. */

import { existsSync } from 'node:fs';
import { beforeAll, expect, it } from 'vitest';
import { type Cleanup, cleanupAfterAll } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import type { Guest } from '../support/guest/guest.ts';
import { bootQemu, qemuPeers } from '../support/guest/qemu.ts';
import { bootUml, umlPeers } from '../support/guest/uml.ts';
import { describeWithPeers, type PeerName } from '../support/peers.ts';
import {
  answerInGuest,
  HostPrograms,
  MESSAGE_LIMIT,
  sendFromGuest,
  sendToGuest,
  socketPeers,
  socketPrograms,
  startInGuest,
  vsockPeerProgram,
} from '../support/vsock/traffic.ts';

const CID = 42;
/** The guest's own, whatever it is: VMADDR_CID_ANY (linux/vm_sockets.h). */
const anyCid = 'vsock:4294967295';

interface Machine {
  readonly name: string;
  readonly peers: readonly PeerName[];
  readonly mib: number;
  boot(cleanup: Cleanup, socket: string): Promise<Guest>;
}

const options = (socket: string) => ({
  vsockSocket: socket,
  programs: socketPrograms,
  staticPrograms: [vsockPeerProgram()],
});

const machines: readonly Machine[] = [
  {
    name: 'User-mode Linux',
    peers: umlPeers,
    mib: 256,
    boot: (cleanup, socket) => bootUml(cleanup, { memoryMiB: 640, ...options(socket) }),
  },
  {
    name: 'QEMU q35',
    peers: qemuPeers,
    mib: 64,
    boot: (cleanup, socket) => bootQemu(cleanup, { machine: 'q35', cpus: 2, ...options(socket) }),
  },
];

for (const { name, peers, mib, boot } of machines) {
  describeWithPeers([...peers, ...socketPeers], `${name}, vhost-user-vsock`, () => {
    const cleanup = cleanupAfterAll();
    let daemon: VsockDaemon;
    let host: HostPrograms;
    let guest: Guest;
    /** Descriptors of the daemon with a guest that has no connection. */
    let idleFds: number;

    beforeAll(async () => {
      daemon = await VsockDaemon.start(cleanup, { cid: CID });
      host = new HostPrograms(cleanup, daemon.uds);
      guest = await boot(cleanup, daemon.socket);
      idleFds = daemon.fdCount();
    });

    it('carries a line and its answer, from the guest to the host and from the host to the guest', async () => {
      const answering = await host.listen(5000, `$SOCAT UNIX-LISTEN:$U'_5000' SYSTEM:'read line; echo "host: $line"'`);
      expect(await guest.run('echo ping | /usr/bin/socat -t 10 - VSOCK-CONNECT:2:5000')).toBe('host: ping');
      await answering.waitForExit(5_000);

      await answerInGuest(guest, 5001, 'read line; echo "guest: $line"');
      const answer = await host.run(`printf 'CONNECT 5001\\nping\\n' | $SOCAT -t 10 - UNIX-CONNECT:$U`);
      expect(answer).toMatch(/^OK \d+\nguest: ping$/);
    });

    it(`carries ${mib} MiB unchanged to the host`, { timeout: 120_000 }, async () => {
      const { sent, received } = await sendFromGuest(guest, host, 5002, mib);
      expect(received).toBe(sent);
    });

    it(`carries ${mib} MiB unchanged to the guest`, { timeout: 120_000 }, async () => {
      const { sent, received } = await sendToGuest(guest, host, 5003, mib);
      expect(received).toBe(sent);
    });

    it('has 500 connections at the same time, of which each ends its directions one after the other', async () => {
      await host.echo(5004, 'stream');
      const done = 'exchanged 5000 bytes on 500 connections';
      expect(await guest.run('/usr/bin/vsock-peer exchange vsock:2:5004 500 5000', 60_000)).toBe(done);
      await startInGuest(guest, `/usr/bin/vsock-peer echo stream ${anyCid}:5005`);
      expect(await host.run('$PEER exchange hybrid:5005:$U 500 5000', 60_000)).toBe(done);
    });

    it('lets a direction go on when the other one has ended', async () => {
      const counting = await host.listen(5006, `$SOCAT -t 20 UNIX-LISTEN:$U'_5006' SYSTEM:'wc -c; echo the end'`);
      const answer = await guest.run(
        'head -c 300000 /dev/zero | /usr/bin/socat -t 20 - VSOCK-CONNECT:2:5006 | tr -s " "',
      );
      expect(answer).toMatch(/^ ?300000\nthe end$/);
      await counting.waitForExit(5_000);
      await answerInGuest(guest, 5007, 'wc -c; echo the end');
      const ours = await host.run(
        `(echo CONNECT 5007; head -c 300000 /dev/zero) | $SOCAT -t 20 - UNIX-CONNECT:$U | tr -s ' '`,
      );
      expect(ours).toMatch(/^OK \d+\n ?300000\nthe end$/);
    });

    it('keeps messages apart, up to the limit', async () => {
      const lengths = `1 2 4095 4096 65536 200000 ${MESSAGE_LIMIT - 1} ${MESSAGE_LIMIT}`;
      await host.echo(5008, 'seqpacket');
      const done = '72 messages came back';
      expect(await guest.run(`/usr/bin/vsock-peer messages vsock:2:5008 ${lengths}`)).toBe(done);
      await startInGuest(guest, `/usr/bin/vsock-peer echo seqpacket ${anyCid}:5009`);
      expect(await host.run(`$PEER messages hybrid:5009:$U.seqpacket ${lengths}`)).toBe(done);
      const { code, output } = await guest.try(`/usr/bin/vsock-peer messages vsock:2:5008 ${MESSAGE_LIMIT + 1}`);
      expect(code).toBe(1);
      // Linux 6.1 makes ENOMEM of whatever its transport says, which is EMSGSIZE.
      expect(output).toMatch(/^vsock-peer: send: (Message too long|Cannot allocate memory)$/);
    });

    it('refuses a connection of the type that the listener is not of', async () => {
      const { code, output } = await guest.try('/usr/bin/vsock-peer messages vsock:2:5004 1');
      expect({ code, output }).toEqual({ code: 1, output: 'vsock-peer: connect: Connection reset by peer' });
    });

    it('refuses the host a port where nobody listens in the guest', async () => {
      expect(await host.run(`echo CONNECT 5999 | $SOCAT -t 5 - UNIX-CONNECT:$U`)).toBe('');
    });

    it('refuses the guest a port where nobody listens on the host, and CIDs that nobody has', async () => {
      for (const peer of ['2:5999', '77:5000', '1:5000']) {
        const { code, output } = await guest.try(`/usr/bin/socat -u /dev/null VSOCK-CONNECT:${peer}`);
        expect(code).toBe(1);
        expect(output).toMatch(peer.startsWith('1:') ? /No such device|reset/i : /Connection reset by peer/);
      }
    });

    it('holds no descriptor of connections that are over', async () => {
      await daemon.waitForFds(idleFds);
    });

    it('ends connections when the guest reboots, and makes new ones afterwards', async () => {
      await startInGuest(guest, `/usr/bin/vsock-peer echo stream ${anyCid}:5010`);
      const open = await Promise.all([1, 2, 3].map(() => host.connect(5010)));
      const waiting = await host.listen(5011, `$SOCAT -u UNIX-LISTEN:$U'_5011' - | cat`);
      await guest.run('/usr/bin/socat -d -d -u VSOCK-CONNECT:2:5011 - >/tmp/open 2>&1 &');
      await guest.waitUntil('grep -q "starting data transfer" /tmp/open');
      await guest.reboot();
      for (const stream of open) await stream.waitForEnd();
      await waiting.waitForExit(5_000);
      await startInGuest(guest, `/usr/bin/vsock-peer echo stream ${anyCid}:5010`);
      const done = 'exchanged 1000 bytes on 5 connections';
      expect(await host.run('$PEER exchange hybrid:5010:$U 5 1000')).toBe(done);
      expect(await guest.run('/usr/bin/vsock-peer exchange vsock:2:5004 5 1000')).toBe(done);
      await daemon.waitForFds(idleFds);
    });

    it('ends on SIGTERM with a guest that has connections; the sockets are gone', async () => {
      const stream = await host.connect(5010);
      expect(await daemon.sigterm()).toEqual({ code: 0, signal: null });
      await stream.waitForEnd();
      expect([daemon.socket, daemon.uds].filter((path) => existsSync(path))).toEqual([]);
    });
  });
}
