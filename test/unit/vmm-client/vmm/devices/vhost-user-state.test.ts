/** What a back end is told of a device that is suspended, goes on, goes on elsewhere, is logged, or gets memory. */

import { describe, expect, it } from 'vitest';
import { createSealedMemfd } from '../../../../../protocol/sys/owned-fd.ts';
import { FRONTEND } from '../../../../../protocol/vhost-user/messages.ts';
import { VmError } from '../../../../../vmm-client/vmm/errors.ts';
import { GuestRam } from '../../../../support/frontend/guest-ram.ts';
import { eventually } from '../../../../support/frontend/process-probe.ts';
import { type Script, u64 } from '../../frontend/scripted-backend.ts';
import { DeviceBench, mask, PROTOCOL } from './bench.ts';
import { checkedDisk, checkedFs, checkedNet, checkedVsock } from './checked.ts';

const bench = new DeviceBench();

const CONFIG = new Uint8Array(96);
new DataView(CONFIG.buffer).setUint32(0, 2048, true);
new DataView(CONFIG.buffer).setUint16(34, 4, true);
/** FLUSH, MQ, LOG_ALL, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1. */
const FEATURES = mask(9, 12, 26, 29, 30, 32);
/** LOG_SHMFD and CONFIGURE_MEM_SLOTS too. */
const LOGGED = PROTOCOL | mask(1, 15);
const BLK: Partial<Script> = { features: FEATURES, protocolFeatures: LOGGED, config: CONFIG };

const NONE = new Uint8Array();
/** A log is answered by nothing. */
const answer: Script['answer'] = (name) => (name === 'SET_LOG_BASE' ? { payload: NONE } : undefined);
const GUEST = { queueSizes: [64, 64, 64] };
const netAt = (socket: string) => ({ kind: 'net' as const, config: checkedNet({ id: 'n', vhost_socket: socket }) });
const fsAt = (socket: string) => ({ kind: 'fs' as const, config: checkedFs({ id: 'f', tag: 't', socket }) });
const vsockAt = (socket: string) => ({ kind: 'vsock' as const, config: checkedVsock({ id: 'v', cid: 3, socket }) });

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
  const device = await bench.open({ ...BLK, answer, ...script }, (socket) => ({
    kind: 'disk',
    config: checkedDisk({ id: 'd', vhost_socket: socket }),
  }));
  const { guest, transport } = bench.plug(device);
  const backend = bench.backend!;
  backend.log.length = 0;
  return { device, guest, transport, backend, driver: guest.driver };
};

const messageOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'nothing went wrong',
    (error: unknown) => (error instanceof VmError ? error.message : String(error)),
  );

describe('a device that is suspended', () => {
  it('has its rings stopped, and started again where they stood', async () => {
    const { backend, guest, transport } = await plug();
    await guest.start();
    backend.log.length = 0;
    const { device } = await transport.suspend();
    expect(backend.log).toEqual(['GET_VRING_BASE']);
    expect(device).toMatchObject({ phase: 'running', rings: [{ index: 0, base: 77 }], backend: undefined });
    backend.log.length = 0;
    await transport.resume();
    expect(backend.log).toEqual(VRING);
    expect(backend.last.get('SET_VRING_BASE')).toEqual({ index: 0, num: 77 });
    backend.log.length = 0;
    await transport.resume();
    expect(backend.log).toEqual([]);
  });

  it('and that nobody uses is not spoken of', async () => {
    const { backend, driver, transport } = await plug();
    await driver.negotiate();
    expect((await transport.suspend()).device).toMatchObject({ phase: 'idle', rings: [] });
    await transport.resume();
    expect(backend.log).toEqual([]);
  });

  it('and that nobody uses hears of it while its guest moves: it may keep others away', async () => {
    const { backend, transport } = await plug();
    await transport.startDirtyLog();
    expect((await transport.suspend()).device).toMatchObject({ phase: 'idle', rings: [] });
    expect(backend.log).toEqual(['SET_FEATURES', 'RESET_DEVICE', 'SET_FEATURES']);
    expect(backend.last.get('SET_FEATURES')).toBe(mask(30));
    await transport.resume();
    await transport.stopDirtyLog();
  });

  it('can be reset then', async () => {
    const { backend, guest, transport, driver } = await plug();
    await guest.start();
    await transport.suspend();
    backend.log.length = 0;
    await driver.reset();
    expect(backend.log).toEqual(['SET_VRING_ENABLE', 'GET_VRING_BASE', 'RESET_DEVICE', 'GET_CONFIG']);
    backend.log.length = 0;
    await transport.resume();
    expect(backend.log).toEqual([]);
    expect(await guest.start()).toBe(15);
  });

  it.each(['GET_VRING_BASE', 'SET_VRING_KICK', 'SET_VRING_ENABLE'])(
    'goes on after a reconnect where its back end fails once at %s',
    async (name) => {
      const { backend, guest, transport, driver } = await plug();
      await guest.start();
      let failures = 0;
      const failOnce: Script['answer'] = (message) => {
        if (message !== name || failures > 0) return undefined;
        failures += 1;
        return { payload: u64(1n) };
      };
      const isStop = name === 'GET_VRING_BASE';
      if (isStop)
        backend.rewrite({ answer: (message) => (failOnce(message, NONE, []) ? { payload: NONE } : undefined) });
      const state = await messageOf(transport.suspend());
      expect(state).toBe('nothing went wrong');
      if (!isStop) backend.rewrite({ answer: failOnce });
      await transport.resume();
      expect([failures, backend.connections, driver.status]).toEqual([1, 2, 15]);
      expect(await messageOf(transport.suspend())).toBe('nothing went wrong');
    },
  );

  it('stays as it is where its back end is silent', async () => {
    const { backend, guest, transport } = await plug();
    await guest.start();
    backend.rewrite({ ignore: ['GET_VRING_BASE'] });
    expect(await messageOf(transport.suspend())).toMatch(
      /^disk d: it cannot be suspended: the back end did not answer GET_VRING_BASE within 500 ms$/,
    );
    backend.rewrite({ ignore: [] });
    expect(await messageOf(transport.suspend())).toBe('nothing went wrong');
  });
});

