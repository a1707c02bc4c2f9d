import { once } from 'node:events';
import { mkdtempSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { VsockDriver } from '../../../../vmm-client/driver/vsock-driver.ts';
import type { VsockDriverOptions } from '../../../../vmm-client/driver/vsock-setup.ts';
import type { VsockSocket } from '../../../../vmm-client/driver/vsock-socket.ts';
import { type FrontendOptions, VhostUserFrontend } from '../../../../vmm-client/frontend/frontend.ts';
import { countOwnFds } from '../../../support/frontend/process-probe.ts';
import { type Script, ScriptedBackend } from '../frontend/scripted-backend.ts';
import { DeviceQueue, OP, type Packet, SocketDevice } from './vsock-device.ts';

/** STREAM, SEQPACKET, NO_IMPLIED_STREAM, PROTOCOL_FEATURES, VERSION_1. */
const FEATURES = featureMask(0, 1, 2, 30, 32);
/** MQ, REPLY_ACK, CONFIG. */
const PROTOCOL_FEATURES = featureMask(0, 3, 9);
const SIZE = 8;

let directory: string;
let path: string;
let backend: ScriptedBackend;
let driver: VsockDriver | undefined;
let fdsBefore: number;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ringside-vsock-'));
  path = join(directory, 'socket');
  fdsBefore = countOwnFds();
});

afterEach(async () => {
  await driver?.close().catch(() => undefined);
  driver = undefined;
  backend.close();
  rmSync(directory, { recursive: true, force: true });
});

const config = (cid: bigint) => new Uint8Array(new BigUint64Array([cid]).buffer);

async function open(
  script: Partial<Script> = {},
  options: VsockDriverOptions = {},
  dial: FrontendOptions = {},
): Promise<VsockDriver> {
  backend = new ScriptedBackend(path, {
    features: FEATURES,
    protocolFeatures: PROTOCOL_FEATURES,
    config: config(42n),
    ...script,
  });
  const frontend = await VhostUserFrontend.connect(path, dial);
  try {
    driver = await VsockDriver.open(frontend, { queueSize: SIZE, ...options });
    return driver;
  } catch (error) {
    frontend.close();
    throw error;
  }
}

const deviceOf = ({ memory, queues }: VsockDriver) => new SocketDevice(memory, queues[0]!, queues[1]!);

/** The next packet that the driver sends. */
async function nextPacket(device: SocketDevice): Promise<Packet> {
  await expect.poll(() => device.tx.available, { interval: 1, timeout: 5000 }).toBeGreaterThan(0);
  return device.sent(1)[0]!;
}

async function connect(vsock: VsockDriver, device: SocketDevice): Promise<{ socket: VsockSocket; request: Packet }> {
  const connecting = vsock.connect(5000);
  const request = await nextPacket(device);
  device.answer(request, { dstCid: vsock.cid, op: OP.RESPONSE });
  return { socket: await connecting, request };
}

