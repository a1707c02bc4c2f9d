import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { VmError } from '../../../../../../vmm-client/vmm/errors.ts';
import { takeEvent } from '../../../../../support/frontend/descriptors.ts';
import { eventually } from '../../../../../support/frontend/process-probe.ts';
import { NEXT, WRITE } from '../../../../../support/frontend/raw-ring.ts';
import { EchoModel, LocalBench, RING_FEATURES } from './local-bench.ts';

const bench = new LocalBench([64, 16]);

const start = async (features = RING_FEATURES) => {
  const model = new EchoModel();
  const device = bench.open(model);
  await device.activate(bench.activation(features));
  return { model, device, ring: bench.guest.ring(), ram: bench.guest.ram };
};

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();

describe('a request', () => {
  it('is answered, and the driver told', async () => {
    const { model } = await start();
    expect(text(await bench.run(Buffer.from('what is it?'), 64))).toBe('what is it?');
    expect(model.calls).toEqual([`activated ${RING_FEATURES.toString(16)}`, 'serve 0 11 64']);
  });

  it('that was there before DRIVER_OK is answered without a kick', async () => {
    const model = new EchoModel();
    const device = bench.open(model);
    bench.request(0, Buffer.from('early'), 8);
    bench.guest.ring().publish(0);
    await device.activate(bench.activation());
    expect(await bench.guest.ring().take()).toEqual([{ id: 0, length: 5 }]);
  });

  it('in several buffers is one, and its answer goes to several', async () => {
    const { ring, ram } = await start();
    const at = bench.guest.dataStart;
    ram.bytes.set(Buffer.from('abcdef'), at);
    ring.setChain(0, [
      { address: ram.guest(at), length: 2 },
      { address: ram.guest(at + 2), length: 4 },
      { address: ram.guest(at + 100), length: 1, flags: WRITE },
      { address: ram.guest(at + 200), length: 3, flags: WRITE },
      { address: ram.guest(at + 300), length: 9, flags: WRITE },
    ]);
    expect(await ring.run(0)).toEqual([{ id: 0, length: 6 }]);
    expect(text(ram.bytes.slice(at + 100, at + 101))).toBe('a');
    expect(text(ram.bytes.slice(at + 200, at + 203))).toBe('bcd');
    expect(text(ram.bytes.slice(at + 300, at + 302))).toBe('ef');
  });

  it('that is too long is seen as far as 4096 bytes', async () => {
    const { model } = await start();
    expect((await bench.run(new Uint8Array(5000), 10)).length).toBe(10);
    expect(model.calls.at(-1)).toBe('serve 0 4096 10');
  });

  it.each([
    ['outside of RAM', { address: 0xffff_ffff_ffff_f000n, length: 16, flags: WRITE }],
    ['of two buffers in the wrong order', { address: 0x1_4010_0000, length: 16, flags: WRITE | NEXT, next: 1 }],
  ])('%s goes back unserved', async (_, descriptor) => {
    const { model, device, ring, ram } = await start();
    ring.setDescriptor(0, descriptor);
    ring.setDescriptor(1, { address: ram.guest(bench.guest.dataStart), length: 4 });
    expect(await ring.run(0)).toEqual([{ id: 0, length: 0 }]);
    expect(model.calls).toHaveLength(1);
    expect(device.counters()).toMatchObject({ chain_faults: 1 });
    expect(bench.complaints).toEqual([]);
  });

  it('is answered after those before it, also when answers take time', async () => {
    const { model, ring } = await start();
    let open = (): void => undefined;
    model.gate = new Promise((resolve) => {
      open = resolve;
    });
    for (const head of [0, 2, 4]) bench.request(head, Buffer.from(`${head}`), 1);
    ring.publish(4, 0, 2);
    ring.signal();
    await eventually(
      'calls',
      () => model.calls.length,
      (count) => count === 2,
    );
    expect(ring.waiting).toBe(0);
    open();
    expect((await ring.take(3)).map(({ id }) => id)).toEqual([4, 0, 2]);
  });

  it('does not wait for others of a ring that never ends: 32 are served in one turn of the event loop', async () => {
    const { model, ring } = await start();
    for (let head = 0; head < 64; head++) bench.request(head, new Uint8Array(0), 1);
    ring.publish(...Array.from({ length: 64 }, (_, head) => head));
    for (const gate of [undefined, Promise.resolve()]) {
      model.calls.length = 0;
      model.gate = gate;
      ring.signal();
      const seen: number[] = [];
      for (let at = 0; at < 64; ) {
        await turn();
        if (model.calls.length > at) seen.push(model.calls.length - at);
        at = model.calls.length;
      }
      expect(Math.max(...seen)).toBe(32);
      ring.harvest();
      ring.publish(...Array.from({ length: 64 }, (_, head) => head));
    }
  });

  it('is not called for where the driver wants no calls', async () => {
    const { ring } = await start(RING_FEATURES & ~(1n << 29n));
    ring.suppression = 'flags';
    bench.request(0, Buffer.from('x'), 1);
    ring.refuseCalls();
    ring.publish(0);
    ring.signal();
    await eventually(
      'used entries',
      () => ring.waiting,
      (count) => count === 1,
    );
    expect(takeEvent(ring.call)).toBe(0n);
  });
});

