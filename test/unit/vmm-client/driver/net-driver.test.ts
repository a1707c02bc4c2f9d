import { once } from 'node:events';
import { mkdtempSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import type { DriverQueue } from '../../../../vmm-client/driver/driver-queue.ts';
import { NetDriver } from '../../../../vmm-client/driver/net-driver.ts';
import type { NetDriverOptions } from '../../../../vmm-client/driver/net-setup.ts';
import { type FrontendOptions, VhostUserFrontend } from '../../../../vmm-client/frontend/frontend.ts';
import { countOwnFds } from '../../../support/frontend/process-probe.ts';
import { ScriptedBackend } from '../frontend/scripted-backend.ts';

/** MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1; no field of the configuration space. */
const FEATURES = featureMask(15, 30, 32);
/** MQ, REPLY_ACK. */
const PROTOCOL_FEATURES = featureMask(0, 3);
const SIZE = 8;

let directory: string;
let path: string;
let backend: ScriptedBackend;
let driver: NetDriver | undefined;
let fdsBefore: number;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ringside-net-'));
  path = join(directory, 'socket');
  fdsBefore = countOwnFds();
});

afterEach(async () => {
  await driver?.close().catch(() => undefined);
  driver = undefined;
  backend.close();
  rmSync(directory, { recursive: true, force: true });
});

async function open(
  features = FEATURES,
  options: NetDriverOptions = {},
  dial: FrontendOptions = {},
): Promise<NetDriver> {
  backend = new ScriptedBackend(path, { features, protocolFeatures: PROTOCOL_FEATURES });
  driver = await NetDriver.open(await VhostUserFrontend.connect(path, dial), { queueSize: SIZE, ...options });
  return driver;
}

/** The device's side of one queue of a driver, in the driver's memory. */
class Device {
  readonly #driver: NetDriver;
  readonly #queue: DriverQueue;
  readonly #view: DataView;
  next = 0;

  constructor(of: NetDriver, queue: DriverQueue) {
    this.#driver = of;
    this.#queue = queue;
    this.#view = new DataView(of.memory.bytes.buffer);
  }

