/** One end of a migration's connection, against a peer that writes bytes as it likes. */

import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import { describe, expect, it, vi } from 'vitest';
import { Channel, PeerGaveUp } from '../../../../../vmm-client/vmm/migration/channel.ts';
import { FAILED, PAGES, ROUND, STATE } from '../../../../../vmm-client/vmm/migration/frames.ts';
import { cleanupAfterEach } from '../../../../support/cleanup.ts';
import { socketPair } from './fakes.ts';

const cleanup = cleanupAfterEach();
const TIMEOUT_MS = 2000;
const HEADER_BYTES = 16;

const frame = (type: number, payload: Buffer, sequence: number): Buffer => {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(type, 0);
  header.writeUInt32LE(payload.length, 4);
  header.writeUInt32LE(sequence, 8);
  header.writeUInt32LE(crc32(Buffer.concat([header.subarray(0, 12), payload])), 12);
  return Buffer.concat([header, payload]);
};

const bytesOf = (length: number, seed: number): Buffer => {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i += 1) bytes[i] = (i * 31 + (i >> 8) + seed) & 0xff;
  return bytes;
};

const tcpPair = async (): Promise<[Socket, Socket]> => {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const dialled = connect(address.port, '127.0.0.1');
  const [[accepted]] = await Promise.all([once(server, 'connection'), once(dialled, 'connect')]);
  server.close();
  for (const socket of [dialled, accepted as Socket]) {
    socket.on('error', () => undefined);
    cleanup.add(() => socket.destroy());
  }
  return [dialled, accepted as Socket];
};

const PAYLOADS = [1_000_000, 4, 0, 16 * 1024, 16 * 1024 + 1, 1_048_576, 1, 300_000].map(bytesOf);

describe.each([
  ['Unix socket', () => socketPair(cleanup)],
  ['TCP connection', tcpPair],
])('a channel over a %s', (_kind, pair) => {
  const setUp = async (): Promise<{ channel: Channel; peer: Socket }> => {
    const [socket, peer] = await pair();
    const channel = new Channel(socket, TIMEOUT_MS);
    cleanup.add(() => channel.fail(new Error('the test is over')));
    return { channel, peer };
  };

  it.each([7, 4096, 65_536, 10_000_000])('receives frames that come in pieces of %d bytes', async (pieceBytes) => {
    const { channel, peer } = await setUp();
    const sent = pieceBytes < 100 ? PAYLOADS.map((payload) => payload.subarray(0, 20_000)) : PAYLOADS;
    const stream = Buffer.concat(sent.map((payload, i) => frame(i === 1 ? ROUND : PAGES, payload, i)));
    for (let at = 0; at < stream.length; at += pieceBytes) peer.write(stream.subarray(at, at + pieceBytes));

    for (const [i, payload] of sent.entries()) {
      const received = await channel.receive([PAGES, ROUND]);
      expect(received.type).toBe(i === 1 ? ROUND : PAGES);
      expect(received.payload.equals(payload)).toBe(true);
    }
    expect(channel.hasNews).toBe(false);
  });

  it('has what came before it took the socket over', async () => {
    const [socket, peer] = await pair();
    const stream = Buffer.concat([frame(ROUND, bytesOf(4, 1), 0), frame(PAGES, bytesOf(200_000, 2), 1)]);
    peer.write(stream);
    await once(socket, 'readable');
    const channel = new Channel(socket, TIMEOUT_MS);
    cleanup.add(() => channel.fail(new Error('the test is over')));

    expect((await channel.receive([ROUND])).payload).toEqual(bytesOf(4, 1));
    expect((await channel.receive([PAGES])).payload.equals(bytesOf(200_000, 2))).toBe(true);
  });

  it('has what came before the end of the connection, then says that it ended', async () => {
    const { channel, peer } = await setUp();
    peer.end(Buffer.concat([frame(PAGES, bytesOf(500_000, 3), 0), frame(ROUND, bytesOf(4, 4), 1)]));

    await channel.receive([PAGES]);
    await channel.receive([ROUND]);
    await expect(channel.receive([ROUND])).rejects.toThrow('the peer closed the connection');
  });

  it('lets the peer wait when nobody receives', async () => {
    const { channel, peer } = await setUp();
    const payload = bytesOf(1_048_576, 5);
    let taken = 0;
    for (let i = 0; i < 24; i += 1) peer.write(frame(PAGES, payload, i), () => (taken += 1));
    await expect.poll(() => channel.hasNews).toBe(true);
    // 24 MiB are more than the kernel keeps of a connection.
    expect(taken).toBeLessThan(24);

    for (let i = 0; i < 24; i += 1) expect((await channel.receive([PAGES])).payload.equals(payload)).toBe(true);
    await expect.poll(() => taken).toBe(24);
  });

  it('hears while it sends that the peer gives up, and has its sentence', async () => {
    const { channel, peer } = await setUp();
    peer.write(frame(ROUND, bytesOf(4, 0), 0));
    await channel.receive([ROUND]);
    expect(channel.hasNews).toBe(false);
    peer.write(frame(FAILED, Buffer.from('no room'), 1));

    await expect.poll(() => channel.hasNews).toBe(true);
    await expect(channel.receive([])).rejects.toThrow(new PeerGaveUp('the peer gave up: no room'));
  });

  it('knows, also when nobody receives, that the peer is gone', async () => {
    const { channel, peer } = await setUp();
    peer.destroy();

    await vi.waitFor(() => expect(() => channel.check()).toThrow('the peer closed the connection'));
    await expect(channel.send(ROUND, Buffer.alloc(4))).rejects.toThrow('the peer closed the connection');
  });

  it('takes no memory for a frame that it does not wait for', async () => {
    const { channel, peer } = await setUp();
    const header = frame(STATE, bytesOf(100, 6), 0).subarray(0, HEADER_BYTES);
    header.writeUInt32LE(64 * 1024 * 1024, 4);
    peer.write(header);

    await expect(channel.receive([ROUND])).rejects.toThrow('the peer sends STATE where ROUND was to come');
  });

  it('leaves no descriptor behind', async () => {
    const before = readdirSync('/proc/self/fd').length;
    const { channel, peer } = await setUp();
    peer.resume();
    channel.close();
    await once(peer, 'close');

    await expect.poll(() => readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before);
  });
});

describe('a channel over a socket that broke before', () => {
  it('says so', async () => {
    const [socket] = await socketPair(cleanup);
    socket.destroy();
    const channel = new Channel(socket, TIMEOUT_MS);

    await expect(channel.receive([ROUND])).rejects.toThrow('the peer closed the connection');
    await expect(channel.send(ROUND, Buffer.alloc(4))).rejects.toThrow('the peer closed the connection');
    channel.close();
  });
});
