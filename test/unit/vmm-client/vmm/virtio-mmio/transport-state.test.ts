/** A transport that is suspended, and another one that goes on in its place: what the driver wrote, and nothing lost. */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VmError } from '../../../../../vmm-client/vmm/errors.ts';
import { decodeState, encodeState } from '../../../../../vmm-client/vmm/state/codec.ts';
import type { TransportState } from '../../../../../vmm-client/vmm/virtio-mmio/transport.ts';
import { takeEvent } from '../../../../support/frontend/descriptors.ts';
import { countOwnFds } from '../../../../support/frontend/process-probe.ts';
import { type Bench, createBench } from './fake-device.ts';

const QUEUE = { index: 1, size: 16, table: 0x1_0000_1000, avail: 0x2002, used: 0x3004 };
/** VERSION_1, EVENT_IDX. */
const ACCEPTED = (1n << 32n) | (1n << 29n);

let bench: Bench;
let fdsBefore: number;
beforeEach(() => {
  fdsBefore = countOwnFds();
  bench = createBench();
});
afterEach(() => {
  bench.close();
  expect(countOwnFds()).toBe(fdsBefore);
});

const start = async (): Promise<void> => {
  await bench.driver.negotiate(1n << 29n);
  await bench.driver.setUpQueue(QUEUE);
  await bench.driver.start();
};

/** Takes the state, as bytes, and goes on with a new transport in the same place. */
const move = async (): Promise<unknown> => {
  const state = decodeState(encodeState(await bench.transport.suspend()));
  bench.close();
  bench = createBench();
  await bench.transport.restore(state);
  return state;
};

const registers = (): number[] => Array.from({ length: 1024 }, (_, word) => bench.driver.read(4 * word));

describe('what the driver has set up', () => {
  it('is there again at every stage of its way, and the driver goes on', async () => {
    const steps = [
      [0x70, 1],
      [0x70, 3],
      [0x14, 1],
      [0x24, 1],
      [0x20, 1],
      [0x24, 0],
      [0x20, 1 << 29],
      [0x70, 11],
      [0x30, 1],
      [0x38, 16],
      [0x80, 0x1000],
      [0x84, 1],
      [0x90, 0x2002],
      [0xa0, 0x3004],
      [0x44, 1],
      [0x70, 15],
    ] as const;
    for (const [offset, value] of steps) {
      const before = registers();
      await move();
      expect(registers()).toEqual(before);
      expect(takeEvent(bench.interrupt)).toBe(0n);
      await bench.driver.write(offset, value);
    }
    expect(bench.driver.status).toBe(15);
    expect(bench.device.activation).toMatchObject({
      features: ACCEPTED,
      queues: [{ index: 1, size: 16, descriptorTable: 0x1_0000_1000, availRing: 0x2002, usedRing: 0x3004 }],
    });
  });

  it('is what the device gets, which goes on with its own state', async () => {
    await start();
    takeEvent(bench.interrupt);
    await move();
    expect(bench.device.log).toEqual(['restore']);
    expect(bench.device.restored).toEqual({ mark: 'of the fake', config: bench.device.config });
    expect(bench.device.activation).toMatchObject({ features: ACCEPTED, queues: [{ index: 1, size: 16 }] });
    expect(bench.driver.status).toBe(15);
    // The driver looks once, and so does the device: at the queue that is ready.
    expect(takeEvent(bench.interrupt)).toBe(1n);
    expect(bench.driver.interruptStatus).toBe(1);
    expect(bench.kicks.map((kick) => takeEvent(kick))).toEqual([0n, 1n]);
    await bench.driver.reset();
    expect(bench.device.log).toEqual(['restore', 'reset', 'reset done']);
  });

  it('is untouched where the same transport goes on', async () => {
    await start();
    const before = registers();
    await bench.transport.suspend();
    await bench.transport.resume();
    expect(registers()).toEqual(before);
    expect(bench.device.log).toEqual(['activate', 'activated', 'suspend', 'resume']);
  });
});