describe('a device that goes on elsewhere', () => {
  const takeState = async () => {
    const { guest, transport } = await plug();
    await guest.start(mask(9));
    return structuredClone(await transport.suspend());
  };

  it('gives the back end what it had, at once', async () => {
    const state = await takeState();
    const { backend, transport } = await plug();
    await transport.restore(state);
    expect(backend.log).toEqual([...HAND_OVER, 'GET_CONFIG']);
    expect(backend.last.get('SET_FEATURES')).toBe(mask(9, 30, 32));
    expect(backend.last.get('SET_VRING_BASE')).toEqual({ index: 0, num: 77 });
    expect(backend.last.get('SET_INFLIGHT_FD')).toMatchObject({ mmapSize: 4096, numQueues: 1, queueSize: 64 });
  });

  it('gives it a region like the one before where it would make a smaller one', async () => {
    const state = await takeState();
    const ask: Script['answer'] = (name, payload) => {
      if (name !== 'GET_INFLIGHT_FD') return answer(name, payload, []);
      const area = { ...FRONTEND.GET_INFLIGHT_FD.request.decode(payload), mmapSize: 2048 };
      return { payload: FRONTEND.GET_INFLIGHT_FD.request.encode(area), fds: [createSealedMemfd('smaller', 2048)] };
    };
    const { backend, transport } = await plug({ answer: ask });
    await transport.restore(state);
    expect(backend.last.get('SET_INFLIGHT_FD')).toMatchObject({ mmapSize: 4096, numQueues: 1, queueSize: 64 });
  });

  it.each(['SET_FEATURES', 'SET_MEM_TABLE', 'SET_INFLIGHT_FD', 'SET_VRING_ADDR', 'SET_VRING_ENABLE'])(
    'is not there where the back end refuses %s, which has nothing then',
    async (name) => {
      const state = await takeState();
      const { backend, transport } = await plug({ refuse: [name] });
      expect(await messageOf(transport.restore(state))).toContain(`${name} was refused by the back end`);
      expect(backend.log.includes('GET_VRING_BASE')).toBe(backend.log.includes('SET_VRING_KICK+1'));
    },
  );

  it('is not there where the back end always dies', async () => {
    const state = await takeState();
    const { transport } = await plug({ dieAt: ['SET_VRING_KICK'] });
    expect(await messageOf(transport.restore(state))).toMatch(/^disk d: it cannot go on here: /);
  });
});

describe('a device whose back end has state', () => {
  /** CTRL_VQ, PROTOCOL_FEATURES, VERSION_1. */
  const NET = mask(17, 30, 32);
  const NET_CONFIG = new Uint8Array(12);

  it.each([
    ['net n', netAt, NET, NET_CONFIG, 3],
    ['fs f', fsAt, mask(30, 32), new Uint8Array(60), 2],
    ['vsock v', vsockAt, mask(30, 32), Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 0), 3],
  ])('that nobody can ask for is not suspended, and not logged: %s', async (name, at, features, config, queues) => {
    const script = { features: features | mask(26), protocolFeatures: LOGGED, config, queueCount: BigInt(queues) };
    const device = await bench.open(script, at, {}, { queueSizes: Array.from({ length: queues }, () => 64) });
    const { guest, transport } = bench.plug(device);
    expect(await guest.start(mask(17) & features)).toBe(15);
    const backend = bench.backend!;
    backend.log.length = 0;
    const sentence = `${name}: its back end does not offer DEVICE_STATE, so what it knows of the guest cannot go along`;
    expect(await messageOf(transport.suspend())).toBe(sentence);
    expect(await messageOf(transport.startDirtyLog())).toBe(sentence);
    expect(backend.log).toEqual([]);
  });

  it('is suspended where its driver has not told it anything', async () => {
    const script = { features: NET, protocolFeatures: LOGGED, config: NET_CONFIG, queueCount: 3n };
    const device = await bench.open(script, netAt, {}, GUEST);
    const { guest, transport } = bench.plug(device);
    await guest.start();
    expect(await messageOf(transport.suspend())).toBe('nothing went wrong');
  });
});

