/** Who is taken as the source of a migration, and who is sent away. */

import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { createSealedMemfd, isSizeSealed, statFd } from '../../../../../protocol/sys/owned-fd.ts';
import { UnixListener, UnixStream } from '../../../../../protocol/sys/unix-socket.ts';
import { type AcceptOptions, acceptPeer, type Source } from '../../../../../vmm-client/vmm/migration/accept.ts';
import { connectPeer } from '../../../../../vmm-client/vmm/migration/connect.ts';
import { VERSION } from '../../../../../vmm-client/vmm/migration/frames.ts';
import { encodePreamble, PREAMBLE_BYTES } from '../../../../../vmm-client/vmm/migration/greeting.ts';
import { nameOfPeer, type PeerAddress } from '../../../../../vmm-client/vmm/urls.ts';
import { cleanupAfterEach } from '../../../../support/cleanup.ts';
import { countOwnFds } from '../../../../support/frontend/process-probe.ts';

const NEVER = new AbortController().signal;

let nextPort = 20_000 + (process.pid % 12_000);

/** Whether by an orderly end or not. */
const closeOf = (socket: Socket): Promise<void> => new Promise((resolve) => socket.once('close', () => resolve()));

describe.each(['unix', 'tcp'] as const)('A destination that waits by %s', (kind) => {
  const cleanup = cleanupAfterEach();

  const freeAddress = (): PeerAddress => {
    if (kind === 'unix') return { kind, path: join(cleanup.directory(), 'm') };
    // Below those that the kernel gives to clients.
    nextPort += 1;
    return { kind, host: '127.0.0.1', port: nextPort };
  };

  const wait = async (options: Partial<AcceptOptions> = {}) => {
    const at = freeAddress();
    const warnings: string[] = [];
    let source: Promise<Source> | undefined;
    await new Promise<void>((resolve, reject) => {
      const common = { signal: NEVER, onListening: resolve, warn: (line: string) => void warnings.push(line) };
      source = acceptPeer(at, { ...common, ...options });
      source.then(
        ({ socket }) => cleanup.add(() => void socket.on('error', () => undefined).destroy()),
        (error: Error) => reject(error),
      );
    });
    return { at, warnings, source: source as Promise<Source> };
  };

  const dial = async (at: PeerAddress, bytes: Buffer | string = ''): Promise<Socket> => {
    const socket = at.kind === 'unix' ? connect(at.path) : connect(at.port, at.host);
    socket.on('error', () => undefined);
    cleanup.add(() => void socket.destroy());
    await once(socket, 'connect');
    if (bytes.length > 0) socket.write(bytes);
    return socket;
  };

  it('takes a source, answers it, and listens no more', async () => {
    const { at, source, warnings } = await wait();
    const socket = await connectPeer(at, NEVER);
    cleanup.add(() => void socket.destroy());
    const taken = await source;
    expect(taken.memory).toEqual([]);
    socket.write('a frame');
    const [chunk] = (await once(taken.socket, 'data')) as [Buffer];
    expect(chunk.toString()).toBe('a frame');
    taken.socket.write('an answer');
    expect(String((await once(socket, 'data'))[0])).toBe('an answer');
    await expect(connectPeer(at, NEVER)).rejects.toThrow(nameOfPeer(at));
    if (at.kind === 'unix') expect(existsSync(at.path)).toBe(false);
    expect(warnings).toEqual([]);
  });

  it('takes one whose greeting comes byte by byte', async () => {
    const { at, source } = await wait();
    const socket = await dial(at);
    socket.setNoDelay(true);
    for (const byte of encodePreamble(0)) {
      await new Promise((resolve) => socket.write(Buffer.of(byte), resolve));
      await new Promise(setImmediate);
    }
    expect((await source).memory).toEqual([]);
    const [answer] = (await once(socket, 'data')) as [Buffer];
    expect(answer).toEqual(encodePreamble(0));
  });

  it.each([
    ['GET / HTTP/1.1\r\n\r\n', /sends something that is no migration/],
    [encodePreamble(0).subarray(0, PREAMBLE_BYTES - 1), /closed the connection before it had said what it is/],
    ['', /closed the connection before it had said what it is/],
    [encodePreamble(0, VERSION + 1), new RegExp(`version ${VERSION + 1}, this program's ${VERSION}`)],
    [encodePreamble(1), /sends 0 descriptors and says 1/],
  ])('sends away who says %j, and waits on', async (bytes, warning) => {
    const { at, source, warnings } = await wait();
    const stranger = await dial(at, bytes);
    stranger.resume();
    if (bytes.length < PREAMBLE_BYTES) stranger.end();
    await closeOf(stranger);
    expect(warnings).toEqual([expect.stringMatching(warning)]);
    const socket = await connectPeer(at, NEVER);
    cleanup.add(() => void socket.destroy());
    await source;
  });

  it('sends away who says nothing in time', async () => {
    const { at, source, warnings } = await wait({ greetingMs: 50 });
    const silent = await dial(at);
    silent.resume();
    await closeOf(silent);
    expect(warnings).toEqual([expect.stringMatching(/does not say what it is within 50 ms/)]);
    const socket = await connectPeer(at, NEVER);
    cleanup.add(() => void socket.destroy());
    await source;
  });

  it('has eight that say nothing make way for a source', async () => {
    const { at, source } = await wait();
    const silent: Socket[] = [];
    for (let i = 0; i < 8; i += 1) silent.push((await dial(at)).resume());
    const closed = silent.map((socket) => closeOf(socket));
    const socket = await connectPeer(at, NEVER);
    cleanup.add(() => void socket.destroy());
    await source;
    await Promise.all(closed);
  });

  it('takes one of two that come at once, and closes the other', async () => {
    const { at, source } = await wait();
    const sockets = await Promise.all([dial(at, encodePreamble(0)), dial(at, encodePreamble(0))]);
    await source;
    const ends = sockets.map(async (socket, n) => {
      await closeOf(socket.resume());
      return n;
    });
    const closed = await Promise.race(ends);
    expect(sockets[1 - closed]?.destroyed).toBe(false);
  });

  it('stops when it is told to, and leaves nothing', async () => {
    const before = countOwnFds();
    const abort = new AbortController();
    const { at, source } = await wait({ signal: abort.signal });
    const silent = (await dial(at)).resume();
    const end = closeOf(silent);
    abort.abort(new Error('enough'));
    await expect(source).rejects.toThrow('enough');
    await end;
    await expect.poll(countOwnFds).toBeLessThanOrEqual(before);
    if (at.kind === 'unix') expect(existsSync(at.path)).toBe(false);
  });

  it('says so where the address is not to be had', async () => {
    const { at } = await wait();
    const second = acceptPeer(at, { signal: NEVER, onListening: () => undefined, warn: () => undefined });
    await expect(second).rejects.toThrow(`listening at ${nameOfPeer(at)}: `);
  });
});

