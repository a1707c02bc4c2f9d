/** Connections of packets: boundaries of messages are kept, both ways. */

import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import type { VsockGuest } from '../support/frontend/vsock-guest.ts';
import { HostListener, HostPacketListener, HostPackets } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { EOM, F_STREAM, OP, RCV, SEND, SEQPACKET, STREAM } from '../support/frontend/vsock-wire.ts';

const cleanup = cleanupAfterEach();

const open = async (): Promise<{ daemon: VsockDaemon; guest: VsockGuest; socket: GuestSocket; host: HostPackets }> => {
  const daemon = await VsockDaemon.start(cleanup);
  const guest = await daemon.guest();
  const host = HostPackets.connect(cleanup, `${daemon.uds}.seqpacket`);
  host.send('CONNECT 52\n');
  const socket = await GuestSocket.accept(guest, 52, SEQPACKET);
  expect((await host.receive()).toString()).toBe(`OK ${socket.peerPort}\n`);
  return { daemon, guest, socket, host };
};

describe('a connection of packets', () => {
  it('keeps messages of the host apart', async () => {
    const { socket, host } = await open();
    const messages = ['one', 'two', '', 'four'].map((text) => Buffer.from(text));
    for (const message of messages) host.send(message);
    for (const message of messages) {
      const { bytes, flags } = await socket.readMessage();
      expect(bytes.equals(message)).toBe(true);
      expect(flags).toBe(EOM);
    }
  });

  it('has what the host sent before it went, and nothing else, however soon that is', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    for (let i = 0; i < 200; i += 1) {
      const host = UnixStream.connect(`${daemon.uds}.seqpacket`, 5);
      const messages = i % 2 === 0 ? ['one'] : ['', 'two'];
      try {
        host.send(Buffer.from('CONNECT 52\n'));
        const socket = await GuestSocket.accept(guest, 52, SEQPACKET);
        for (const message of messages) host.send(Buffer.from(message));
        host.close();
        const got: string[] = [];
        for (let packet = await socket.next(); packet.op !== OP.SHUTDOWN; packet = await socket.next()) {
          if (packet.op === OP.RW) got.push(Buffer.from(packet.payload).toString());
        }
        expect(got).toEqual(messages);
        await socket.send(OP.RST);
      } finally {
        host.close();
      }
    }
  });

  it('keeps messages of the guest apart', async () => {
    const { socket, host } = await open();
    for (const text of ['one', 'two', 'three']) await socket.writeMessage(Buffer.from(text));
    for (const text of ['one', 'two', 'three']) expect((await host.receive()).toString()).toBe(text);
  });

  it('puts a message together that the guest sends in packets', async () => {
    const { socket, host } = await open();
    await socket.send(OP.RW, {}, Buffer.from('in '));
    await socket.send(OP.RW, {}, Buffer.from('three '));
    await socket.send(OP.RW, { flags: EOM }, Buffer.from('parts'));
    expect((await host.receive()).toString()).toBe('in three parts');
  });

  it('carries messages that need several buffers, and more than the credit', async () => {
    const { socket, host } = await open();
    const large = randomBytes(60_000);
    host.send(large);
    expect((await socket.readMessage()).bytes.equals(large)).toBe(true);
    await socket.send(OP.CREDIT_UPDATE, { fwdCnt: 50_000, bufAlloc: 20_000 });
    host.send(Buffer.alloc(20_000, 1));
    const first = await socket.next();
    expect(first.flags & EOM).toBe(0);
    expect((await socket.readMessage()).bytes.length).toBe(20_000 - first.len);
    await socket.writeMessage(large);
    expect((await host.receive()).equals(large)).toBe(true);
  });

  it('waits with messages for a host that does not read, and keeps them apart', async () => {
    const { socket, host } = await open();
    const sent = Array.from({ length: 300 }, (_, i) => Buffer.alloc(1000 + i, i));
    let next = 0;
    for (; next < sent.length && socket.room > 2000; next += 1) await socket.writeMessage(sent[next] as Buffer);
    for (let i = 0; i < next; i += 1) expect((await host.receive()).equals(sent[i] as Buffer)).toBe(true);
    for (; next < sent.length; next += 1) {
      await socket.writeMessage(sent[next] as Buffer);
      expect((await host.receive()).equals(sent[next] as Buffer)).toBe(true);
    }
  });

  it('is reset when a message never ends', async () => {
    const { socket } = await open();
    for (let i = 0; i < 4; i += 1) await socket.send(OP.RW, {}, new Uint8Array(65_536));
    await socket.waitForReset();
  });

  it('is reset by empty messages without end that the host does not read', async () => {
    const { guest, socket } = await open();
    for (let i = 0; i < 5000 && guest.inbox.length === 0; i += 1) await socket.send(OP.RW, { flags: EOM });
    await socket.waitForReset();
  });

  it('goes from guest to host, if the listener takes packets', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const listener = new HostPacketListener(cleanup, `${daemon.uds}_7`);
    const socket = await GuestSocket.connect(guest, { port: 5, peerPort: 7, type: SEQPACKET });
    const host = await listener.accept();
    await socket.writeMessage(Buffer.from('message'));
    expect((await host.receive()).toString()).toBe('message');
    await socket.shutdown(RCV | SEND);
    await socket.waitForReset();
    expect((await host.receive()).length).toBe(0);
    // And not if it takes streams, nor a stream there.
    await HostListener.listen(cleanup, `${daemon.uds}_8`);
    await expect(GuestSocket.connect(guest, { port: 5, peerPort: 8, type: SEQPACKET })).rejects.toThrow('op 3');
    await expect(GuestSocket.connect(guest, { port: 5, peerPort: 7, type: STREAM })).rejects.toThrow('op 3');
  });

  it('is refused to a driver that did not negotiate it', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    new HostPacketListener(cleanup, `${daemon.uds}_7`);
    const guest = await daemon.guest({ frontend: { features: [F_STREAM] } });
    await expect(GuestSocket.connect(guest, { port: 5, peerPort: 7, type: SEQPACKET })).rejects.toThrow('op 3');
    const host = HostPackets.connect(cleanup, `${daemon.uds}.seqpacket`);
    host.send('CONNECT 52\n');
    expect((await host.receive()).length).toBe(0);
  });
});