describe('a dirty log', () => {
  it.each([
    ['LOG_SHMFD', { protocolFeatures: PROTOCOL }],
    ['LOG_ALL', { features: FEATURES & ~mask(26) }],
  ])('cannot be had of a back end without %s', async (what, script) => {
    const { transport, backend } = await plug(script);
    expect(await messageOf(transport.startDirtyLog())).toBe(
      `disk d: its back end does not offer ${what}, so nobody can tell which memory it writes to`,
    );
    expect(backend.log).toEqual([]);
  });

  it('of a device that nobody uses is told with its features', async () => {
    const { transport, backend, guest, driver } = await plug();
    await transport.startDirtyLog();
    await transport.startDirtyLog();
    expect(transport.takeDirty()).toEqual([]);
    expect(backend.log).toEqual([]);
    expect(await guest.start()).toBe(15);
    // The log that was there before the memory does not cover it.
    expect(backend.log.slice(0, 4)).toEqual(['SET_LOG_BASE+1', 'SET_FEATURES', 'SET_LOG_BASE+1', 'SET_MEM_TABLE+1']);
    expect(backend.last.get('SET_FEATURES')).toBe(mask(26, 30, 32));
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({
      flags: 1,
      log: BigInt(guest.ram.guest(guest.ring().used)),
    });
    await driver.reset();
    await transport.stopDirtyLog();
    backend.log.length = 0;
    await guest.start();
    expect(backend.log).toEqual(HAND_OVER);
  });

  it('ends also where the back end is away, which does not get it again', async () => {
    const { transport, backend, guest } = await plug();
    await guest.start();
    await transport.startDirtyLog();
    backend.rewrite({ ignore: ['GET_FEATURES'] });
    backend.die();
    const stopped = transport.stopDirtyLog();
    await stopped;
    expect(transport.takeDirty()).toEqual([]);
    backend.rewrite({ ignore: [] });
    backend.log.length = 0;
    await eventually(
      'reconnects',
      () => transport.counters().reconnects,
      (count) => count === 1,
    );
    expect(backend.log).not.toContain('SET_LOG_BASE+1');
  });
});

describe('memory', () => {
  const ADDED = 0x2_0000_0000;
  const region = () => {
    const ram = new GuestRam(1 << 20, ADDED, 0x7d00_0000_0000);
    return { ram, shared: { region: ram.region(), memfd: ram.fd } };
  };

  it.each([
    ['by a region', LOGGED, 'ADD_MEM_REG+1', 'REM_MEM_REG'],
    ['by a table', PROTOCOL | mask(1), 'SET_MEM_TABLE+2', 'SET_MEM_TABLE+1'],
  ])('is added and removed %s, once', async (_, protocolFeatures, added, removed) => {
    const { ram, shared } = region();
    const { transport, backend, guest } = await plug({ protocolFeatures });
    await transport.addMemory(shared);
    expect(backend.log).toEqual([]);
    await guest.start();
    backend.log.length = 0;
    await transport.addMemory(shared);
    await transport.addMemory(shared);
    expect(backend.log).toEqual([added]);
    await transport.removeMemory(shared);
    await transport.removeMemory(shared);
    expect(backend.log).toEqual([added, removed]);
    await transport.addMemory(shared);
    backend.log.length = 0;
    backend.die();
    await eventually(
      'reconnects',
      () => transport.counters().reconnects,
      (count) => count === 1,
    );
    expect(backend.log).toContain('SET_MEM_TABLE+2');
    ram.close();
  });

  it('that is refused is not there, and one that is not given back ends the connection', async () => {
    const { ram, shared } = region();
    const { transport, backend, guest } = await plug({ refuse: ['ADD_MEM_REG'] });
    await guest.start();
    expect(await messageOf(transport.addMemory(shared))).toBe(
      'disk d: memory cannot be added: ADD_MEM_REG was refused by the back end (code 1)',
    );
    backend.rewrite({ refuse: ['REM_MEM_REG'] });
    await transport.addMemory(shared);
    backend.log.length = 0;
    await transport.removeMemory(shared);
    expect(bench.lines.join()).toContain('memory was not taken back in order: REM_MEM_REG was refused');
    await eventually(
      'reconnects',
      () => transport.counters().reconnects,
      (count) => count === 1,
    );
    expect(backend.log).toContain('SET_MEM_TABLE+1');
    ram.close();
  });
});
