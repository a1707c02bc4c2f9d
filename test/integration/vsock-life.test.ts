/** Comings and goings: front ends, daemons, guests; what is left behind, and who is told. */

import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { cpuWhenIdle } from '../support/frontend/process-probe.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import type { VsockGuest } from '../support/frontend/vsock-guest.ts';
import { HostListener, HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { OP, RCV, SEND } from '../support/frontend/vsock-wire.ts';
import { config, REQUEST, vringState } from '../support/frontend/wire.ts';

const cleanup = cleanupAfterEach();

/** A buffer for an event, in the last page of the memory. */
const eventAt = ({ frontend }: VsockGuest): number => frontend.ram.length - 4096;

const offerEvent = (guest: VsockGuest): void => {
  const { ram } = guest.frontend;
  guest.event.setDescriptor(0, { address: ram.guest(eventAt(guest)), length: 4, flags: WRITE });
  ram.view.setUint32(eventAt(guest), 0xdead_beef, true);
  guest.event.publish(0);
  guest.event.signal();
};

const expectEcho = async (daemon: VsockDaemon, guest: VsockGuest, port: number): Promise<GuestSocket> => {
  const host = await HostStream.dial(cleanup, daemon.uds, port);
  const socket = await GuestSocket.accept(guest, port);
  await host.readLine();
  await host.write('ping');
  expect((await socket.read(4)).toString()).toBe('ping');
  await socket.write(Buffer.from('pong'));
  expect((await host.read(4)).toString()).toBe('pong');
  return socket;
};

describe('the program', () => {
  it('says what it is', async () => {
    const daemon = await VsockDaemon.start(cleanup, { cid: 0xffff_fffe });
    const guest = await daemon.guest({ cid: 0xffff_fffe });
    expect(guest.frontend.offered & 7n).toBe(7n);
    const { payload } = await guest.frontend.connection.call(REQUEST.GET_CONFIG, config(0, new Uint8Array(8)));
    expect([...payload.subarray(12, 20)]).toEqual([0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
  });

  it('removes its sockets at the end, and ends connections', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    await GuestSocket.accept(guest, 52);
    await host.readLine();
    expect((await daemon.sigterm()).code).toBe(0);
    await host.waitForEnd();
    for (const path of [daemon.socket, daemon.uds, `${daemon.uds}.seqpacket`]) expect(existsSync(path)).toBe(false);
  });

  it('uses no processor time while nothing happens', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    await expectEcho(daemon, guest, 52);
    expect(await cpuWhenIdle(daemon.pid, 1000, 20)).toBeLessThanOrEqual(20);
  });

  it('ends connections when the front end goes, and serves the next one', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    for (let i = 0; i < 3; i += 1) {
      const guest = await daemon.guest();
      const host = await HostStream.dial(cleanup, daemon.uds, 52);
      await GuestSocket.accept(guest, 52);
      await host.readLine();
      guest.close();
      await host.waitForEnd();
      await daemon.waitForFds(daemon.idleFds);
    }
  });

  it('ends connections when the rings stop; on the same rings the driver is told', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const socket = await GuestSocket.accept(guest, 52);
    await host.readLine();
    const { frontend } = guest;
    const bases: number[] = [];
    for (const ring of frontend.rings) bases.push(await frontend.stopRing(ring));
    await host.waitForEnd();
    for (const [i, ring] of frontend.rings.entries()) await frontend.startRing(ring, bases[i]);
    offerEvent(guest);
    expect(await guest.event.take()).toEqual([{ id: 0, length: 4 }]);
    expect(frontend.ram.view.getUint32(eventAt(guest), true)).toBe(0);
    await socket.send(OP.RW, {}, Buffer.from('lost'));
    expect((await guest.receiveAt(52)).op).toBe(OP.RST);
    await expectEcho(daemon, guest, 53);
  });

  it('does not speak of a reset to a driver that is new', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    offerEvent(guest);
    await expectEcho(daemon, guest, 52);
    expect(guest.event.usedIndex).toBe(0);
  });

  it('killed and started again: the driver is told, its connections are reset, new ones work', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const socket = await expectEcho(daemon, guest, 52);
    await daemon.kill9();
    await daemon.restart();
    const { frontend } = guest;
    const again = frontend.reconnect(daemon.socket);
    cleanup.add(() => again.connection.close());
    await again.negotiate();
    await again.shareMemory();
    // What a front end without an in-flight region does: it goes on where the used rings are.
    for (const ring of again.rings) await again.startRing(ring, ring.usedIndex);
    offerEvent(guest);
    expect(await guest.event.take()).toEqual([{ id: 0, length: 4 }]);
    await socket.send(OP.CREDIT_REQUEST);
    expect((await guest.receiveAt(52)).op).toBe(OP.RST);
    await expectEcho(daemon, guest, 53);
  });

  it('stops and starts single rings without harm', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const { frontend } = guest;
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 0));
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 1));
    await GuestSocket.accept(guest, 52);
    await host.readLine();
  });
});

