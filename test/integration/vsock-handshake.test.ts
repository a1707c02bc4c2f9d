/** Programs of the host that connect: what they may say first, and what becomes of those that say something else. */

import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostStream } from '../support/frontend/vsock-host.ts';
import { GuestSocket } from '../support/frontend/vsock-socket.ts';
import { OP, SEND } from '../support/frontend/vsock-wire.ts';

const cleanup = cleanupAfterEach();

describe('a CONNECT line', () => {
  it.each([
    ['in one piece', ['CONNECT 52\n']],
    ['byte by byte', [...'CONNECT 52\n']],
    ['in small letters, with more spaces and CR', ['connect   52 \r\n']],
    ['of 32 bytes', [`CONNECT ${' '.repeat(21)}52\n`]],
  ])('%s is understood', async (_, pieces) => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.connect(cleanup, daemon.uds);
    for (const piece of pieces) await host.write(piece);
    const socket = await GuestSocket.accept(guest, 52);
    expect(await host.readLine()).toBe(`OK ${socket.peerPort}`);
  });

  it('with data behind it: the guest gets the data', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const host = await HostStream.connect(cleanup, daemon.uds);
    await host.write('CONNECT 52\nCONNECT 53\nmore');
    host.end();
    const socket = await GuestSocket.accept(guest, 52);
    expect((await socket.read(15)).toString()).toBe('CONNECT 53\nmore');
    await socket.waitForShutdown(SEND);
    expect(await host.readLine()).toMatch(/^OK \d+$/);
  });

  it.each([
    ['something else', 'GET / HTTP/1.1\r\n'],
    ['without a port', 'CONNECT \n'],
    ['with a port that is no number', 'CONNECT ssh\n'],
    ['with a port of 2^32', 'CONNECT 4294967296\n'],
    ['with a negative port', 'CONNECT -1\n'],
    ['with a space in front', ' CONNECT 52\n'],
    ['of 33 bytes', `CONNECT ${' '.repeat(22)}52\n`],
    ['without end', 'C'.repeat(100_000)],
    ['of nothing', '\n'],
  ])('%s ends the connection', async (_, text) => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const before = daemon.fdCount();
    const host = await HostStream.connect(cleanup, daemon.uds);
    host.write(text).catch(() => undefined);
    await host.waitForEnd();
    await daemon.waitForFds(before);
    expect(guest.inbox).toEqual([]);
  });

  it('that the host breaks off at any byte leaves nothing behind', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    await daemon.guest();
    const before = daemon.fdCount();
    const line = 'CONNECT 52';
    for (let length = 0; length <= line.length; length += 1) {
      const host = await HostStream.connect(cleanup, daemon.uds);
      if (length > 0) await host.write(line.slice(0, length));
      host.destroy();
    }
    await daemon.waitForFds(before);
  });

  it('whose sender is gone before the guest answers: the guest is told', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const before = daemon.fdCount();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const request = await guest.receiveAt(52, OP.REQUEST);
    host.destroy();
    expect(await guest.receiveAt(52)).toMatchObject({ op: OP.RST, srcPort: request.srcPort });
    await daemon.waitForFds(before);
    await guest.send({ op: OP.RESPONSE, srcPort: 52, dstPort: request.srcPort });
    expect((await guest.receiveAt(52)).op).toBe(OP.RST);
  });

  it('that the guest refuses ends the connection', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const guest = await daemon.guest();
    const before = daemon.fdCount();
    const host = await HostStream.dial(cleanup, daemon.uds, 52);
    const request = await guest.receiveAt(52, OP.REQUEST);
    await guest.send({ op: OP.RST, srcPort: 52, dstPort: request.srcPort });
    await host.waitForEnd();
    await daemon.waitForFds(before);
  });

  it('that does not come in time ends the connection', async () => {
    const daemon = await VsockDaemon.start(cleanup, { extra: ['--connect-timeout=200'] });
    await daemon.guest();
    const host = await HostStream.connect(cleanup, daemon.uds);
    await host.waitForEnd();
  });

  it('without a guest ends the connection', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const host = await HostStream.connect(cleanup, daemon.uds);
    await host.waitForEnd();
    await daemon.waitForFds(daemon.idleFds);
  });
});