describe('a broken ring', () => {
  it('needs a reset, is told of once, and is good again after it', async () => {
    const { device, ring, ram } = await start();
    ring.setAvailIndex(1000);
    ring.signal();
    await eventually(
      'complaints',
      () => bench.complaints.length,
      (count) => count > 0,
    );
    ring.signal();
    await turn();
    expect(bench.complaints).toEqual(['queue 0 is broken: the available index jumped by more than the queue size']);
    await device.reset();
    ram.bytes.fill(0, ring.table, ring.end);
    ring.standAt(0);
    await device.activate(bench.activation());
    expect(text(await bench.run(Buffer.from('again'), 8))).toBe('again');
  });

  it('that is not in RAM is refused', async () => {
    const device = bench.open(new EchoModel());
    const { queues, ...rest } = bench.activation();
    const [queue] = queues;
    const wrong = { ...queue!, usedRing: 0x8000 };
    await expect(device.activate({ ...rest, queues: [wrong] })).rejects.toThrow(
      'queue 0: used ring (518 bytes at 0x8000) is not in one region of RAM',
    );
    await device.reset();
  });
});

describe('a queue of buffers', () => {
  const offer = (lengths: readonly number[]): void => {
    const { ram, dataStart } = bench.guest;
    const ring = bench.guest.ring(1);
    lengths.forEach((length, i) => {
      ring.setDescriptor(i, { address: ram.guest(dataStart + 100 * i), length, flags: WRITE });
    });
    ring.publish(...lengths.keys());
  };

  it('takes what the device has to say', async () => {
    const { model, ram } = await start();
    offer([24, 24]);
    expect(model.host?.send(1, Buffer.from('an event'))).toBe(true);
    expect(bench.guest.ring(1).harvest()).toEqual([{ id: 0, length: 8 }]);
    expect(text(ram.bytes.slice(bench.guest.dataStart, bench.guest.dataStart + 8))).toBe('an event');
    expect(takeEvent(bench.guest.ring().call)).toBe(1n);
  });

  it('drops it where there is no buffer, or one that is too small', async () => {
    const { model } = await start();
    expect(model.host?.send(1, new Uint8Array(8))).toBe(false);
    offer([4]);
    expect(model.host?.send(1, new Uint8Array(8))).toBe(false);
    expect(bench.guest.ring(1).harvest()).toEqual([{ id: 0, length: 0 }]);
  });

  it('drops it before the driver is there, and where it has no such queue', async () => {
    const model = new EchoModel();
    const device = bench.open(model);
    expect(model.host?.send(1, new Uint8Array(1))).toBe(false);
    await device.activate(bench.activation(RING_FEATURES, [0]));
    expect(model.host?.send(1, new Uint8Array(1))).toBe(false);
  });
});

describe('a queue that is stopped', () => {
  it('is left alone when its last request is answered', async () => {
    const { model, device, ring } = await start();
    let open = (): void => undefined;
    model.gate = new Promise((resolve) => {
      open = resolve;
    });
    bench.request(0, Buffer.from('a'), 1);
    bench.request(2, Buffer.from('b'), 1);
    ring.publish(0, 2);
    ring.signal();
    await eventually(
      'calls',
      () => model.calls.length,
      (count) => count === 2,
    );
    const stopped = device.stopQueue(0);
    await turn();
    expect(ring.waiting).toBe(0);
    open();
    await stopped;
    ring.signal();
    await turn();
    expect(ring.harvest()).toEqual([{ id: 0, length: 1 }]);
  });
});