describe('what the guest sent before it closed', () => {
  it('reaches a host that reads later', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_9`);
    const socket = await GuestSocket.connect(guest, { port: 1, peerPort: 9 });
    const host = await listener.accept();
    const before = daemon.fdCount();
    // More than the socket takes: a part waits in the daemon.
    const bytes = Buffer.alloc(400_000, 7);
    await socket.write(bytes);
    await socket.shutdown(RCV | SEND);
    await socket.waitForReset();
    expect((await host.read(bytes.length)).equals(bytes)).toBe(true);
    await host.waitForEnd();
    await daemon.waitForFds(before - 1);
  });
});

describe('two guests', () => {
  const vm = (cid: number, groups: string): string =>
    `--vm=guest-cid=${cid},socket=@/s${cid},uds-path=@/u${cid},groups=${groups}`;

  it('of a common group are connected by CID', async () => {
    const daemon = await VsockDaemon.start(cleanup, { arguments: [vm(3, 'a+b'), vm(4, 'b'), vm(5, 'c')], sockets: 3 });
    const guests = await Promise.all([3, 4, 5].map((cid) => daemon.guest({ cid }, `${daemon.directory}/s${cid}`)));
    const [three, four, five] = guests as [VsockGuest, VsockGuest, VsockGuest];
    const before = daemon.fdCount();
    const [from, to] = await Promise.all([
      GuestSocket.connect(three, { port: 10, peerPort: 20, peerCid: 4 }),
      GuestSocket.accept(four, 20),
    ]);
    expect([to.peerCid, to.peerPort]).toEqual([3, 10]);
    const data = Buffer.alloc(1 << 20, 'x');
    const [, got] = await Promise.all([from.write(data), to.read(data.length)]);
    expect(got.equals(data)).toBe(true);
    await to.write(Buffer.from('back'));
    expect((await from.read(4)).toString()).toBe('back');
    await from.shutdown(SEND);
    await to.waitForShutdown(SEND);
    await to.shutdown(RCV | SEND);
    await to.waitForReset();
    await from.waitForShutdown(RCV | SEND);
    await from.send(OP.RST);
    await daemon.waitForFds(before);
    await expect(GuestSocket.connect(three, { port: 11, peerPort: 20, peerCid: 5 })).rejects.toThrow('op 3');
    await expect(GuestSocket.connect(five, { port: 11, peerPort: 20, peerCid: 4 })).rejects.toThrow('op 3');
    // Where nobody listens, and when the other guest is gone.
    const refused = GuestSocket.connect(three, { port: 12, peerPort: 21, peerCid: 4 });
    const request = await four.receiveAt(21, OP.REQUEST);
    await four.send({ op: OP.RST, dstCid: 3, srcPort: 21, dstPort: request.srcPort });
    await expect(refused).rejects.toThrow('op 3');
    four.close();
    await expect(GuestSocket.connect(three, { port: 13, peerPort: 20, peerCid: 4 })).rejects.toThrow('op 3');
  });
});
