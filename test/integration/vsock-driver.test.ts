/** Our own driver against the socket back end: much data, many connections, messages, and the daemon killed. */

import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { VsockDriver } from '../../vmm-client/driver/vsock-driver.ts';
import type { VsockDriverOptions } from '../../vmm-client/driver/vsock-setup.ts';
import type { VsockSocket } from '../../vmm-client/driver/vsock-socket.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener, HostPacketListener, HostStream } from '../support/frontend/vsock-host.ts';

const cleanup = cleanupAfterEach();
const BIG_BYTES = 256 * 1024 ** 2;
const BLOCK_BYTES = 1024 ** 2;

async function start(options: VsockDriverOptions = {}): Promise<{ daemon: VsockDaemon; driver: VsockDriver }> {
  const daemon = await VsockDaemon.start(cleanup, { extra: ['--log-level=info'] });
  const frontend = await VhostUserFrontend.connect(daemon.socket, { reconnectMs: 15_000 });
  const driver = await VsockDriver.open(frontend, options);
  cleanup.add(() => driver.close());
  return { daemon, driver };
}

/** What a socket receives until its end. */
async function digest(socket: VsockSocket): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256');
  const buffer = Buffer.alloc(65_536);
  let bytes = 0;
  for (;;) {
    const length = await socket.read(buffer);
    if (length === 0) return { bytes, sha256: hash.digest('hex') };
    hash.update(buffer.subarray(0, length));
    bytes += length;
  }
}

describe('the driver and the daemon', () => {
  it('carry 256 MiB each way at the same time, with the end of each', async () => {
    const { daemon, driver } = await start();
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_5000`);
    const socket = await driver.connect(5000);
    const { socket: host } = await listener.accept();
    const block = randomBytes(BLOCK_BYTES);
    const expected = createHash('sha256');
    for (let i = 0; i < BIG_BYTES / BLOCK_BYTES; i++) expected.update(block);
    const sha256 = expected.digest('hex');

    const atHost = createHash('sha256');
    host.on('data', (bytes) => atHost.update(bytes));
    const hostEnded = once(host, 'end');
    host.resume();
    const sendGuest = async () => {
      for (let i = 0; i < BIG_BYTES / BLOCK_BYTES; i++) await socket.write(block);
      await socket.shutdown();
    };
    const sendHost = async () => {
      for (let i = 0; i < BIG_BYTES / BLOCK_BYTES; i++) if (!host.write(block)) await once(host, 'drain');
      host.end();
    };
    const [atGuest] = await Promise.all([digest(socket), sendGuest(), sendHost(), hostEnded]);
    expect([atGuest.bytes, atGuest.sha256, atHost.digest('hex')]).toEqual([BIG_BYTES, sha256, sha256]);
    await socket.close();
    expect(driver.connectionCount).toBe(0);
  }, 120_000);

  it('go on in one direction when the other one has ended', async () => {
    const { daemon, driver } = await start();
    const listener = driver.listen(80);
    const host = await HostStream.dial(cleanup, daemon.uds, 80);
    const socket = await listener.accept();
    await host.readLine();
    host.end();
    expect(await socket.read(Buffer.alloc(1))).toBe(0);
    await socket.write(Buffer.from('after the end'));
    expect((await host.read(13)).toString()).toBe('after the end');
    await socket.shutdown();
    await host.waitForEnd();
    await socket.close();
  });

  it.each([256, 4])(
    'carry 100 connections at the same time, each with its own data, by queues of %s',
    async (queueSize) => {
      const { daemon, driver } = await start({ queueSize });
      const listener = await HostListener.listen(cleanup, `${daemon.uds}_7`);
      const accepting = (async () => {
        for (let i = 0; i < 100; i++) {
          const { socket } = await listener.accept();
          socket.pipe(socket);
        }
      })();
      const trips = Array.from({ length: 100 }, async (_, i) => {
        const socket = await driver.connect(7);
        const data = Buffer.alloc(100_000 + i, i);
        const echoed = digest(socket);
        await socket.write(data);
        await socket.shutdown();
        const { bytes, sha256 } = await echoed;
        await socket.close();
        return bytes === data.length && sha256 === createHash('sha256').update(data).digest('hex');
      });
      await accepting;
      expect(await Promise.all(trips)).toEqual(Array(100).fill(true));
      expect(driver.connectionCount).toBe(0);
    },
    60_000,
  );

  it('keep the boundaries of messages', async () => {
    const { daemon, driver } = await start();
    const listener = new HostPacketListener(cleanup, `${daemon.uds}_9`);
    const socket = await driver.connect(9, { type: 'seqpacket' });
    const host = await listener.accept();
    const messages = [Buffer.from('one'), randomBytes(65_000), Buffer.from('three')];
    for (const message of messages) await socket.writeMessage(message, true);
    for (const message of messages) expect((await host.receive()).equals(message)).toBe(true);
    for (const message of messages) host.send(message);
    for (const message of messages) expect((await socket.readMessage())?.bytes.equals(message)).toBe(true);
    await expect(socket.writeMessage(Buffer.alloc(2 ** 20))).rejects.toMatchObject({ code: 'EMSGSIZE' });
    host.stream.close();
    expect(await socket.readMessage()).toBe(undefined);
  });

  it('join two guests', async () => {
    const daemon = await VsockDaemon.start(cleanup, {
      arguments: [
        '--vm',
        'guest-cid=3,socket=@/vhost.sock,uds-path=@/v',
        '--vm',
        'guest-cid=4,socket=@/b,uds-path=@/w',
      ],
      sockets: 2,
    });
    const [first, second] = await Promise.all(
      [daemon.socket, `${daemon.directory}/b`].map(async (path) => {
        const driver = await VsockDriver.open(await VhostUserFrontend.connect(path));
        cleanup.add(() => driver.close());
        return driver;
      }),
    );
    const listener = second!.listen(80);
    const [socket, accepted] = await Promise.all([first!.connect(80, { cid: 4 }), listener.accept()]);
    expect(accepted.connection.remoteCid).toBe(3);
    const data = randomBytes(10 * BLOCK_BYTES);
    const received = digest(accepted);
    await socket.write(data);
    await socket.shutdown();
    expect((await received).sha256).toBe(createHash('sha256').update(data).digest('hex'));
    await accepted.write(Buffer.from('thanks'));
    await accepted.shutdown();
    expect((await digest(socket)).bytes).toBe(6);
    await socket.close();
    await accepted.ended();
  }, 30_000);

  it('are refused where nobody listens, on both sides', async () => {
    const { daemon, driver } = await start();
    await expect(driver.connect(1)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    await expect(driver.connect(1, { cid: 77 })).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    const host = await HostStream.dial(cleanup, daemon.uds, 1);
    await host.waitForEnd();
  });

  it('end connections when the daemon is killed, and make new ones with the next one', async () => {
    const { daemon, driver } = await start();
    const guests = driver.listen(80);
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_5000`);
    const socket = await driver.connect(5000);
    await listener.accept();
    await daemon.kill9();
    await expect(socket.read(Buffer.alloc(1))).rejects.toMatchObject({ code: 'ENETRESET' });
    await daemon.restart();
    const again = await driver.connect(5000);
    const host = await listener.accept();
    await again.write(Buffer.from('back'));
    expect((await host.read(4)).toString()).toBe('back');
    const dialed = await HostStream.dial(cleanup, daemon.uds, 80);
    const accepted = await guests.accept();
    await accepted.write(Buffer.from('too'));
    await dialed.readLine();
    expect((await dialed.read(3)).toString()).toBe('too');
  }, 60_000);
});
