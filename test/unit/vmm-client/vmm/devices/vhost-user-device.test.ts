import { describe, expect, it } from 'vitest';
import { takeEvent } from '../../../../support/frontend/descriptors.ts';
import { eventually } from '../../../../support/frontend/process-probe.ts';
import type { Script } from '../../frontend/scripted-backend.ts';
import { DeviceBench, mask, PROTOCOL } from './bench.ts';
import { checkedDisk, checkedNet, checkedVsock } from './checked.ts';

const bench = new DeviceBench();

const CONFIG = new Uint8Array(96);
new DataView(CONFIG.buffer).setUint32(0, 2048, true);
new DataView(CONFIG.buffer).setUint16(34, 4, true);
const BLK: Partial<Script> = { features: mask(9, 11, 12, 29, 30, 32), protocolFeatures: PROTOCOL, config: CONFIG };

const VRING = [
  'SET_VRING_NUM',
  'SET_VRING_BASE',
  'SET_VRING_ADDR',
  'SET_VRING_CALL+1',
  'SET_VRING_KICK+1',
  'SET_VRING_ERR+1',
  'SET_VRING_ENABLE',
];
const HAND_OVER = ['SET_FEATURES', 'SET_MEM_TABLE+1', 'GET_INFLIGHT_FD', 'SET_INFLIGHT_FD+1', ...VRING];

const plug = async (script: Partial<Script> = {}) => {
  const device = await bench.open({ ...BLK, ...script }, (socket) => ({
    kind: 'disk',
    config: checkedDisk({ id: 'd', vhost_socket: socket }),
  }));
  const { guest, transport } = bench.plug(device);
  const backend = bench.backend!;
  backend.log.length = 0;
  return { device, guest, transport, backend, driver: guest.driver };
};

describe('DRIVER_OK', () => {
  it('hands everything over, in order', async () => {
    const { backend, guest } = await plug();
    expect(await guest.start(mask(9))).toBe(15);
    expect(backend.log).toEqual(HAND_OVER);
    // What the guest accepted, and PROTOCOL_FEATURES.
    expect(backend.last.get('SET_FEATURES')).toBe(mask(9, 30, 32));
    expect(backend.last.get('SET_MEM_TABLE')).toEqual([guest.ram.region()]);
    expect(backend.last.get('GET_INFLIGHT_FD')).toMatchObject({ numQueues: 1, queueSize: 64 });
    const ring = guest.ring();
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({
      index: 0,
      descriptor: guest.ram.user(ring.table),
      available: guest.ram.user(ring.avail),
      used: guest.ram.user(ring.used),
    });
    expect(backend.last.get('SET_VRING_BASE')).toEqual({ index: 0, num: 0 });
    // What was notified before the ring was handed over.
    expect(takeEvent(ring.kick)).toBe(1n);
  });

  it('leaves queues out that the driver did not make ready', async () => {
    const { backend, driver } = await plug();
    await driver.negotiate();
    expect(await driver.start()).toBe(15);
    expect(backend.log).toEqual(['SET_FEATURES', 'SET_MEM_TABLE+1']);
  });

  it.each(['SET_FEATURES', 'SET_MEM_TABLE', 'SET_INFLIGHT_FD', 'SET_VRING_ADDR', 'SET_VRING_ENABLE'])(
    'needs a reset where the back end refuses %s, which takes everything back',
    async (name) => {
      const { backend, guest, driver } = await plug({ refuse: [name] });
      expect(await guest.start()).toBe(15 | 64);
      expect(bench.lines.join('\n')).toContain(`${name} was refused by the back end`);
      // A ring that was partly refused may run all the same.
      expect(backend.log.includes('GET_VRING_BASE')).toBe(backend.log.includes('SET_VRING_KICK+1'));
      backend.rewrite({ refuse: [] });
      await driver.reset();
      backend.log.length = 0;
      expect(await guest.start()).toBe(15);
      expect(backend.log).toEqual(HAND_OVER);
    },
  );

  it.each(['SET_MEM_TABLE', 'GET_INFLIGHT_FD', 'SET_VRING_KICK'])(
    'waits for a back end that dies at %s and comes back',
    async (name) => {
      const { backend, guest } = await plug({ dieAt: [name] });
      const started = guest.start();
      await eventually(
        'connections',
        () => backend.log.filter((entry) => entry.startsWith(name)).length,
        (n) => n > 0,
      );
      backend.rewrite({ dieAt: [] });
      expect(await started).toBe(15);
      expect(backend.log.slice(-HAND_OVER.length)).toEqual(HAND_OVER);
    },
  );

  it('needs a reset where the back end always dies', async () => {
    const { guest, driver } = await plug({ dieAt: ['SET_VRING_KICK'] });
    expect(await guest.start()).toBe(15 | 64);
    await driver.reset();
    expect(driver.status).toBe(0);
  });
});

