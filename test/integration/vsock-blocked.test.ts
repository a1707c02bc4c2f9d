/** Connections on which nothing can move, and rings that are taken away while much moves: what waits, waits at no cost. */

import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { cpuWhenIdle, eventually } from '../support/frontend/process-probe.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import type { VsockGuest } from '../support/frontend/vsock-guest.ts';
import { HostListener, HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { OP, RCV, SEND } from '../support/frontend/vsock-wire.ts';
import { REQUEST, vringState } from '../support/frontend/wire.ts';

const cleanup = cleanupAfterEach();

/** Sends until the other end's buffer, and whatever is behind it, takes no more. */
const fill = async (socket: GuestSocket): Promise<void> => {
  const data = new Uint8Array(50_000);
  for (;;) {
    // The answer tells how far it is.
    await socket.send(OP.CREDIT_REQUEST);
    const { fwdCnt, bufAlloc } = await socket.next();
    const room = bufAlloc - ((socket.sent - fwdCnt) >>> 0);
    if (room === 0) return;
    const length = Math.min(room, data.length);
    await socket.send(OP.RW, {}, data.subarray(0, length));
    socket.sent += length;
  }
};

const expectIdle = async (daemon: VsockDaemon): Promise<void> => {
  expect(await cpuWhenIdle(daemon.pid, 400, 20)).toBeLessThanOrEqual(20);
};

it('costs no processor time, whatever the connections wait for', async () => {
  const daemon = await VsockDaemon.start(cleanup, { extra: ['--connect-timeout=60000', '--close-timeout=60000'] });
  const guest = await daemon.guest();
  const listener = await HostListener.listen(cleanup, `${daemon.uds}_7`);
  const open = async (port: number): Promise<{ socket: GuestSocket; host: HostStream }> => {
    const socket = await GuestSocket.connect(guest, { port, peerPort: 7 });
    return { socket, host: await listener.accept() };
  };
  const write = (host: HostStream): void => {
    host.write(Buffer.alloc(1 << 20)).catch(() => undefined);
  };
  // The host's program does not read; then the guest closes, and what it sent lingers.
  const full = await open(1);
  await fill(full.socket);
  await expectIdle(daemon);
  await full.socket.shutdown(RCV | SEND);
  await full.socket.waitForReset();
  write(full.host);
  // The guest gives no credit.
  const poor = await open(2);
  await poor.socket.send(OP.CREDIT_UPDATE, { bufAlloc: 100 });
  write(poor.host);
  await guest.receiveAt(2, OP.CREDIT_REQUEST);
  await expectIdle(daemon);
  // SHUTDOWN is not answered; the guest receives no more, the host sends no more; a line has no end.
  const closing = await open(3);
  closing.host.destroy();
  await closing.socket.waitForShutdown(RCV | SEND);
  const half = await open(4);
  await half.socket.shutdown(RCV);
  half.host.end();
  await (await HostStream.connect(cleanup, daemon.uds)).write('CONN');
  await expectIdle(daemon);
  // No buffers, and so many answers wait for them that the transmit queue does too.
  guest.refills = false;
  write((await open(5)).host);
  for (let i = 0; i < 256; i += 1) await guest.send({ op: OP.RW, srcPort: 1000 + i, dstPort: 1 });
  for (let i = 0; i < 16; i += 1) guest.queue(guest.packet({ op: OP.RW, srcPort: 3000 + i, dstPort: 1 }));
  guest.tx.signal();
  await expectIdle(daemon);
  for (let i = 0; i < 3; i += 1) await guest.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(i, 0));
  await expectIdle(daemon);
}, 60_000);