describe('suspended', () => {
  it('a device touches nothing, and goes on where it was', async () => {
    const { model, device, ring } = await start();
    await bench.run(Buffer.from('1'), 1);
    expect(await device.suspend()).toEqual({
      queues: [
        { index: 0, base: 1 },
        { index: 1, base: 0 },
      ],
      model: { memory: 'nothing' },
    });
    bench.request(2, Buffer.from('2'), 1);
    ring.publish(2);
    ring.signal();
    await turn();
    expect([ring.waiting, model.host?.send(1, new Uint8Array(1))]).toEqual([0, false]);
    await device.resume();
    expect(await ring.take()).toEqual([{ id: 2, length: 1 }]);
  });

  it('it goes on elsewhere', async () => {
    const { model, device, ring } = await start();
    for (let i = 0; i < 3; i++) await bench.run(Buffer.from('x'), 1);
    model.memory = 'much';
    const state = await device.suspend();
    device.close();
    const other = new EchoModel();
    const heir = bench.open(other);
    await heir.restore(state, bench.activation());
    expect(other.memory).toBe('much');
    expect(other.calls).toEqual(['restore', `activated ${RING_FEATURES.toString(16)}`]);
    bench.request(4, Buffer.from('y'), 1);
    expect(await ring.run(4)).toEqual([{ id: 4, length: 1 }]);
  });

  it('one without a driver goes on without', async () => {
    const state = await bench.open(new EchoModel()).suspend();
    const heir = bench.open(new EchoModel());
    await heir.restore(state, undefined);
    await heir.activate(bench.activation());
    expect(text(await bench.run(Buffer.from('z'), 1))).toBe('z');
  });

  it.each([
    [undefined, 'echo: nothing: not an object'],
    [{ queues: 1 }, 'echo: queues: 1: not a list'],
    [{ queues: [{ index: 2, base: 0 }] }, 'echo: index of a queue: 2: not a whole number between 0 and 1'],
    [{ queues: [{ index: 0, base: 65536 }] }, 'echo: base of queue 0: 65536: not a whole number between 0 and 65535'],
    [{ queues: [1, 2, 3] }, 'echo: queues: 3 elements, at most 2 are possible'],
  ])('a state that is none is refused: %j', async (state, complaint) => {
    const refused = bench.open(new EchoModel()).restore(state, bench.activation());
    await expect(refused).rejects.toThrow(new VmError(complaint));
  });
});

describe('the dirty log', () => {
  it('has the used ring and what answers wrote', async () => {
    const { device, ram, ring } = await start();
    await bench.run(Buffer.from('before'), 8);
    expect(device.takeDirty()).toEqual([]);
    await device.startDirtyLog();
    const at = bench.request(4, Buffer.from('logged'), 8);
    await ring.run(4);
    const page = (offset: number): number => ram.guest(offset) - (ram.guest(offset) % 4096);
    const dirty = device.takeDirty();
    const has = (offset: number): boolean =>
      dirty.some(({ guestAddress, length }) => page(offset) >= guestAddress && page(offset) < guestAddress + length);
    expect([has(ring.used), has(at)]).toEqual([true, true]);
    expect(dirty.reduce((sum, { length }) => sum + length, 0)).toBe(8192);
    expect(device.takeDirty()).toEqual([]);
    await device.stopDirtyLog();
    await ring.run(4);
    expect(device.takeDirty()).toEqual([]);
  });

  it('has nothing of memory that was taken from under the ring', async () => {
    const { device } = await start();
    bench.guest.deviceMemory.memory.clear();
    await device.startDirtyLog();
    await device.suspend();
    // Looks at the ring, and writes there that it did.
    await device.resume();
    expect(device.takeDirty()).toEqual([]);
  });
});

it('the rest of the contract is passed on', async () => {
  const { model, device } = await start();
  await device.writeConfig(3, Uint8Array.of(7), 0n);
  expect([...device.config]).toEqual([0, 0, 0, 7, 0, 0, 0, 0]);
  model.host?.configChanged();
  expect(bench.complaints).toEqual(['config changed']);
  const [region] = bench.guest.deviceMemory.regions;
  await device.addMemory(region!);
  await device.removeMemory(region!);
  await device.reset();
  device.close();
  expect(model.calls.slice(1)).toEqual(['memoryAdded', 'memoryRemoved', 'reset', 'close']);
  expect([device.name, device.deviceId, device.features]).toEqual(['echo', 99, RING_FEATURES | (1n << 5n)]);
});
