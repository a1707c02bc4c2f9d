/**
 * vhost-user, Communication: how a stream of bytes and descriptors becomes messages. The bytes are written literally on
 * one end of a socket pair; the endpoint under test has the other.
 */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { libc } from '../../protocol/sys/libc.ts';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint, type IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { dump, hex } from '../support/hex.ts';

/** SET_FEATURES 0x1_4000_0000 with need_reply. */
const SET_FEATURES = '02 00 00 00  09 00 00 00  08 00 00 00  00 00 00 40 01 00 00 00';
const GET_FEATURES = '01 00 00 00  01 00 00 00  00 00 00 00';

let near: UnixStream;
let far: UnixStream;
let endpoint: Endpoint;
let fdsBefore: number;

beforeEach(() => {
  fdsBefore = countOwnFds();
  [near, far] = UnixStream.pair();
  endpoint = new Endpoint(near);
});

afterEach(() => {
  endpoint.close();
  far.close();
  expect(countOwnFds()).toBe(fdsBefore);
});

const write = (bytes: Uint8Array, fds: readonly OwnedFd[] = []): void => {
  expect(
    far.send(
      bytes,
      fds.map((fd) => fd.fd),
    ),
  ).toBe(bytes.length);
};

const FIONREAD = 0x541b;
const unread = allocatePinned(8);

/** Resolves when the endpoint has read what was written: the kernel would join this part and the next one. */
const partIsRead = (): Promise<number> =>
  eventually(
    'unread bytes',
    () => {
      libc.ioctl(near.fd, FIONREAD, unread.address);
      return unread.data.getInt32(0, true);
    },
    (bytes) => bytes === 0,
  );

const nextMessage = async (): Promise<IncomingMessage> => {
  const message = await endpoint.next();
  if (message === undefined) throw new Error('the connection ended');
  return message;
};

/** A fresh eventfd, gone from here after it was sent. */
const sendWithFds = (bytes: Uint8Array, count: number): void => {
  const fds = Array.from({ length: count }, () => createEventFd());
  write(bytes, fds);
  closeAll(fds);
};

describe('an endpoint reads', () => {
  it.each(Array.from({ length: 19 }, (_, i) => i + 1))('a message split after %i bytes', async (at) => {
    const bytes = hex(SET_FEATURES);
    const message = nextMessage();

    write(bytes.subarray(0, at));
    await partIsRead();
    write(bytes.subarray(at));

    expect(await message).toMatchObject({ id: 2, isReply: false, needsReply: true, fds: [] });
    expect(dump((await message).payload)).toBe('0000004001000000');
  });

  it('a message that arrives byte by byte', async () => {
    const message = nextMessage();

    for (const byte of hex(SET_FEATURES)) {
      write(Uint8Array.of(byte));
      await partIsRead();
    }

    expect((await message).id).toBe(2);
  });

  it('two messages of one write, one after the other', async () => {
    write(hex(SET_FEATURES + GET_FEATURES));

    expect((await nextMessage()).id).toBe(2);
    expect(await nextMessage()).toMatchObject({ id: 1, needsReply: false, payload: new Uint8Array(0) });
  });

  it('descriptors with the message whose first byte they ride on', async () => {
    write(hex(GET_FEATURES));
    sendWithFds(hex('0d 00 00 00 01 00 00 00 08 00 00 00 00 00 00 00 00 00 00 00'), 1);
    write(hex(GET_FEATURES));

    const counts = [];
    for (let i = 0; i < 3; i += 1) {
      const message = await nextMessage();
      counts.push([message.id, message.fds.length]);
      closeAll(message.fds);
    }

    expect(counts).toEqual([
      [1, 0],
      [13, 1],
      [1, 0],
    ]);
  });

  it('a message whose descriptors came with a part of its header', async () => {
    const bytes = hex('15 00 00 00 01 00 00 00 00 00 00 00');
    const message = nextMessage();

    sendWithFds(bytes.subarray(0, 3), 2);
    await partIsRead();
    write(bytes.subarray(3));

    const { id, fds } = await message;
    closeAll(fds);
    expect([id, fds.length]).toEqual([21, 2]);
  });

  it('a payload of 4096 bytes, the most that is possible', async () => {
    write(hex('1a 00 00 00 01 00 00 00 00 10 00 00'));
    write(new Uint8Array(4096).fill(7));

    expect((await nextMessage()).payload).toEqual(new Uint8Array(4096).fill(7));
  });

  it('the end of the connection between two messages as undefined', async () => {
    write(hex(GET_FEATURES));
    far.close();

    expect((await nextMessage()).id).toBe(1);
    expect(await endpoint.next()).toBeUndefined();
  });

  it('nothing after it was closed', async () => {
    const waiting = endpoint.next();

    endpoint.close();

    expect(await waiting).toBeUndefined();
    expect(await endpoint.next()).toBeUndefined();
  });
});