describe('a configuration space', () => {
  it('that is another one now is a change that the driver is told of', async () => {
    await start();
    const state = (await bench.transport.suspend()) as TransportState;
    const generation = bench.driver.generation;
    bench.close();
    bench = createBench();
    bench.device.config = Uint8Array.of(9, 9, 9);
    await bench.transport.restore(state);
    expect([...bench.driver.config(0, 4)]).toEqual([9, 9, 9, 0]);
    expect(bench.driver.generation).not.toBe(generation);
    expect(bench.driver.interruptStatus).toBe(3);
    expect(takeEvent(bench.interrupt)).toBe(2n);
  });

  it('that changed before DRIVER_OK is told at DRIVER_OK, here as there', async () => {
    await bench.driver.negotiate();
    bench.device.config = Uint8Array.from([9, 9]);
    bench.device.listener?.configChanged();
    const state = (await bench.transport.suspend()) as TransportState;
    bench.close();
    bench = createBench();
    bench.device.config = Uint8Array.from([9, 9]);
    await bench.transport.restore(state);
    await bench.driver.start();
    expect(bench.driver.interruptStatus).toBe(3);
  });
});

describe('a device', () => {
  it('is suspended when what the driver wrote is done', async () => {
    let open = () => {};
    bench.device.gate = new Promise((resolve) => {
      open = resolve;
    });
    const started = start();
    await new Promise(setImmediate);
    const suspended = bench.transport.suspend();
    await new Promise(setImmediate);
    expect(bench.device.log).toEqual(['activate']);
    open();
    await started;
    const { registers: saved } = (await suspended) as TransportState;
    expect(bench.device.log).toEqual(['activate', 'activated', 'suspend']);
    expect(saved.status).toBe(15);
  });

  it('that cannot be suspended says so, and its driver goes on', async () => {
    await start();
    bench.device.failure = new VmError('fake: not now');
    await expect(bench.transport.suspend()).rejects.toThrow('fake: not now');
    bench.device.failure = undefined;
    await bench.driver.reset();
    await start();
    expect(bench.driver.status).toBe(15);
  });

  it('that does not go on needs a reset', async () => {
    await start();
    await bench.transport.suspend();
    bench.device.failure = new VmError('fake: gone');
    await bench.transport.resume();
    expect(bench.driver.status).toBe(15 | 64);
    expect(bench.lines.join()).toContain('fake: gone');
  });

  it('that needs a reset needs one here too, even where its queues can be none', async () => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue({ ...QUEUE, table: 0x1008 });
    expect(await bench.driver.start()).toBe(15 | 64);
    await move();
    expect(bench.driver.status).toBe(15 | 64);
    expect(bench.device.activation).toBeUndefined();
    await bench.driver.reset();
    expect(bench.driver.status).toBe(0);
    await start();
    expect(bench.driver.status).toBe(15);
  });

  it('has its dirty log and its memory passed on, one after the other', async () => {
    const { transport, device } = bench;
    const region = { region: { guestAddress: 0, size: 4096, userAddress: 0, mmapOffset: 0 }, memfd: bench.interrupt };
    await Promise.all([transport.startDirtyLog(), transport.addMemory(region), transport.removeMemory(region)]);
    expect(transport.takeDirty()).toEqual([{ guestAddress: 0x5000, length: 4096 }]);
    await transport.stopDirtyLog();
    expect(device.log).toEqual(['startDirtyLog', 'addMemory 4096', 'removeMemory 4096', 'stopDirtyLog']);
  });
});