describe('the driver', () => {
  it('reads its CID and starts three queues', async () => {
    const vsock = await open();
    expect([vsock.cid, backend.last.get('SET_FEATURES')]).toEqual([42, FEATURES]);
    expect(backend.log.filter((name) => name.startsWith('SET_VRING_KICK')).length).toBe(3);
  });

  it.each([
    ['no CID that a guest can have', { config: config(2n) }, {}, 'guest_cid is 2: guests have from 3 to 4294967294'],
    ['a CID of more than 32 bits', { config: config(1n << 32n) }, {}, 'guest_cid is 4294967296'],
    ['no CONFIG', { protocolFeatures: featureMask(0, 3) }, {}, 'the CID of the guest has to be given'],
    ['two queues', { queueCount: 2n }, {}, 'the device has 2 queues, a socket device needs 3'],
    ['no VERSION_1', { features: featureMask(0, 30) }, {}, 'does not offer VERSION_1'],
    ['buffers of no byte', {}, { bufferBytes: 0 }, 'buffers of 0 bytes'],
  ])('refuses a device with %s', async (_what, script, options, sentence) => {
    await expect(open(script, options)).rejects.toThrow(sentence);
  });

  it('takes the CID that it is given where there is no CONFIG', async () => {
    expect((await open({ protocolFeatures: featureMask(0, 3) }, { guestCid: 7 })).cid).toBe(7);
  });

  it('has no SEQPACKET where it is not offered', async () => {
    const vsock = await open({ features: featureMask(30, 32) });
    await expect(vsock.connect(1, { type: 'seqpacket' })).rejects.toThrow('the device does not offer SEQPACKET');
  });

  it('connects, writes, reads and closes', async () => {
    const vsock = await open();
    const device = deviceOf(vsock);
    const { socket, request } = await connect(vsock, device);
    expect(request).toMatchObject({ srcCid: 42, dstCid: 2, dstPort: 5000 });
    await socket.write(Buffer.from('hello'));
    expect((await nextPacket(device)).payload.toString()).toBe('hello');

    const target = Buffer.alloc(100);
    const reading = socket.read(target);
    device.answer(request, { op: OP.RW, payload: Buffer.from('good day'), fwdCnt: 5 });
    expect(target.subarray(0, await reading).toString()).toBe('good day');

    const closing = socket.close();
    expect(await nextPacket(device)).toMatchObject({ op: OP.SHUTDOWN, flags: 3 });
    device.answer(request, { op: OP.RST });
    await closing;
    expect(vsock.connectionCount).toBe(0);
  });

  it('writes more than the other side has room for, in turn with other writes', async () => {
    const vsock = await open();
    const device = deviceOf(vsock);
    const { socket, request } = await connect(vsock, device);
    const written = Promise.all([socket.write(Buffer.alloc(100_000, 'a')), socket.write(Buffer.from('b'))]);
    let received = '';
    while (received.length < 100_001) {
      received += (await nextPacket(device)).payload.toString();
      device.answer(request, { op: OP.CREDIT_UPDATE, fwdCnt: received.length });
    }
    await written;
    expect([received.length, received.indexOf('b')]).toEqual([100_001, 100_000]);
  });

  it('is refused where nobody listens, and gives up in time', async () => {
    const vsock = await open({}, { timeoutMs: 20 });
    const device = deviceOf(vsock);
    const refused = vsock.connect(5000);
    device.answer(await nextPacket(device), { op: OP.RST, dstCid: 42 });
    await expect(refused).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      message: 'nobody accepts connections at 2:5000',
    });
    await expect(vsock.connect(5001)).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  });

  it('accepts connections, as many as wait', async () => {
    const vsock = await open();
    const device = deviceOf(vsock);
    const listener = vsock.listen(80, 'stream', 1);
    expect(() => vsock.listen(80)).toThrow('port 80 is listened at already');
    for (const srcPort of [1000, 1001]) device.deliver({ dstCid: 42, srcPort, dstPort: 80, op: OP.REQUEST });
    expect([await nextPacket(device), await nextPacket(device)]).toMatchObject([
      { op: OP.RESPONSE, dstPort: 1000 },
      { op: OP.RST, dstPort: 1001 },
    ]);
    expect((await listener.accept()).connection.remotePort).toBe(1000);
    const accepting = listener.accept();
    listener.close();
    await expect(accepting).rejects.toThrow('the listener was closed');
    vsock.listen(80).close();
  });

  it('ends connections with an error when the transport was reset, and has the new CID then', async () => {
    const vsock = await open();
    const device = deviceOf(vsock);
    const { socket } = await connect(vsock, device);
    backend.rewrite({ config: config(43n) });
    const reading = socket.read(Buffer.alloc(1));
    const [, , events] = vsock.queues;
    const queue = new DeviceQueue(vsock.memory, events!);
    const { head, bytes } = queue.chain();
    bytes.writeUInt32LE(0, 0);
    queue.use(head, 4);
    await expect(reading).rejects.toMatchObject({ code: 'ENETRESET' });
    const connecting = connect(vsock, device);
    expect((await connecting).request.srcCid).toBe(43);
  });

  it('ends connections with an error when the back end goes away, and goes on with the next one', async () => {
    const vsock = await open({}, {}, { reconnectMs: 5000 });
    const { socket, request } = await connect(vsock, deviceOf(vsock));
    const listener = vsock.listen(80);
    await socket.write(Buffer.from('lost'));
    const back = once(vsock.frontend, 'reconnect');
    backend.die();
    await expect(socket.read(Buffer.alloc(1))).rejects.toMatchObject({ code: 'ENETRESET' });
    await expect(socket.write(Buffer.alloc(1))).rejects.toMatchObject({ code: 'ENETRESET' });
    const connecting = vsock.connect(6000);
    await back;
    const device = deviceOf(vsock);
    // What the last one did not take is a reset now.
    expect(await nextPacket(device)).toMatchObject({ op: OP.RST, srcPort: request.srcPort });
    const next = await nextPacket(device);
    expect(next).toMatchObject({ op: OP.REQUEST, dstPort: 6000 });
    device.answer(next, { op: OP.RESPONSE, dstCid: 42 });
    await connecting;
    device.deliver({ dstCid: 42, srcPort: 1, dstPort: 80, op: OP.REQUEST });
    expect((await listener.accept()).connection.state).toBe('open');
  });

  it('fails with one sentence when the device breaks a rule', async () => {
    const vsock = await open();
    const device = deviceOf(vsock);
    const { socket } = await connect(vsock, device);
    device.rx.use(device.rx.chain().head, 1);
    await expect(socket.read(Buffer.alloc(1))).rejects.toThrow('queue 0: the device says it wrote 1 bytes');
    expect(() => vsock.dial(1, {}, socket)).toThrow('queue 0');
  });

  it('fails when the device declares a queue broken', async () => {
    const vsock = await open();
    const { socket } = await connect(vsock, deviceOf(vsock));
    writeSync(vsock.queues[1]!.errorFd, new BigUint64Array([1n]));
    await expect(socket.read(Buffer.alloc(1))).rejects.toThrow('the back end declared queue 1 broken');
  });

  it('leaves no descriptor behind', async () => {
    const vsock = await open();
    await connect(vsock, deviceOf(vsock));
    await vsock.close();
    backend.close();
    expect(countOwnFds()).toBe(fdsBefore);
  });
});