describe('A source', () => {
  const cleanup = cleanupAfterEach();

  const answer = async (bytes: Buffer | undefined): Promise<PeerAddress> => {
    const path = join(cleanup.directory(), 'm');
    const server = createServer((socket) => {
      socket.on('error', () => undefined);
      if (bytes === undefined) socket.destroy();
      else socket.end(bytes);
    }).listen(path);
    cleanup.add(() => void server.close());
    await once(server, 'listening');
    return { kind: 'unix', path };
  };

  it.each([
    ['no VMM', Buffer.from('SSH-2.0-OpenSSH_9.2'), /sends something that is no migration/],
    ['of another version', encodePreamble(0, VERSION + 1), new RegExp(`has version ${VERSION + 1}`)],
    ['gone', undefined, /closed the connection before it had said what it is|ECONNRESET|EPIPE/],
  ])('says so when the peer is %s', async (_, bytes, sentence) => {
    const at = await answer(bytes);
    await expect(connectPeer(at, NEVER)).rejects.toThrow(sentence);
  });

  it('waits for a destination that has no time yet, until it is told not to', async () => {
    const path = join(cleanup.directory(), 'm');
    const listener = UnixListener.listen(path, undefined, 0);
    cleanup.add(() => listener.close());
    const first = UnixStream.connect(path);
    cleanup.add(() => first.close());
    const abort = new AbortController();
    const connecting = connectPeer({ kind: 'unix', path }, abort.signal);
    const outcome = connecting.catch((error: Error) => error.message);
    expect(await Promise.race([outcome, delay(100, 'it waits')])).toBe('it waits');
    abort.abort(new Error('enough'));
    expect(await outcome).toBe('enough');
  });

  it('gives up when it is told to', async () => {
    const path = join(cleanup.directory(), 'm');
    const server = createServer((socket) => void socket.resume()).listen(path);
    cleanup.add(() => void server.close());
    await once(server, 'listening');
    const abort = new AbortController();
    server.once('connection', () => abort.abort(new Error('enough')));
    await expect(connectPeer({ kind: 'unix', path }, abort.signal)).rejects.toThrow('enough');
  });

  it('hands descriptors over with its greeting, which stay its own', async () => {
    const path = join(cleanup.directory(), 'm');
    const memfd = createSealedMemfd('handed-over', 8192);
    cleanup.add(() => memfd.close());
    let taken: Promise<Source> | undefined;
    await new Promise<void>((resolve) => {
      taken = acceptPeer({ kind: 'unix', path }, { signal: NEVER, warn: () => undefined, onListening: resolve });
    });
    const socket = await connectPeer({ kind: 'unix', path }, NEVER, [memfd.fd, memfd.fd]);
    const source = await (taken as Promise<Source>);
    cleanup.add(() => void socket.destroy().on('error', () => undefined));
    cleanup.add(() => void source.socket.destroy());
    expect(source.memory.map(({ fd }) => [statFd(fd).size, isSizeSealed(fd)])).toEqual([
      [8192, true],
      [8192, true],
    ]);
    for (const each of source.memory) each.close();
    expect(memfd.isOpen).toBe(true);
  });
});
