/** Many of something, for long: what a guest or a host can pile up, and what it costs while nothing can move. */

import { execFileSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { UnixListener } from '../../protocol/sys/unix-socket.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener, HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { OP } from '../support/frontend/vsock-wire.ts';

const cleanup = cleanupAfterEach();

it('connections that come and go while the guest takes nothing leave nothing in memory', async () => {
  const daemon = await VsockDaemon.start(cleanup);
  const guest = await daemon.guest();
  const listener = UnixListener.listen(`${daemon.uds}_9`);
  cleanup.add(() => listener.close());
  guest.refills = false;
  const cycle = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i += 8) {
      for (let k = 0; k < 8; k += 1) {
        const fields = { srcPort: 5000 + i + k, dstPort: 9 };
        guest.queue(guest.packet({ ...fields, op: OP.REQUEST }));
        guest.queue(guest.packet({ ...fields, op: OP.RST }));
      }
      guest.tx.signal();
      await guest.tx.take(16);
      for (let stream = listener.accept(); stream !== undefined; stream = listener.accept()) stream.close();
    }
  };
  // All receive buffers are used up, and one connection waits for more.
  for (let i = 0; i < 64; i += 1) await guest.send({ op: OP.RW, srcPort: 100 + i, dstPort: 1 });
  for (let i = 0; i < 64; i += 1) await guest.receive();
  await guest.send({ op: OP.REQUEST, srcPort: 1, dstPort: 9 });
  await cycle(4000);
  const before = daemon.rssBytes();
  await cycle(40_000);
  // A kilobyte of each would be 40 MB.
  expect(daemon.rssBytes() - before).toBeLessThan(20_000_000);
}, 120_000);

it('500 programs of the host that connect at once are all let in', async () => {
  const daemon = await VsockDaemon.start(cleanup);
  const guest = await daemon.guest();
  const answers = Array.from({ length: 500 }, async () => {
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    return (await host.readLine()).slice(0, 3);
  });
  for (let i = 0; i < 500; i += 1) await GuestSocket.accept(guest, 52);
  expect(new Set(await Promise.all(answers))).toEqual(new Set(['OK ']));
}, 60_000);

it('without descriptors the daemon lives, says so once, and goes on when there are some', async () => {
  const daemon = await VsockDaemon.start(cleanup);
  const guest = await daemon.guest();
  const listener = await HostListener.listen(cleanup, `${daemon.uds}_9`);
  // The soft limit alone.
  execFileSync('prlimit', [`--pid=${daemon.pid}`, `--nofile=${daemon.fdCount() + 4}:`]);
  const crowd: HostStream[] = [];
  for (let i = 0; i < 40; i += 1) crowd.push(await HostStream.dial(cleanup, daemon.uds, 52));
  await daemon.waitForLog(/accept4.*EMFILE/);
  await guest.send({ op: OP.REQUEST, srcPort: 1, dstPort: 9 });
  expect((await guest.receiveAt(1)).op).toBe(OP.RST);
  // Those that were let in are given up after 2 seconds, and others take their places.
  await Promise.all(crowd.slice(0, 4).map((host) => host.waitForEnd()));
  expect(daemon.log().match(/accept4/g)?.length).toBeLessThan(5);
  for (const host of crowd) host.destroy();
  execFileSync('prlimit', [`--pid=${daemon.pid}`, '--nofile=4096:']);
  const socket = await GuestSocket.connect(guest, { port: 5, peerPort: 9 });
  const host = await listener.accept();
  await socket.write(Buffer.from('hello'));
  expect((await host.read(5)).toString()).toBe('hello');
}, 60_000);
