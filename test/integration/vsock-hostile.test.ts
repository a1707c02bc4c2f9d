/** What a driver may send and a device has to survive: after each, the same daemon serves a good connection. */

import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { UnixListener, UnixStream } from '../../protocol/sys/unix-socket.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import type { VsockGuest } from '../support/frontend/vsock-guest.ts';
import { HostListener, HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { OP, type PacketFieldsOf, RCV, SEND } from '../support/frontend/vsock-wire.ts';

const cleanup = cleanupAfterEach();
let daemon: VsockDaemon;
let guest: VsockGuest;
let listener: HostListener;
let fds: number;

/** A connection of ports 1000 to 2000, and the host's end of it. */
const connect = async (port = 1000): Promise<{ socket: GuestSocket; host: HostStream }> => {
  const socket = await GuestSocket.connect(guest, { port, peerPort: 2000 });
  return { socket, host: await listener.accept() };
};

const start = async (extra: readonly string[] = []): Promise<void> => {
  daemon = await VsockDaemon.start(cleanup, { extra });
  guest = await daemon.guest();
  listener = await HostListener.listen(cleanup, `${daemon.uds}_2000`);
  fds = daemon.fdCount();
};

const expectUnharmed = async (): Promise<void> => {
  expect(daemon.running).toBe(true);
  const { socket, host } = await connect(4711);
  const data = randomBytes(100_000);
  const [, got] = await Promise.all([socket.write(data), host.read(data.length)]);
  expect(got.equals(data)).toBe(true);
  const [, back] = await Promise.all([host.write(data), socket.read(data.length)]);
  expect(back.equals(data)).toBe(true);
  await socket.shutdown();
  await socket.waitForReset();
  await daemon.waitForFds(fds);
};

describe('packets out of the blue', () => {
  beforeEach(() => start());
  afterEach(expectUnharmed);

  it.each([
    ['RESPONSE', OP.RESPONSE],
    ['SHUTDOWN', OP.SHUTDOWN],
    ['RW', OP.RW],
    ['CREDIT_UPDATE', OP.CREDIT_UPDATE],
    ['CREDIT_REQUEST', OP.CREDIT_REQUEST],
    ['INVALID', OP.INVALID],
    ['op 8', 8],
    ['op 65535', 65_535],
  ])('%s of an unknown connection is answered by RST', async (_, op) => {
    await guest.send({ op, srcPort: 5, dstPort: 6 });
    expect(await guest.receiveAt(5)).toMatchObject({ op: OP.RST, srcCid: 2, srcPort: 6, dstCid: 3, type: 1 });
  });

  it('RST of an unknown connection is not answered', async () => {
    await guest.send({ op: OP.RST, srcPort: 5, dstPort: 6 });
    await guest.send({ op: OP.RW, srcPort: 7, dstPort: 6 });
    expect((await guest.receive()).dstPort).toBe(7);
  });

  it.each([0, 3, 65_535])('type %i is answered by RST of this type', async (type) => {
    await guest.send({ op: OP.REQUEST, srcPort: 5, dstPort: 2000, type });
    expect(await guest.receiveAt(5)).toMatchObject({ op: OP.RST, type });
  });

  it.each([
    ['the host', 2],
    ['another guest', 4],
    ['a CID of 64 bits', 0x1_0000_0003n],
    ['all ones', 0xffff_ffff_ffff_ffffn],
  ])('a source of %s is dropped', async (_, srcCid) => {
    await guest.send({ op: OP.REQUEST, srcCid, srcPort: 5, dstPort: 2000 });
    await guest.send({ op: OP.RW, srcPort: 7, dstPort: 6 });
    expect((await guest.receive()).dstPort).toBe(7);
  });

  it.each([0, 1, 3, 4, 0xffff_ffff, 0x1_0000_0002])(
    'a destination of CID %i, where nobody is, is answered by RST',
    async (dstCid) => {
      await guest.send({ op: OP.REQUEST, dstCid, srcPort: 5, dstPort: 2000 });
      expect(await guest.receiveAt(5)).toMatchObject({ op: OP.RST, srcCid: dstCid });
    },
  );

  it('a chain shorter than a header goes back', async () => {
    guest.queue(guest.packet({ op: OP.REQUEST, srcPort: 5 }).slice(0, 43));
    guest.queue(new Uint8Array(1));
    guest.tx.signal();
    expect((await guest.tx.take(2)).map(({ length }) => length)).toEqual([0, 0]);
    expect(guest.inbox).toEqual([]);
  });

  it('a thousand of them are all answered', async () => {
    for (let i = 0; i < 1000; i += 1) await guest.send({ op: OP.RW, srcPort: 10_000 + i, dstPort: 6 });
    for (let i = 0; i < 1000; i += 1) expect((await guest.receive()).dstPort).toBe(10_000 + i);
  });
});

describe('a connection whose guest breaks the rules is reset', () => {
  beforeEach(() => start());
  afterEach(expectUnharmed);

  const breaches: [string, PacketFieldsOf, number][] = [
    ['a second REQUEST', { op: OP.REQUEST }, 0],
    ['a RESPONSE that nobody waits for', { op: OP.RESPONSE }, 0],
    ['an unknown operation', { op: 99 }, 0],
    ['more data than its buffers hold', { op: OP.RW, len: 1000 }, 999],
    ['a length of 2^32 - 1', { op: OP.RW, len: 0xffff_ffff }, 100],
    ['a forward count beyond what was sent', { op: OP.CREDIT_UPDATE, fwdCnt: 1 }, 0],
    ['a forward count far beyond', { op: OP.RW, fwdCnt: 0x7fff_ffff }, 10],
  ];
  it.each(breaches)('%s', async (_, fields, bytes) => {
    const { socket, host } = await connect();
    await guest.send({ ...fields, srcPort: 1000, dstPort: 2000 }, new Uint8Array(bytes));
    await socket.waitForReset();
    await host.waitForEnd();
  });

  it('RW after SHUTDOWN of its direction', async () => {
    const { socket, host } = await connect();
    await socket.shutdown(SEND);
    await host.waitForEnd();
    await socket.send(OP.RW, {}, Buffer.from('too late'));
    await socket.waitForReset();
  });

  it('data beyond its credit', async () => {
    const { socket } = await connect();
    // The host's program does not read, so that nothing is forwarded after what its socket takes.
    const chunk = new Uint8Array(65_536);
    for (let i = 0; i < 64 && !socket.isReset; i += 1) {
      await socket.send(OP.RW, {}, chunk);
      const rst = guest.inbox.find((packet) => packet.op === OP.RST);
      if (rst !== undefined) break;
    }
    await socket.waitForReset();
  });
});

describe('what is no breach', () => {
  beforeEach(() => start());
  afterEach(expectUnharmed);

  it('a header in several buffers, data in several, and more buffer than data', async () => {
    const { socket, host } = await connect();
    await socket.send(OP.RW, {}, Buffer.from('abcdef'), [1, 42, 3, 1]);
    await guest.send(socket.fields(OP.RW, { len: 3 }), Buffer.from('ghijkl'), [44]);
    expect((await host.read(9)).toString()).toBe('abcdefghi');
    await socket.shutdown();
  });

  it('several packets with one kick', async () => {
    const { socket, host } = await connect();
    for (const text of ['one ', 'two ', 'three']) guest.queue(guest.packet(socket.fields(OP.RW), Buffer.from(text)));
    guest.tx.signal();
    await guest.tx.take(3);
    expect((await host.read(13)).toString()).toBe('one two three');
    await socket.shutdown();
  });

  it('a forward count that goes back', async () => {
    const { socket, host } = await connect();
    await host.write('12345678');
    await socket.read(8);
    await socket.send(OP.CREDIT_UPDATE, { fwdCnt: 8 });
    await socket.send(OP.CREDIT_UPDATE, { fwdCnt: 4 });
    await host.write('9');
    expect((await socket.read(1)).toString()).toBe('9');
    await socket.shutdown();
  });

  it('a buffer that shrinks to nothing: data waits, and the guest is asked', async () => {
    const { socket, host } = await connect();
    await socket.send(OP.CREDIT_UPDATE, { bufAlloc: 0 });
    await host.write('patience');
    expect((await socket.next()).op).toBe(OP.CREDIT_REQUEST);
    await socket.send(OP.CREDIT_UPDATE, { bufAlloc: 3 });
    const first = await socket.next();
    expect(first).toMatchObject({ op: OP.RW, len: 3 });
    await socket.send(OP.CREDIT_UPDATE, { bufAlloc: 100, fwdCnt: 3 });
    const rest = await socket.receiveData(5);
    expect(rest.toString()).toBe('ience');
    await socket.shutdown();
  });

  it('CREDIT_REQUEST: the answer says how far the host is', async () => {
    const { socket, host } = await connect();
    await socket.write(Buffer.from('12345'));
    await host.read(5);
    await socket.send(OP.CREDIT_REQUEST);
    const answer = await socket.next();
    expect(answer).toMatchObject({ op: OP.CREDIT_UPDATE, fwdCnt: 5, bufAlloc: 262_144 });
    await socket.shutdown();
  });

  it('a connection whose guest ends receiving: the host cannot send', async () => {
    const { socket, host } = await connect();
    await socket.shutdown(RCV);
    await socket.send(OP.CREDIT_REQUEST);
    await socket.next();
    await expect(host.write('x')).rejects.toThrow(/EPIPE/);
    await socket.shutdown(SEND);
    await socket.waitForReset();
  });
});

describe('receive buffers', () => {
  beforeEach(() => start());
  afterEach(expectUnharmed);

  it('that are missing do not keep the guest from sending', async () => {
    const { socket, host } = await connect();
    guest.refills = false;
    const pending = host.write(randomBytes(4 << 20)).catch(() => undefined);
    // All 64 buffers are used up.
    await guest.receive((packet) => packet.op === OP.RW);
    for (let i = 0; i < 63; i += 1) await guest.receive();
    const data = randomBytes(50_000);
    await socket.write(data);
    expect((await host.read(data.length)).equals(data)).toBe(true);
    guest.refills = true;
    host.destroy();
    guest.fillReceiveQueue();
    await pending;
    await socket.send(OP.RST);
  });

  it('that are missing hold answers back: all of them come in the end', async () => {
    guest.refills = false;
    for (let i = 0; i < 64; i += 1) await guest.send({ op: OP.RW, srcPort: 100 + i, dstPort: 1 });
    for (let i = 0; i < 64; i += 1) await guest.receive();
    // 256 wait, then the transmit queue does.
    const many = 256 + 16;
    for (let i = 0; i < many - 16; i += 1) await guest.send({ op: OP.RW, srcPort: 1000 + i, dstPort: 1 });
    for (let i = many - 16; i < many; i += 1) guest.queue(guest.packet({ op: OP.RW, srcPort: 1000 + i, dstPort: 1 }));
    guest.tx.signal();
    guest.refills = true;
    guest.fillReceiveQueue();
    await guest.tx.take(16);
    for (let i = 0; i < many; i += 1) expect((await guest.receive()).dstPort).toBe(1000 + i);
  });
});

describe('receive buffers of odd shapes', () => {
  it('shorter than a header go back, and the packet takes the next', async () => {
    daemon = await VsockDaemon.start(cleanup);
    guest = await daemon.guest({ buffers: 16 });
    listener = await HostListener.listen(cleanup, `${daemon.uds}_2000`);
    fds = daemon.fdCount();
    const { ram, dataStart } = guest.frontend;
    guest.refills = false;
    for (let i = 0; i < 16; i += 1) await guest.send({ op: OP.RW, srcPort: 100 + i, dstPort: 1 });
    for (let i = 0; i < 16; i += 1) await guest.receive();
    guest.rx.setDescriptor(100, { address: ram.guest(dataStart), length: 43, flags: 2 });
    guest.rx.setDescriptor(101, { address: ram.guest(dataStart), length: 100 });
    guest.rx.publish(100, 101);
    guest.refills = true;
    guest.fillReceiveQueue();
    await expectUnharmed();
    expect(guest.returned).toEqual([100, 101]);
  });

  it.each([45, 64, 4096, 65_580, 200_000])('of %i bytes are filled', async (bufferBytes) => {
    daemon = await VsockDaemon.start(cleanup);
    guest = await daemon.guest({ buffers: 16, bufferBytes });
    listener = await HostListener.listen(cleanup, `${daemon.uds}_2000`);
    const { socket, host } = await connect();
    const data = randomBytes(bufferBytes < 100 ? 500 : 500_000);
    const [, got] = await Promise.all([host.write(data), socket.read(data.length)]);
    expect(got.equals(data)).toBe(true);
  });
});

describe('limits', () => {
  it('of connections: RST beyond, and room again when one ends', async () => {
    await start(['--max-connections=3']);
    const open: GuestSocket[] = [];
    for (let i = 0; i < 3; i += 1) open.push((await connect(100 + i)).socket);
    await guest.send({ op: OP.REQUEST, srcPort: 200, dstPort: 2000 });
    expect((await guest.receiveAt(200)).op).toBe(OP.RST);
    await Promise.all(open.map((socket) => socket.send(OP.RST)));
    await expectUnharmed();
  });

  it('of time: a guest that does not answer is given up', async () => {
    await start(['--connect-timeout=200']);
    const host = await HostStream.dial(cleanup, daemon.uds, 99);
    const request = await guest.receiveAt(99, OP.REQUEST);
    await host.waitForEnd();
    expect((await guest.receiveAt(99)).op).toBe(OP.RST);
    expect(request.srcPort).toBeGreaterThanOrEqual(0x4000_0000);
    await expectUnharmed();
  });

  it('of time: a guest that does not answer SHUTDOWN is reset', async () => {
    await start(['--close-timeout=200']);
    const { socket, host } = await connect();
    host.destroy();
    await socket.waitForShutdown(RCV | SEND);
    await socket.waitForReset();
    await expectUnharmed();
  });

  it('of half-open connections: the guest is refused beyond, and the host waits', async () => {
    await start(['--max-half-open=2', '--connect-timeout=60000']);
    const waiting = [await HostStream.dial(cleanup, daemon.uds, 1), await HostStream.dial(cleanup, daemon.uds, 2)];
    const requests = [await guest.receiveAt(1), await guest.receiveAt(2)];
    const third = await HostStream.dial(cleanup, daemon.uds, 3);
    await guest.send({ op: OP.REQUEST, srcPort: 5, dstPort: 2000 });
    expect((await guest.receiveAt(5)).op).toBe(OP.RST);
    expect(guest.inbox).toEqual([]);
    for (const host of waiting) host.destroy();
    for (const { dstPort } of requests) expect((await guest.receiveAt(dstPort)).op).toBe(OP.RST);
    const socket = await GuestSocket.accept(guest, 3);
    expect(await third.readLine()).toBe(`OK ${socket.peerPort}`);
    await socket.send(OP.RST);
    await expectUnharmed();
  });

  it('of a listener: the guest waits while its backlog is full', async () => {
    await start();
    // A listener with room for 128, which takes nobody yet.
    const full = UnixListener.listen(`${daemon.uds}_3000`);
    cleanup.add(() => full.close());
    const crowd: UnixStream[] = [];
    cleanup.add(() => {
      for (const stream of crowd) stream.close();
    });
    expect(() => {
      for (let i = 0; i < 1000; i += 1) crowd.push(UnixStream.connect(`${daemon.uds}_3000`));
    }).toThrow(/EAGAIN/);
    await guest.send({ op: OP.REQUEST, srcPort: 5, dstPort: 3000 });
    // Others do not wait with it.
    const { socket } = await connect(6);
    expect(guest.inbox.filter((packet) => packet.dstPort === 5)).toEqual([]);
    for (let stream = full.accept(); stream !== undefined; stream = full.accept()) crowd.push(stream);
    expect((await guest.receiveAt(5)).op).toBe(OP.RESPONSE);
    await guest.send({ op: OP.RST, srcPort: 5, dstPort: 3000 });
    await socket.send(OP.RST);
    await expectUnharmed();
  });

  it("of the listener's patience: RST when it stays full", async () => {
    await start(['--connect-timeout=200']);
    const full = UnixListener.listen(`${daemon.uds}_3000`);
    cleanup.add(() => full.close());
    const crowd: UnixStream[] = [];
    cleanup.add(() => {
      for (const stream of crowd) stream.close();
    });
    expect(() => {
      for (let i = 0; i < 1000; i += 1) crowd.push(UnixStream.connect(`${daemon.uds}_3000`));
    }).toThrow(/EAGAIN/);
    await guest.send({ op: OP.REQUEST, srcPort: 5, dstPort: 3000 });
    expect((await guest.receiveAt(5)).op).toBe(OP.RST);
    await expectUnharmed();
  });
});