describe('rings', () => {
  it('that lose their memory and are disabled, again and again: all data arrives', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_7`);
    const up = await GuestSocket.connect(guest, { port: 1, peerPort: 7 });
    const upHost = await listener.accept();
    const down = await GuestSocket.connect(guest, { port: 2, peerPort: 7 });
    const downHost = await listener.accept();
    const data = randomBytes(8 << 20);
    let moves = true;
    const disturb = async (): Promise<number> => {
      let turns = 0;
      for (; moves; turns += 1) {
        await guest.frontend.shareMemory();
        await guest.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(turns % 3, 0));
        await guest.frontend.require(REQUEST.SET_VRING_ENABLE, vringState(turns % 3, 1));
      }
      return turns;
    };
    const disturbed = disturb();
    const written = Promise.all([up.write(data), downHost.write(data)]);
    const [atHost, atGuest] = await Promise.all([upHost.read(data.length), down.read(data.length)]);
    moves = false;
    await written;
    expect(await disturbed).toBeGreaterThan(3);
    expect(atHost.equals(data) && atGuest.equals(data)).toBe(true);
  }, 60_000);

  it('with buffers of single bytes: header and data lie where they should', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const socket = await GuestSocket.accept(guest, 52);
    await host.readLine();
    // All buffers but these are used up, and nobody looks at what comes back.
    guest.refills = false;
    const held = (guest.rx.availIndex - guest.rx.usedIndex) & 0xffff;
    for (let i = 0; i < held; i += 1) await guest.send({ op: OP.RW, srcPort: 100 + i, dstPort: 1 });
    for (let i = 0; i < held; i += 1) await guest.receive((packet) => packet.dstPort === 100 + i);
    guest.pause();
    const { ram } = guest.frontend;
    const at = ram.length - 4096;
    const bytes = Array.from({ length: 50 }, (_, i) => ({ address: ram.guest(at + 2 * i), length: 1, flags: WRITE }));
    guest.rx.setChain(70, bytes);
    const before = guest.rx.usedIndex;
    guest.giveChain(70);
    await host.write('abcdefgh');
    await socket.send(OP.CREDIT_UPDATE);
    await eventually(
      'used index',
      () => guest.rx.usedIndex,
      (index) => index === ((before + 1) & 0xffff),
    );
    expect(guest.rx.usedEntry(before)).toEqual({ id: 70, length: 50 });
    const packet = Uint8Array.from(bytes, (_, i) => ram.bytes[at + 2 * i] as number);
    expect(new DataView(packet.buffer).getUint32(24, true)).toBe(6);
    expect(Buffer.from(packet.subarray(44)).toString()).toBe('abcdef');
  });
});

describe('two guests', () => {
  it('one reads nothing and is gone in the end: the other is told, and goes on with whoever comes', async () => {
    const vm = (cid: number): string => `--vm=guest-cid=${cid},socket=@/s${cid},uds-path=@/u${cid}`;
    const daemon = await VsockDaemon.start(cleanup, { arguments: [vm(3), vm(4)], sockets: 2 });
    const join = (a: VsockGuest, b: VsockGuest, port: number): Promise<[GuestSocket, GuestSocket]> =>
      Promise.all([GuestSocket.connect(a, { port, peerPort: 20, peerCid: 4 }), GuestSocket.accept(b, 20)]);
    const expectCarries = async ([from, to]: [GuestSocket, GuestSocket]): Promise<void> => {
      const data = randomBytes(100_000);
      const [, got] = await Promise.all([from.write(data), to.read(data.length)]);
      expect(got.equals(data)).toBe(true);
    };
    const three = await daemon.guest({ cid: 3 }, `${daemon.directory}/s3`);
    const four = await daemon.guest({ cid: 4 }, `${daemon.directory}/s4`);
    const [stuck] = await join(three, four, 10);
    await fill(stuck);
    const other = await join(three, four, 11);
    await expectCarries(other);
    await expectIdle(daemon);
    four.close();
    for (const socket of [stuck, other[0]]) {
      await socket.waitForShutdown(RCV | SEND);
      await socket.send(OP.RST);
    }
    await expectCarries(await join(three, await daemon.guest({ cid: 4 }, `${daemon.directory}/s4`), 12));
  });
});