describe('a reset', () => {
  it('takes the rings back before it is over', async () => {
    const { backend, guest, driver } = await plug();
    await guest.start();
    backend.log.length = 0;
    await driver.reset();
    expect(backend.log).toEqual(['SET_VRING_ENABLE', 'GET_VRING_BASE', 'RESET_DEVICE', 'GET_CONFIG']);
  });

  it("of a device that never was activated is not the back end's business", async () => {
    const { backend, driver } = await plug();
    await driver.negotiate();
    await driver.reset();
    expect(backend.log).toEqual([]);
  });

  it('does not hang where the back end does not answer', async () => {
    const { guest, driver, backend } = await plug();
    await guest.start();
    backend.rewrite({ ignore: ['GET_VRING_BASE'] });
    await driver.reset();
    expect(driver.status).toBe(0);
    expect(backend.connections).toBe(2);
  });
});

describe('a back end that died', () => {
  it('gets the rings again at the used index, and the guest an interrupt', async () => {
    const { backend, guest, transport } = await plug();
    await guest.start();
    const ring = guest.ring();
    ring.setAvailIndex(9);
    guest.ram.view.setUint16(ring.used + 2, 7, true);
    takeEvent(ring.kick);
    takeEvent(ring.call);
    backend.log.length = 0;
    backend.die();
    await eventually(
      'reconnects',
      () => transport.counters().reconnects,
      (count) => count === 1,
    );
    expect(backend.last.get('SET_VRING_BASE')).toEqual({ index: 0, num: 7 });
    expect(backend.log.filter((name) => name.startsWith('SET_INFLIGHT_FD'))).toEqual(['SET_INFLIGHT_FD+1']);
    expect(backend.log).not.toContain('GET_INFLIGHT_FD');
    expect([takeEvent(ring.kick), takeEvent(ring.call)]).toEqual([1n, 1n]);
    expect(guest.driver.status).toBe(15);
  });

  it('may have another configuration, of which the guest is told', async () => {
    const { backend, guest, transport } = await plug();
    await guest.start();
    const config = CONFIG.slice();
    config[1] = 16;
    backend.rewrite({ config });
    backend.die();
    await eventually(
      'changes',
      () => transport.counters().config_changes,
      (count) => count === 1,
    );
    expect(guest.driver.config(0, 2)[1]).toBe(16);
    expect(guest.driver.interruptStatus).toBe(3);
  });

  it('gets nothing where the guest was reset meanwhile', async () => {
    const { backend, guest, driver } = await plug();
    await guest.start();
    backend.log.length = 0;
    backend.die();
    await eventually(
      'disconnects',
      () => bench.lines.length,
      (count) => count > 0,
    );
    await driver.reset();
    expect(backend.connections).toBe(2);
    expect(backend.log).not.toContain('SET_MEM_TABLE+1');
  });
});

it('gives one queue up', async () => {
  const { backend, guest, driver } = await plug();
  await guest.start();
  backend.log.length = 0;
  await driver.write(0x30, 0);
  await driver.write(0x44, 0);
  expect(backend.log).toEqual(['GET_VRING_BASE']);
  expect(driver.read(0x44)).toBe(0);
});

it('does not hand over a queue that the back end has no ring for', async () => {
  const script = { features: mask(30, 32), protocolFeatures: mask(0, 3), queueCount: 2n };
  const queueSizes = [64, 64, 64];
  const description = (socket: string) =>
    ({ kind: 'vsock', config: checkedVsock({ id: 'v', socket, cid: 3 }) }) as const;
  const { guest } = bench.plug(await bench.open(script, description, {}, { queueSizes }));
  expect(await guest.start()).toBe(15);
  expect(bench.backend?.log.filter((name) => name === 'SET_VRING_KICK+1').length).toBe(2);
});

it('gives the control queue the ring that the back end has it at', async () => {
  const config = Uint8Array.from([2, 0, 0, 0, 0, 1, 1, 0, 4, 0]);
  const script = { features: mask(5, 16, 17, 22, 30, 32), protocolFeatures: PROTOCOL, queueCount: 9n, config };
  const queueSizes = [64, 64, 64, 64, 64];
  const description = (socket: string) =>
    ({ kind: 'net', config: checkedNet({ id: 'n', vhost_socket: socket, num_queues: 4, queue_size: 64 }) }) as const;
  const { guest } = bench.plug(await bench.open(script, description, {}, { queueSizes }));
  expect(await guest.start(mask(17, 22))).toBe(15);
  expect(bench.backend?.last.get('SET_VRING_NUM')).toEqual({ index: 8, num: 64 });
  expect(bench.backend?.last.get('GET_INFLIGHT_FD')).toMatchObject({ numQueues: 9 });
  await guest.driver.reset();
  expect(await guest.start(mask(17))).toBe(15);
  expect(bench.backend?.last.get('SET_VRING_NUM')).toEqual({ index: 4, num: 64 });
});
