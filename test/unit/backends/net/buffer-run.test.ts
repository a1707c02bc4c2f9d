import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Vring } from '../../../../backends/core/vring.ts';
import { BufferRun } from '../../../../backends/net/buffer-run.ts';
import { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import type { DescriptorChain } from '../../../../protocol/virtqueue/chain.ts';
import { GuestRam } from '../../../support/frontend/guest-ram.ts';

let ram: GuestRam;
let memory: GuestMemory;
let calls: unknown[][];
let vring: Vring;

beforeEach(() => {
  ram = new GuestRam(0x1_0000);
  memory = new GuestMemory();
  memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
  calls = [];
  vring = {
    push: (...args: unknown[]) => calls.push(['push', ...args]),
    unpop: (...args: unknown[]) => calls.push(['unpop', ...args]),
  } as unknown as Vring;
});

afterEach(() => {
  memory.clear();
  ram.close();
});

/** A chain of pieces that lie 0x100 bytes apart from `at` on. */
const chain = (head: number, at: number, ...lengths: number[]): DescriptorChain => {
  const guest = lengths.map((_, i) => ram.guest(at + 0x100 * i));
  return { head, segments: lengths.length, address: guest, guest, length: lengths } as unknown as DescriptorChain;
};

/** Chains 5 (of 4 and 6 bytes), 2 (of 1 byte) and 9 (of 100 bytes). */
const filled = (limit = 8): BufferRun => {
  const run = new BufferRun(limit);
  run.add(chain(5, 0x1000, 4, 6));
  run.add(chain(2, 0x2000, 1));
  run.add(chain(9, 0x3000, 100));
  return run;
};

describe('a run of buffers', () => {
  it('counts chains, segments and bytes', () => {
    const run = filled();

    expect([run.chains, run.segments, run.bytes, run.firstChainBytes]).toEqual([3, 4, 111, 10]);
    expect([...run.length.subarray(0, 4)]).toEqual([4, 6, 1, 100]);
    expect(run.isFull).toBe(false);
  });

  it.each([
    [1, 1],
    [10, 1],
    [11, 2],
    [12, 3],
    [111, 3],
  ])('holds %i bytes in %i chains', (bytes, chains) => {
    expect(filled().chainsFor(bytes)).toBe(chains);
  });

  it('returns chains with what is in them, and gives the others back, last one first', () => {
    const run = filled();

    run.push(vring, 1, 7);
    run.giveBack(vring);

    expect(calls).toEqual([
      ['push', 5, 7],
      ['unpop', 9],
      ['unpop', 2],
    ]);
    run.giveBack(vring);
    expect(calls).toHaveLength(3);
  });

  it('fills all chains but the last', () => {
    filled().push(vring, 3, 12);

    expect(calls).toEqual([
      ['push', 5, 10],
      ['push', 2, 1],
      ['push', 9, 1],
    ]);
  });

  it('takes of a chain what it has room for, and is full then', () => {
    const run = filled(3);

    expect(run.isFull).toBe(true);
    expect([run.chains, run.segments, run.bytes]).toEqual([3, 3, 11]);
  });

  it('is empty again after clear', () => {
    const run = filled();
    run.push(vring, 2, 11);

    run.clear();
    run.add(chain(1, 0x1000, 3));
    run.giveBack(vring);

    expect([run.chains, run.bytes]).toEqual([0, 3]);
    expect(calls.at(-1)).toEqual(['unpop', 1]);
  });

  it.each([
    ['in one piece', 0, 0x1000, 0x1001],
    ['at the end of a piece', 2, 0x1002, 0x1003],
    ['across pieces', 3, 0x1003, 0x1100],
    ['across chains', 9, 0x1105, 0x2000],
    ['behind a chain of one byte', 11, 0x3000, 0x3001],
  ])('stores two bytes %s', (_, offset, low, high) => {
    filled().write16(memory, offset, 0x1234);

    expect([ram.bytes[low], ram.bytes[high]]).toEqual([0x34, 0x12]);
    expect(ram.bytes.reduce((sum, byte) => sum + byte, 0)).toBe(0x46);
  });

  it('is copied to and from across pieces', () => {
    const source = Uint8Array.from({ length: 50 }, (_, i) => i + 1);
    const run = filled();

    run.copyIn(memory, source);

    expect([...ram.bytes.subarray(0x1000, 0x1005)]).toEqual([1, 2, 3, 4, 0]);
    expect([...ram.bytes.subarray(0x1100, 0x1107)]).toEqual([5, 6, 7, 8, 9, 10, 0]);
    expect(ram.bytes[0x2000]).toBe(11);
    expect([...ram.bytes.subarray(0x3026, 0x3028)]).toEqual([50, 0]);
    const back = new Uint8Array(30);
    run.copyOut(memory, back);
    expect(back).toEqual(source.subarray(0, 30));
  });
});
