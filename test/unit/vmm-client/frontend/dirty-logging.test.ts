import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createEventFd, OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { FrontendBench, le64, mask } from './frontend-bench.ts';
import type { Script } from './scripted-backend.ts';

const bench = new FrontendBench();

/** FLUSH, LOG_ALL, PROTOCOL_FEATURES, VERSION_1. */
const FEATURES = mask(9, 26, 30, 32);
/** LOG_SHMFD, REPLY_ACK, RESET_DEVICE, CONFIGURE_MEM_SLOTS. */
const PROTOCOL = mask(1, 3, 13, 15);
/** Guest memory ends at 4 GiB + 64 KiB: 131,074 bytes of bitmap, in whole pages. */
const LOG_BYTES = 33 * 4096;

/** With a running ring, and a back end that keeps the descriptor of the log. */
const open = async (script: Partial<Script> = {}, options = {}) => {
  let log: OwnedFd | undefined;
  const answer: Script['answer'] = (name, _, fds) => {
    if (name !== 'SET_LOG_BASE') return undefined;
    log?.close();
    log = bench.keep(new OwnedFd(fds[0]?.take() ?? -1));
    return { payload: new Uint8Array() };
  };
  const peers = await bench.connect({ features: FEATURES, protocolFeatures: PROTOCOL, answer, ...script }, options);
  const memory = bench.memory();
  await peers.frontend.acceptFeatures(mask(9, 30, 32));
  await peers.frontend.setMemory([memory]);
  const ring = bench.ring(memory, 1);
  await peers.frontend.startVring(ring.vring);
  peers.backend.wire.length = 0;
  /** Sets bits as the back end does. */
  const dirty = (byte: number, bits: number) => writeSync(log?.fd ?? -1, Uint8Array.of(bits), 0, 1, byte);
  const address = (flags: string, usedGuest: number) =>
    `SET_VRING_ADDR 9 01000000${flags}${le64(memory.userAddress)}${le64(memory.userAddress + 0x2000)}` +
    `${le64(memory.userAddress + 0x1000)}${le64(usedGuest)}`;
  return { ...peers, memory, ring, dirty, address };
};

const SET_LOG_BASE = `SET_LOG_BASE 1 ${le64(LOG_BYTES)}${le64(0)}`;
const SET_FEATURES_LOGGED = `SET_FEATURES 9 ${le64(mask(9, 26, 30, 32))}`;
const SET_FEATURES_UNLOGGED = `SET_FEATURES 9 ${le64(mask(9, 30, 32))}`;

describe('dirty logging', () => {
  it('begins with the log, then features and the places of used rings', async () => {
    const { backend, frontend, address } = await open();
    const changed = bench.keep(createEventFd());
    await frontend.dirtyLog.start(changed);
    expect(backend.wire).toEqual([
      SET_LOG_BASE,
      SET_FEATURES_LOGGED,
      'SET_LOG_FD 9',
      address('01000000', 0x1_0000_2000),
    ]);
    expect(backend.log).toContain('SET_LOG_FD+1');
    // The bit is between front end and back end; a driver does not know of it.
    expect(frontend.features).toBe(mask(9, 30, 32));
  });

  it('takes what the back end marked, and goes on until it ends', async () => {
    const { backend, frontend, dirty, address } = await open();
    await frontend.dirtyLog.start();
    dirty(131_072, 0b101);
    expect(frontend.dirtyLog.take()).toEqual([
      { guestAddress: 0x1_0000_0000, length: 4096 },
      { guestAddress: 0x1_0000_2000, length: 4096 },
    ]);
    backend.wire.length = 0;
    dirty(131_072, 0b10);
    expect(await frontend.dirtyLog.stop()).toEqual([{ guestAddress: 0x1_0000_1000, length: 4096 }]);
    expect(backend.wire).toEqual([address('00000000', 0), SET_FEATURES_UNLOGGED]);
    expect([frontend.dirtyLog.isOn, frontend.dirtyLog.take(), await frontend.dirtyLog.stop()]).toEqual([false, [], []]);
  });

  it('takes any answer to the log, also that of 8 bytes of no meaning', async () => {
    const { frontend } = await open({
      answer: (name) => (name === 'SET_LOG_BASE' ? { payload: new Uint8Array(8).fill(0xff) } : undefined),
    });
    await frontend.dirtyLog.start();
    expect(frontend.dirtyLog.isOn).toBe(true);
  });

  it('is there for rings that start later', async () => {
    const { backend, frontend, memory } = await open();
    await frontend.dirtyLog.start();
    const other = bench.ring(memory, 2);
    await frontend.startVring(other.vring);
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({ index: 2, flags: 1, log: 0x1_0000_2000n });
  });

  it('grows before memory that it does not cover, and loses nothing', async () => {
    const { backend, frontend, dirty } = await open();
    await frontend.dirtyLog.start();
    dirty(131_072, 1);
    backend.wire.length = 0;
    const memory = bench.memory(4096, 0x2_0000_0000);
    await frontend.addMemory(memory);
    expect(backend.wire.map((line) => line.split(' ')[0])).toEqual(['SET_LOG_BASE', 'ADD_MEM_REG']);
    expect(backend.last.get('SET_LOG_BASE')).toEqual({ size: 65 * 4096, offset: 0 });
    dirty(262_144, 1);
    expect(frontend.dirtyLog.take()).toEqual([
      { guestAddress: 0x1_0000_0000, length: 4096 },
      { guestAddress: 0x2_0000_0000, length: 4096 },
    ]);
    backend.wire.length = 0;
    await frontend.removeMemory(memory);
    expect(backend.wire.map((line) => line.split(' ')[0])).toEqual(['REM_MEM_REG']);
  });

  it('goes on over a reset of the device', async () => {
    const { backend, frontend, ring, memory } = await open();
    await frontend.dirtyLog.start();
    await frontend.takeBack(0);
    backend.wire.length = 0;
    await frontend.acceptFeatures(mask(9, 30, 32));
    await frontend.setMemory([memory]);
    await frontend.startVring(ring.vring);
    expect(backend.wire.slice(0, 2)).toEqual([SET_LOG_BASE, SET_FEATURES_LOGGED]);
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({ flags: 1 });
  });

  it('goes on with the back end that comes back, and has all memory for dirty', async () => {
    const { backend, frontend } = await open({}, { reconnectMs: 5000 });
    await frontend.dirtyLog.start();
    backend.wire.length = 0;
    const back = once(frontend, 'reconnect');
    backend.die();
    await back;
    expect(backend.wire).toContain(SET_LOG_BASE);
    expect(backend.wire.indexOf(SET_LOG_BASE)).toBeLessThan(backend.wire.indexOf(SET_FEATURES_LOGGED));
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({ flags: 1 });
    expect(frontend.dirtyLog.take()).toEqual([{ guestAddress: 0x1_0000_0000, length: 65536 }]);
  });

  it.each([
    ['LOG_SHMFD', { protocolFeatures: mask(3) }],
    ['LOG_ALL', { features: mask(9, 30, 32) }],
  ])('needs %s', async (_, script) => {
    const { backend, frontend } = await open(script);
    await expect(frontend.dirtyLog.start()).rejects.toThrow('the back end has no dirty log');
    expect(backend.wire).toEqual([]);
  });

  it('is not on where the back end refuses it', async () => {
    const { backend, frontend } = await open();
    backend.rewrite({ refuse: ['SET_FEATURES'] });
    await expect(frontend.dirtyLog.start()).rejects.toThrow('SET_FEATURES was refused');
    expect(frontend.dirtyLog.isOn).toBe(false);
  });
});
