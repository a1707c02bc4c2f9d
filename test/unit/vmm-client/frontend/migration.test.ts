import { once } from 'node:events';
import { closeSync, readSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Notifier } from '../../../../protocol/sys/notifier.ts';
import { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { VhostUserFrontend } from '../../../../vmm-client/frontend/frontend.ts';
import { USABLE_PROTOCOL_FEATURES } from '../../../../vmm-client/frontend/negotiation.ts';
import { FrontendBench, le64, mask } from './frontend-bench.ts';
import { type Answer, type Script, u64 } from './scripted-backend.ts';

const bench = new FrontendBench();
/** FLUSH, PROTOCOL_FEATURES, VERSION_1. */
const FEATURES = mask(9, 30, 32);
/** MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS, DEVICE_STATE. */
const PROTOCOL = mask(0, 3, 5, 9, 12, 15, 19);
const SAVE = 0;
const NO_FD = u64(0x100n);

/** A back end with state of its own: what it has to save, and what it was given. */
class Device {
  saves = 'state of the source';
  loaded = '';
  /** A base of all 32 bits, as packed rings have it. */
  base = 0x8003_8002;
  #channel: OwnedFd | undefined;

  readonly answer: Script['answer'] = (name, payload, fds): Answer | undefined => {
    if (name === 'GET_VRING_BASE') {
      const reply = Buffer.from(payload);
      reply.writeUInt32LE(this.base, 4);
      return { payload: reply };
    }
    if (name === 'CHECK_DEVICE_STATE') {
      if (this.#channel !== undefined) this.#read(this.#channel);
      return { payload: u64(0n) };
    }
    if (name !== 'SET_DEVICE_STATE_FD') return undefined;
    const fd = fds[0]?.take() ?? -1;
    if (payload[0] === SAVE) {
      writeSync(fd, this.saves);
      closeSync(fd);
    } else {
      this.#channel = bench.keep(new OwnedFd(fd));
    }
    return { payload: NO_FD };
  };

  #read(channel: OwnedFd): void {
    const chunk = Buffer.alloc(100);
    // The front end has closed its end: this does not block.
    this.loaded = chunk.toString('latin1', 0, readSync(channel.fd, chunk));
    channel.close();
    this.#channel = undefined;
  }
}

const script = (device: Device): Partial<Script> => ({
  features: FEATURES,
  protocolFeatures: PROTOCOL,
  answer: device.answer,
  config: Uint8Array.from({ length: 60 }, (_, i) => i),
});

/** A device with two rings, tracked, on a first back end; a second one listens. */
const open = async (options = {}, changes: { first?: Partial<Script>; second?: Partial<Script> } = {}) => {
  const [device, other] = [new Device(), new Device()];
  const peers = await bench.connect({ ...script(device), ...changes.first }, options);
  const second = bench.listen({ ...script(other), ...changes.second }, 'second');
  const { frontend, backend } = peers;
  const memory = bench.memory();
  await frontend.acceptFeatures(FEATURES);
  await frontend.setMemory([memory]);
  await frontend.trackInflight(2, 8);
  const rings = [bench.ring(memory, 0), bench.ring(memory, 1)];
  await frontend.startVrings(rings.map(({ vring }) => ({ vring, base: 0 })));
  backend.wire.length = 0;
  backend.log.length = 0;
  return { ...peers, device, other, second, memory, rings, target: bench.socket('second') };
};

const RING_START = [
  'SET_VRING_NUM',
  'SET_VRING_BASE',
  'SET_VRING_ADDR',
  'SET_VRING_CALL+1',
  'SET_VRING_KICK+1',
  'SET_VRING_ERR+1',
  'SET_VRING_ENABLE',
];

describe('a device that is suspended', () => {
  it('is described by what another back end needs', async () => {
    const { backend, frontend } = await open();
    const snapshot = await frontend.migration.suspend({ configBytes: 16 });
    expect(backend.wire).toEqual([
      'GET_VRING_BASE 1 0000000000000000',
      'GET_VRING_BASE 1 0100000000000000',
      `GET_CONFIG 1 000000001000000000000000${'00'.repeat(16)}`,
      'SET_DEVICE_STATE_FD 1 0000000000000000',
      'CHECK_DEVICE_STATE 1',
    ]);
    const place = { descriptorTable: 0x1_0000_0000, availRing: 0x1_0000_1000, usedRing: 0x1_0000_2000 };
    expect(snapshot).toMatchObject({
      features: FEATURES,
      protocolFeatures: PROTOCOL,
      config: Uint8Array.from({ length: 16 }, (_, i) => i),
      rings: [
        { index: 0, size: 8, base: 0x8003_8002, ...place },
        { index: 1, size: 8, base: 0x8003_8002, ...place },
      ],
      inflight: { numQueues: 2, queueSize: 8 },
      deviceState: new Uint8Array(Buffer.from('state of the source')),
    });
    expect(snapshot.inflight?.bytes.length).toBe(4096);
  });

  it('goes on where it was', async () => {
    const { backend, frontend } = await open();
    await frontend.migration.suspend();
    backend.log.length = 0;
    backend.wire.length = 0;
    await frontend.migration.resume();
    expect(backend.log).toEqual([...RING_START, ...RING_START]);
    expect(backend.wire[1]).toBe('SET_VRING_BASE 9 0000000002800380');
    // Rings that a back end gets again which dies, as before.
    expect(await frontend.stopVring(1)).toBe(0x8003_8002);
  });

  it('has no rings for a back end that comes back meanwhile', async () => {
    const { backend, frontend } = await open({ reconnectMs: 5000 });
    await frontend.migration.suspend();
    const back = once(frontend, 'reconnect');
    backend.log.length = 0;
    backend.die();
    await back;
    expect(backend.log.filter((name) => name.startsWith('SET_VRING'))).toEqual([]);
    await frontend.migration.resume();
    expect(backend.log.filter((name) => name.startsWith('SET_VRING'))).toEqual([...RING_START, ...RING_START]);
  });

  it('runs on where its state cannot be had', async () => {
    const { backend, frontend } = await open();
    backend.rewrite({
      answer: (name) => (name === 'SET_DEVICE_STATE_FD' ? { payload: u64(0x101n) } : undefined),
    });
    await expect(frontend.migration.suspend()).rejects.toThrow('SET_DEVICE_STATE_FD was refused');
    expect(backend.log.filter((name) => name === 'SET_VRING_KICK+1').length).toBe(2);
  });

  it('gets its rings back by a reconnect where they did not all stop', async () => {
    const { backend, frontend } = await open({ reconnectMs: 5000 });
    backend.rewrite({ dieAt: ['GET_VRING_BASE'], answer: () => undefined });
    const back = once(frontend, 'reconnect');
    await expect(frontend.migration.suspend()).rejects.toThrow('closed the connection');
    await back;
    expect(backend.log.filter((name) => name === 'SET_VRING_KICK+1').length).toBe(2);
  });
});

describe('a device that is moved', () => {
  it('is on the other back end what it was on the first', async () => {
    const { backend, frontend, second, other, target, memory } = await open();
    const snapshot = await frontend.migration.suspend({ configBytes: 60 });
    await frontend.migration.moveTo(target, snapshot);
    const handedOver = second.log.slice(second.log.indexOf('SET_FEATURES'));
    expect(handedOver).toEqual([
      'SET_FEATURES',
      'SET_MEM_TABLE+1',
      'GET_INFLIGHT_FD',
      'SET_INFLIGHT_FD+1',
      'SET_CONFIG',
      'SET_DEVICE_STATE_FD+1',
      'CHECK_DEVICE_STATE',
      ...RING_START,
      ...RING_START,
    ]);
    expect(other.loaded).toBe('state of the source');
    const content = Buffer.from(Array.from({ length: 60 }, (_, i) => i)).toString('hex');
    expect(second.wire).toContain(`SET_CONFIG 9 000000003c00000001000000${content}`);
    expect(second.wire).toContain('SET_DEVICE_STATE_FD 1 0100000000000000');
    expect(second.wire).toContain('SET_VRING_BASE 9 0100000002800380');
    expect(second.last.get('SET_INFLIGHT_FD')).toEqual({ mmapSize: 4096, mmapOffset: 0, numQueues: 2, queueSize: 8 });
    expect(second.last.get('SET_VRING_ADDR')).toMatchObject({ descriptor: memory.userAddress });
    // The first one has seen nothing of that, and is not needed any more.
    expect(backend.log).not.toContain('SET_VRING_KICK+1');
    backend.close();
    expect(await frontend.stopVring(0)).toBe(0x8003_8002);
    expect(second.log.at(-1)).toBe('GET_VRING_BASE');
  });

  it('is asked there from the moment on that it runs there, and answered here what was asked before', async () => {
    const { frontend, device, backend, other, second, target } = await open();
    const snapshot = await frontend.migration.suspend();
    const answered: string[] = [];
    const onConfig = (script: Script['answer'], where: string): Script['answer'] => {
      return (name, payload, fds) => {
        if (name === 'GET_CONFIG') answered.push(where);
        if (name === 'SET_VRING_KICK' && payload[0] === 0)
          void frontend.readConfig(0, 4).then(() => answered.push('read'));
        return script(name, payload, fds);
      };
    };
    backend.rewrite({ answer: onConfig(device.answer, 'first') });
    second.rewrite({ answer: onConfig(other.answer, 'second') });
    const before = frontend.readConfig(0, 8);
    await frontend.migration.moveTo(target, snapshot);
    expect((await before).length).toBe(8);
    expect(answered).toEqual(['first', 'second', 'read']);
  });

  it('is handed over again when the other back end dies', async () => {
    const { frontend, second, target } = await open({ reconnectMs: 5000 });
    await frontend.migration.moveTo(target, await frontend.migration.suspend());
    second.log.length = 0;
    const back = once(frontend, 'reconnect');
    second.die();
    await back;
    expect(second.log.filter((name) => name === 'SET_VRING_KICK+1' || name === 'SET_INFLIGHT_FD+1')).toEqual([
      'SET_INFLIGHT_FD+1',
      'SET_VRING_KICK+1',
      'SET_VRING_KICK+1',
    ]);
  });

  it('takes its dirty log along', async () => {
    const logs = { features: FEATURES | mask(26), protocolFeatures: PROTOCOL | mask(1) };
    const withLog = (device: Device): Script['answer'] => {
      return (name, payload, fds) =>
        name === 'SET_LOG_BASE' ? { payload: new Uint8Array() } : device.answer(name, payload, fds);
    };
    const { frontend, second, target } = await open(
      {},
      { first: { ...logs, answer: withLog(new Device()) }, second: { ...logs, answer: withLog(new Device()) } },
    );
    await frontend.dirtyLog.start();
    await frontend.migration.moveTo(target, await frontend.migration.suspend());
    expect(second.log).toContain('SET_LOG_BASE+1');
    expect(second.last.get('SET_VRING_ADDR')).toMatchObject({ flags: 1, log: 0x1_0000_2000n });
  });

  it.each([
    ['lacks a feature', { features: mask(30, 32) }, 'lacks features of the device (mask 0x200)'],
    ['has no place for its state', { protocolFeatures: mask(3, 9) }, 'cannot take 19 bytes of device state'],
    ['refuses its memory', { refuse: ['SET_MEM_TABLE'] }, 'SET_MEM_TABLE was refused'],
    ['dies', { dieAt: ['SET_INFLIGHT_FD'] }, 'closed the connection'],
    ['dies when it gets a ring', { dieAt: ['SET_VRING_KICK'] }, 'closed the connection'],
    ['dies between its rings', { dieAfter: ['SET_VRING_ENABLE'] }, 'SET_VRING_NUM'],
  ])('stays where it is when the other back end %s', async (_, changes, message) => {
    const { backend, frontend, target } = await open({ reconnectMs: 5000 }, { second: changes });
    const lost: unknown[] = [];
    frontend.on('lost', (error) => lost.push(error));
    frontend.on('disconnect', (error) => lost.push(error));
    const snapshot = await frontend.migration.suspend();
    await expect(frontend.migration.moveTo(target, snapshot)).rejects.toThrow(message);
    await frontend.migration.resume();
    expect(backend.log.filter((name) => name === 'SET_VRING_KICK+1').length).toBe(2);
    expect([frontend.isConnected, lost]).toEqual([true, []]);
  });

  it('stays, from where the other back end left a ring that it had started', async () => {
    const { backend, frontend, other, second, target } = await open();
    other.base = 99;
    const snapshot = await frontend.migration.suspend();
    second.rewrite({
      answer: (name, payload, fds) => {
        const isSecondRing = name === 'SET_VRING_KICK' && payload[0] === 1;
        return isSecondRing ? { payload: u64(1n) } : other.answer(name, payload, fds);
      },
    });
    await expect(frontend.migration.moveTo(target, snapshot)).rejects.toThrow('SET_VRING_KICK was refused');
    backend.wire.length = 0;
    await frontend.migration.resume();
    expect(backend.wire.filter((line) => line.startsWith('SET_VRING_BASE'))).toEqual([
      'SET_VRING_BASE 9 0000000063000000',
      'SET_VRING_BASE 9 0100000002800380',
    ]);
  });

  it('is not started by a kick in band while nobody has it', async () => {
    const inband = { protocolFeatures: PROTOCOL | mask(14) };
    const { backend, frontend, rings, second, target } = await open(
      { protocolFeatures: USABLE_PROTOCOL_FEATURES },
      { first: inband, second: inband },
    );
    const snapshot = await frontend.migration.suspend();
    for (const { kick } of rings) bench.keep(new Notifier(kick.duplicate())).signal();
    await frontend.readConfig(0, 4);
    await frontend.migration.moveTo(target, snapshot);
    await frontend.readConfig(0, 4);
    expect(backend.log).not.toContain('VRING_KICK');
    expect(second.log.filter((name) => name === 'VRING_KICK').length).toBeGreaterThanOrEqual(2);
  });
});

describe('a snapshot', () => {
  it('is restored by another front end', async () => {
    const { frontend, second, other, memory, rings, target } = await open();
    const snapshot = await frontend.migration.suspend({ configBytes: 60 });
    frontend.close();
    const next = bench.keep(await VhostUserFrontend.connect(target));
    const vrings = rings.map(({ vring }) => vring);
    await expect(next.migration.restore(snapshot, [memory], vrings.slice(1))).rejects.toThrow(
      '1 rings for a snapshot of 2',
    );
    await next.migration.restore(snapshot, [memory], vrings);
    expect([next.features, other.loaded]).toEqual([FEATURES, 'state of the source']);
    expect(second.wire).toContain(`SET_FEATURES 9 ${le64(FEATURES)}`);
    expect(second.log.slice(-7)).toEqual(RING_START);
  });

  it('is not restored with rings of another size', async () => {
    const { frontend, memory, rings } = await open();
    const snapshot = await frontend.migration.suspend();
    const vrings = rings.map(({ vring }) => ({ ...vring, size: 16 }));
    await expect(frontend.migration.restore(snapshot, [memory], vrings)).rejects.toThrow('a ring 0 of 8 entries');
  });
});
