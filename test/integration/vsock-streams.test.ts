/** Streams between guest and host: both directions, their ends, and their sizes. */

import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener, HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { OP, RCV, SEND } from '../support/frontend/vsock-wire.ts';

const cleanup = cleanupAfterEach();

describe('a stream', () => {
  it('goes from host to guest, after CONNECT and OK', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const socket = await GuestSocket.accept(guest, 52);
    expect(await host.readLine()).toBe(`OK ${socket.peerPort}`);
    await host.write('to the guest');
    expect((await socket.read(12)).toString()).toBe('to the guest');
    await socket.write(Buffer.from('to the host'));
    expect((await host.read(11)).toString()).toBe('to the host');
  });

  it('goes from guest to host, to the socket of the port', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_2000`);
    const socket = await GuestSocket.connect(guest, { port: 1000, peerPort: 2000 });
    const host = await listener.accept();
    await socket.write(Buffer.from('hello'));
    expect((await host.read(5)).toString()).toBe('hello');
    await host.write('world');
    expect((await socket.read(5)).toString()).toBe('world');
  });

  it('is refused where nobody listens', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    await guest.send({ op: OP.REQUEST, srcPort: 7, dstPort: 8 });
    const answer = await guest.receiveAt(7);
    expect(answer).toMatchObject({ op: OP.RST, srcCid: 2, dstCid: 3, srcPort: 8, dstPort: 7, len: 0 });
  });

  it('carries 16 MiB each way at once, unharmed', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const socket = await GuestSocket.accept(guest, 52);
    await host.readLine();
    const data = randomBytes(16 << 20);
    const [, atHost] = await Promise.all([socket.write(data), host.read(data.length)]);
    expect(atHost.equals(data)).toBe(true);
    const [, atGuest] = await Promise.all([host.write(data), socket.read(data.length)]);
    expect(atGuest.equals(data)).toBe(true);
  }, 60_000);

  it('ends one direction after the other', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const before = daemon.fdCount();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const socket = await GuestSocket.accept(guest, 52);
    await host.readLine();
    await socket.write(Buffer.from('last words'));
    await socket.shutdown(SEND);
    expect((await host.read(10)).toString()).toBe('last words');
    await host.waitForEnd();
    await host.write('heard');
    host.end();
    expect((await socket.read(5)).toString()).toBe('heard');
    await socket.waitForShutdown(SEND);
    await socket.shutdown(RCV | SEND);
    await socket.waitForReset();
    await daemon.waitForFds(before);
  });

  it('of a host program that is gone ends in both directions', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const before = daemon.fdCount();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const socket = await GuestSocket.accept(guest, 52);
    await host.readLine();
    await host.write('bye');
    host.destroy();
    expect((await socket.read(3)).toString()).toBe('bye');
    await socket.waitForShutdown(RCV | SEND);
    await socket.send(OP.RST);
    await daemon.waitForFds(before);
  });
});

describe('many streams', () => {
  it('carry their own data each, and leave nothing behind', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const before = daemon.fdCount();
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_7`);
    const pairs: { socket: GuestSocket; host: HostStream }[] = [];
    for (let i = 0; i < 200; i += 1) {
      const socket = await GuestSocket.connect(guest, { port: 1000 + i, peerPort: 7 });
      pairs.push({ socket, host: await listener.accept() });
    }
    await Promise.all(
      pairs.map(async ({ socket, host }, i) => {
        const data = Buffer.alloc(20_000 + i, i);
        await Promise.all([host.write(data), socket.write(data)]);
        const [atGuest, atHost] = await Promise.all([socket.read(data.length), host.read(data.length)]);
        expect(atGuest.equals(data) && atHost.equals(data)).toBe(true);
        await socket.shutdown();
        await socket.waitForReset();
        await host.waitForEnd();
      }),
    );
    await daemon.waitForFds(before);
  });

  it('do not wait for those that nobody reads, at either end', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_7`);
    const open = async (port: number): Promise<{ socket: GuestSocket; host: HostStream }> => {
      const socket = await GuestSocket.connect(guest, { port, peerPort: 7 });
      return { socket, host: await listener.accept() };
    };
    const data = randomBytes(300_000);
    for (let i = 0; i < 10; i += 1) {
      // The host's program never reads: the guest sends what its credit allows.
      const { socket } = await open(100 + i);
      while (socket.room > 0) {
        await socket.send(OP.RW, {}, data.subarray(0, Math.min(socket.room, 60_000)));
        socket.sent += Math.min(socket.room, 60_000);
      }
      // The guest's program never reads: it gives no credit after the first 4 KiB.
      const other = await GuestSocket.connect(guest, { port: 200 + i, peerPort: 7 });
      await other.send(OP.CREDIT_UPDATE, { bufAlloc: 4096 });
      const host = await listener.accept();
      host.write(data).catch(() => undefined);
    }
    const { socket, host } = await open(999);
    const [, got] = await Promise.all([socket.write(data), host.read(data.length)]);
    expect(got.equals(data)).toBe(true);
    const [, back] = await Promise.all([host.write(data), socket.read(data.length)]);
    expect(back.equals(data)).toBe(true);
  });
});