  #offset(address: number): number {
    return address - this.#driver.memory.userAddress;
  }

  get available(): number {
    return this.#view.getUint16(this.#offset(this.#queue.vring.availRing) + 2, true);
  }

  /** The buffers of the next chain. */
  chain(): { head: number; buffers: Buffer[] } {
    const { availRing, descriptorTable, size } = this.#queue.vring;
    const head = this.#view.getUint16(this.#offset(availRing) + 4 + 2 * (this.next % size), true);
    const buffers: Buffer[] = [];
    for (let at = head; ; ) {
      const descriptor = this.#offset(descriptorTable) + 16 * at;
      const address = Number(this.#view.getBigUint64(descriptor, true)) - this.#driver.memory.guestAddress;
      buffers.push(this.#driver.memory.slice(address, this.#view.getUint32(descriptor + 8, true)));
      if ((this.#view.getUint16(descriptor + 12, true) & 1) === 0) return { head, buffers };
      at = this.#view.getUint16(descriptor + 14, true);
    }
  }

  /** Uses the chain and signals. */
  use(head: number, length: number): void {
    const { usedRing, size } = this.#queue.vring;
    const used = this.#offset(usedRing);
    this.#view.setUint32(used + 4 + 8 * (this.next % size), head, true);
    this.#view.setUint32(used + 8 + 8 * (this.next % size), length, true);
    this.next += 1;
    this.#view.setUint16(used + 2, this.next, true);
    writeSync(this.#queue.callFd, new BigUint64Array([1n]));
  }

  /** Delivers a packet of one buffer. */
  deliver(packet: Uint8Array): void {
    const { head, buffers } = this.chain();
    buffers[0]!.fill(0, 0, 12);
    buffers[0]!.writeUInt16LE(1, 10);
    buffers[0]!.set(packet, 12);
    this.use(head, 12 + packet.length);
  }
}

const receiverOf = (of: NetDriver) => new Device(of, of.receiveQueues[0]!.queue);
const transmitterOf = (of: NetDriver) => new Device(of, of.transmitQueues[0]!.queue);

/** The next packet that arrives, or why none will. */
function nextPacket(of: NetDriver): Promise<string> {
  return new Promise((resolve, reject) => {
    of.listen({ onPacket: (packet) => resolve(Buffer.from(packet).toString('hex')), onFailure: reject });
  });
}

describe('the driver', () => {
  it('starts a receive and a transmit queue for each pair', async () => {
    await open(featureMask(15, 17, 22, 30, 32), { pairs: 2 });
    expect(backend.log.filter((name) => name.startsWith('SET_VRING_KICK')).length).toBe(4);
    expect(backend.last.get('SET_FEATURES')).toBe(featureMask(15, 17, 22, 30, 32));
  });

  it('hands over what arrives, and gives the buffer back', async () => {
    const net = await open();
    const device = receiverOf(net);
    expect(device.available).toBe(SIZE);
    const arrived = nextPacket(net);
    device.deliver(Uint8Array.of(1, 2, 3));
    expect(await arrived).toBe('010203');
    expect(device.available).toBe(SIZE + 1);
  });

  it('hands over nothing while it is paused', async () => {
    const net = await open();
    const device = receiverOf(net);
    net.pause();
    const arrived = nextPacket(net);
    device.deliver(Uint8Array.of(4));
    await net.frontend.enableVring(0, true);
    expect(device.available).toBe(SIZE);
    net.resume();
    expect(await arrived).toBe('04');
  });

  it('sends until the queue is full, and again when there is room', async () => {
    const net = await open();
    const device = transmitterOf(net);
    const sent = Array.from({ length: SIZE + 1 }, (_, i) => net.send(Uint8Array.of(i)));
    expect(sent.filter((was) => was).length).toBe(SIZE);
    const { head, buffers } = device.chain();
    expect(buffers[0]!.toString('hex')).toBe(`${'00'.repeat(12)}00`);
    device.use(head, 0);
    expect([net.send(Uint8Array.of(9)), net.send(Uint8Array.of(9))]).toEqual([true, false]);
  });

  it('fails with one sentence when the device breaks a rule', async () => {
    const net = await open();
    const arrived = nextPacket(net);
    const device = receiverOf(net);
    device.use(device.chain().head, 5000);
    await expect(arrived).rejects.toThrow('queue 0: the device says it wrote 5000 bytes to a buffer of 2048');
    expect(() => net.send(Uint8Array.of(1))).toThrow('queue 0');
  });

  it('sends commands by the control queue and takes the answers', async () => {
    const net = await open(FEATURES | featureMask(17), { controlQueue: true, timeoutMs: 5000 });
    expect(backend.log.filter((name) => name.startsWith('SET_VRING_KICK')).length).toBe(3);
    const answers = [
      net.command('promiscuity', 0, 0, Uint8Array.of(1)),
      net.command('nonsense', 9, 9, Uint8Array.of()),
    ];
    const settled = Promise.allSettled(answers);
    // The second command is sent when the first one is answered.
    const device = new Device(net, net.controlQueue!.queue);
    for (const [sent, ack] of [
      ['000001', 0],
      ['0909', 1],
    ] as const) {
      while (device.available === device.next) await new Promise((resolve) => setImmediate(resolve));
      const { head, buffers } = device.chain();
      expect([buffers[0]!.toString('hex'), buffers[1]!.length]).toEqual([sent, 1]);
      buffers[1]![0] = ack;
      device.use(head, 1);
    }
    expect(await settled).toMatchObject([
      { status: 'fulfilled' },
      { status: 'rejected', reason: { message: 'nonsense: the device refused it (ack 1)' } },
    ]);
  });

  it('does not wait for ever for the answer to a command', async () => {
    const net = await open(FEATURES | featureMask(17), { controlQueue: true, timeoutMs: 20 });
    await expect(net.command('a command', 0, 0, Uint8Array.of(1))).rejects.toThrow(
      'a command: the device did not answer within 20 ms',
    );
  });

  it('goes on with a back end that came back', async () => {
    const net = await open(FEATURES, {}, { reconnectMs: 5000 });
    net.send(Uint8Array.of(7));
    const device = receiverOf(net);
    device.deliver(Uint8Array.of(1));
    await nextPacket(net);
    const back = once(net.frontend, 'reconnect');
    backend.die();
    await back;
    const anew = receiverOf(net);
    expect([backend.connections, anew.available, transmitterOf(net).available]).toEqual([2, SIZE, 1]);
    const arrived = nextPacket(net);
    anew.deliver(Uint8Array.of(2));
    expect(await arrived).toBe('02');
  });

  it('leaves no descriptor behind', async () => {
    const net = await open();
    await net.close();
    backend.close();
    expect(countOwnFds()).toBe(fdsBefore);
  });
});