describe('a device that is unplugged', () => {
  it('is reset, and its place is empty, while the driver writes on', async () => {
    await start();
    const unplugged = bench.transport.unplug();
    const written = bench.driver.write(0x70, 0);
    void bench.driver.write(0x70, 1);
    await Promise.all([unplugged, written]);
    expect(bench.device.log).toEqual(['activate', 'activated', 'reset', 'reset done', 'close']);
    // Magic, version, no device, nothing else.
    expect(registers()).toEqual([0x74726976, 2, ...Array.from({ length: 1022 }, () => 0)]);
    await bench.driver.write(0x70, 1);
    expect(bench.driver.status).toBe(0);
  });

  it('is only closed where nobody uses it', async () => {
    await bench.driver.negotiate();
    await bench.transport.unplug();
    await bench.transport.unplug();
    expect(bench.device.log).toEqual(['close']);
  });
});

describe('a state that cannot be', () => {
  const edit = (state: TransportState, change: (registers: Record<string, unknown>) => void): TransportState => {
    const copy = structuredClone(state);
    change(copy.registers as unknown as Record<string, unknown>);
    return copy;
  };
  const features = (accepted: bigint) => ({ accepted, beyond: false, offeredSelector: 0, acceptedSelector: 0 });
  const queue = (state: Record<string, unknown>, index: number) => (state.queues as Record<string, unknown>[])[index]!;

  it.each([
    ['of another device', (r) => (r.deviceId = 1), 'it is of a device of type 1, here is one of type 2'],
    ['of a queue more', (r) => (r.queues as unknown[]).push({}), 'queues: 3 in the state, the device here has 2'],
    ['of a longer queue', (r) => (queue(r, 0).maxSize = 256), 'it had up to 256 entries, it has up to 128 here'],
    ['of a queue that is too long', (r) => (queue(r, 1).size = 128), 'size: 128: not a whole number between 0 and 64'],
    ['of a queue of an odd size', (r) => (queue(r, 1).size = 7), 'size: 7 is not a power of two'],
    ['of a queue at an odd place', (r) => (queue(r, 1).usedRing = 0x3002n), 'used ring at 0x3002, a multiple of 4'],
    ['of a queue without a size', (r) => (queue(r, 0).ready = true), 'queue 0 is ready without a size'],
    ['with an address of 65 bits', (r) => (queue(r, 1).usedRing = 1n << 64n), 'not a number of 64 bits'],
    [
      'with features that are not here',
      (r) => (r.features = features(ACCEPTED | (1n << 9n))),
      'the driver uses features that its back end here lacks (0x200)',
    ],
    ['without VERSION_1', (r) => (r.features = features(0n)), "the driver's features cannot be: all without VERSION_1"],
    ['with DRIVER_OK alone', (r) => (r.status = 7), 'DRIVER_OK without FEATURES_OK'],
    ['with a status that is none', (r) => (r.status = 15 | 16), 'there is no status 0x1f'],
    ['with a status that is text', (r) => (r.status = '15'), 'status: "15": not a whole number between 0 and 207'],
    [
      'with a third interrupt',
      (r) => (r.interruptStatus = 4),
      'interruptStatus: 4: not a whole number between 0 and 3',
    ],
    ['with too much configuration', (r) => (r.config = new Uint8Array(4000)), 'config: 4000 bytes are no space'],
    ['without configuration', (r) => (r.config = undefined), 'config: nothing: not bytes'],
  ] as [string, (r: Record<string, unknown>) => unknown, string][])('%s is refused', async (_, change, sentence) => {
    await start();
    const state = (await bench.transport.suspend()) as TransportState;
    bench.close();
    bench = createBench();
    const hostile = edit(state, (r) => void change(r));
    const failure = await bench.transport.restore(hostile).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(VmError);
    expect((failure as Error).message).toContain('state of fake');
    expect((failure as Error).message).toContain(sentence);
    expect(bench.device.log).toEqual([]);
  });

  it.each([[undefined], [null], [[]], ['text'], [{}], [{ registers: {} }], [{ registers: [], device: {} }]])(
    'is refused: %j',
    async (state) => {
      await expect(bench.transport.restore(state)).rejects.toThrow(VmError);
    },
  );
});