describe('an endpoint refuses', () => {
  const HEADERS: { what: string; bytes: string; sentence: RegExp }[] = [
    { what: 'version 0', bytes: '01 00 00 00 00 00 00 00 00 00 00 00', sentence: /version 0/ },
    { what: 'version 2', bytes: '01 00 00 00 02 00 00 00 00 00 00 00', sentence: /version 2/ },
    { what: 'version 3', bytes: '01 00 00 00 03 00 00 00 00 00 00 00', sentence: /version 3/ },
    { what: 'reserved flag 4', bytes: '01 00 00 00 11 00 00 00 00 00 00 00', sentence: /reserved flags 0x11/ },
    { what: 'reserved flag 31', bytes: '01 00 00 00 01 00 00 80 00 00 00 00', sentence: /reserved flags 0x80000001/ },
    { what: '4097 bytes of payload', bytes: '02 00 00 00 01 00 00 00 01 10 00 00', sentence: /4097 bytes/ },
    { what: '2^32 - 1 bytes of payload', bytes: '02 00 00 00 01 00 00 00 ff ff ff ff', sentence: /4294967295 bytes/ },
  ];

  it.each(HEADERS)('$what', async ({ bytes, sentence }) => {
    write(hex(bytes));

    await expect(endpoint.next()).rejects.toThrow(sentence);
  });

  it.each([1, 5, 12])('descriptors that come after byte %i, and closes them', async (at) => {
    const bytes = hex(SET_FEATURES);
    const message = endpoint.next();
    message.catch(() => undefined);

    write(bytes.subarray(0, at));
    await partIsRead();
    sendWithFds(bytes.subarray(at), 3);

    await expect(message).rejects.toThrow(/3 file descriptors arrived after the first byte/);
  });

  it.each([1, 11, 12, 19])(
    'a connection that ends after %i bytes of a message, and closes its descriptors',
    async (at) => {
      sendWithFds(hex(SET_FEATURES).subarray(0, at), 2);
      far.close();

      const message = endpoint.next();

      await expect(message).rejects.toThrow(ProtocolError);
      await expect(message).rejects.toThrow(/closed \d+ bytes into a message (header|payload)/);
    },
  );
});

describe('an endpoint writes', () => {
  it('a request with need_reply and its descriptors', async () => {
    const raw = new RawConnection(far);
    const fd = createEventFd();

    endpoint.sendRequest(FRONTEND.SET_VRING_CALL, { index: 3, noFd: false }, { fds: [fd], needReply: true });
    fd.close();
    const message = await raw.receive();

    expect(message).toMatchObject({ id: 13, flags: 9, payload: hex('03 00 00 00 00 00 00 00') });
    expect(message?.fds).toHaveLength(1);
    closeAll(message?.fds ?? []);
    raw.close();
  });

  it('a reply with version and reply flag', async () => {
    const raw = new RawConnection(far);

    endpoint.sendReply(2, hex('01 00 00 00 00 00 00 00'));

    expect(await raw.receive()).toMatchObject({ id: 2, flags: 5, payload: hex('01 00 00 00 00 00 00 00') });
    raw.close();
  });

  it('every byte and descriptor to a peer that reads late', async () => {
    const fd = createEventFd();
    const count = 2000;
    for (let i = 0; i < count; i += 1) endpoint.sendReply(31, new Uint8Array(64), i % 100 === 0 ? [fd] : []);
    fd.close();
    const raw = new RawConnection(far);

    let fds = 0;
    for (let i = 0; i < count; i += 1) {
      const message = await raw.receive();
      expect(message?.payload).toHaveLength(64);
      fds += message?.fds.length ?? 0;
      closeAll(message?.fds ?? []);
    }

    expect(fds).toBe(count / 100);
    raw.close();
  });

  it('and reads at the same time: a request that comes while answers wait is received', async () => {
    for (let i = 0; i < 2000; i += 1) endpoint.sendReply(31, new Uint8Array(64));
    const incoming = nextMessage();
    write(hex(GET_FEATURES));

    expect((await incoming).id).toBe(1);

    const again = nextMessage();
    const raw = new RawConnection(far);
    for (let i = 0; i < 2000; i += 1) await raw.receive();
    await raw.sendBytes(hex(GET_FEATURES));
    expect((await again).id).toBe(1);
    raw.close();
  });

  it('no more than its limit to a peer that never reads', () => {
    const flood = (): void => {
      for (let i = 0; i < 10_000; i += 1) endpoint.sendReply(24, new Uint8Array(268));
    };

    expect(flood).toThrow(/does not read/);
  });
});
