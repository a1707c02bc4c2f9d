import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createEventFd } from '../../../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../../../protocol/sys/pinned.ts';
import { VirtioMmioTransport } from '../../../../../vmm-client/vmm/virtio-mmio/transport.ts';
import { takeEvent } from '../../../../support/frontend/descriptors.ts';
import { countOwnFds } from '../../../../support/frontend/process-probe.ts';
import { type Bench, createBench, FakeDevice } from './fake-device.ts';

const QUEUE = { index: 0, size: 16, table: 0x1000, avail: 0x2000, used: 0x3000 };

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
  await bench.driver.negotiate();
  await bench.driver.setUpQueue(QUEUE);
  await bench.driver.start();
};

describe('what may not be written', () => {
  it.each([0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x60, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc])(
    'is ignored: a register that is only read, at %d',
    async (offset) => {
      const before = bench.driver.read(offset);
      await bench.driver.write(offset, 0x5555_5555);
      expect(bench.driver.read(offset)).toBe(before);
      expect(bench.transport.counters().ignored_writes).toBe(1);
    },
  );

  it.each([
    [0x70, 1],
    [0x70, 2],
    [0x71, 4],
    [0x72, 2],
  ])('is ignored: an access of the wrong size or place, at %d of %d bytes', async (offset, size) => {
    await bench.driver.write(offset, 1, size);
    expect(bench.driver.status).toBe(0);
  });

  it.each([0, 3, 129, 256, 0x8000_0000])('is ignored: a queue size of %d', async (size) => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue(QUEUE);
    await bench.driver.write(0x44, 0);
    await bench.driver.write(0x38, size);
    await bench.driver.write(0x44, 1);
    await bench.driver.start();
    expect(bench.device.activation?.queues[0]?.size).toBe(16);
  });

  it('is ignored: the set-up of a queue before FEATURES_OK, while it is ready, and after DRIVER_OK', async () => {
    await bench.driver.write(0x70, 3);
    await bench.driver.write(0x38, 8);
    await bench.driver.write(0x44, 1);
    expect(bench.driver.read(0x44)).toBe(0);
    await start();
    await bench.driver.write(0x30, 0);
    await bench.driver.write(0x80, 0x9000);
    await bench.driver.write(0x44, 0);
    await bench.driver.write(0x38, 8);
    await bench.driver.write(0x44, 1);
    expect(bench.driver.read(0x44)).toBe(0);
    expect(bench.device.activation?.queues).toMatchObject([{ size: 16, descriptorTable: 0x1000 }]);
  });

  it('is ignored: configuration outside of the space, or before FEATURES_OK', async () => {
    await bench.driver.write(0x100, 9, 1);
    await bench.driver.negotiate();
    await bench.driver.write(0x105, 9, 4);
    await bench.driver.write(0xffc, 9, 4);
    expect(bench.device.log).toEqual([]);
  });

  it('is ignored: a bit of Status that is taken back', async () => {
    await bench.driver.negotiate();
    await bench.driver.write(0x70, 1);
    expect(bench.driver.status).toBe(11);
  });

  it('is ignored: DRIVER_OK without FEATURES_OK', async () => {
    await bench.driver.write(0x70, 7);
    expect(bench.driver.status).toBe(3);
    expect(bench.device.log).toEqual([]);
  });
});

describe('activation', () => {
  it.each([
    ['without a size', { ...QUEUE, size: 0 }, /queue 0 is ready without a size/],
    ['with a table at an odd address', { ...QUEUE, table: 0x1008 }, /descriptor table at 0x1008/],
    ['with an available ring at an odd address', { ...QUEUE, avail: 0x2001 }, /available ring at 0x2001/],
    ['with a used ring at an odd address', { ...QUEUE, used: 0x3002 }, /used ring at 0x3002/],
  ])('fails for a queue %s, and the driver is told', async (_, queue, line) => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue(queue);
    expect(await bench.driver.start()).toBe(15 | 64);
    expect(bench.device.log).toEqual([]);
    expect(bench.lines.join()).toMatch(line);
    expect(takeEvent(bench.interrupt)).toBe(1n);
  });

  it('fails for an address that no machine has', async () => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue(QUEUE);
    await bench.driver.write(0x44, 0);
    await bench.driver.write(0x84, 0xffff_ffff);
    await bench.driver.write(0x44, 1);
    expect(await bench.driver.start()).toBe(15 | 64);
  });

  it('that fails in the device is told, and a reset makes another attempt possible', async () => {
    bench.device.failure = new Error('no such back end');
    await start();
    expect(bench.driver.status).toBe(15 | 64);
    expect(bench.lines).toEqual(['fake: the queues cannot be started: no such back end']);
    bench.device.failure = undefined;
    await bench.driver.reset();
    expect(bench.driver.status).toBe(0);
    await start();
    expect(bench.driver.status).toBe(15);
  });

  it('leaves out queues that are not ready', async () => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue({ ...QUEUE, index: 1 });
    await bench.driver.start();
    expect(bench.device.activation?.queues.map(({ index }) => index)).toEqual([1]);
  });

  it('shows used buffer notifications from its beginning to the reset', async () => {
    expect(bench.driver.interruptStatus).toBe(0);
    await start();
    await bench.driver.write(0x64, 1);
    expect(bench.driver.interruptStatus).toBe(1);
    await bench.driver.reset();
    expect(bench.driver.interruptStatus).toBe(0);
  });

  it('tells of a configuration that changed between DRIVER and DRIVER_OK', async () => {
    await bench.driver.negotiate();
    bench.device.config = Uint8Array.from([9, 9]);
    bench.device.listener?.configChanged();
    expect(takeEvent(bench.interrupt)).toBe(0n);
    await bench.driver.start();
    expect(bench.driver.interruptStatus).toBe(3);
    expect(takeEvent(bench.interrupt)).toBe(1n);
  });
});

describe('writes at the same time', () => {
  it('wait for an activation, in order', async () => {
    let open = () => {};
    bench.device.gate = new Promise((resolve) => {
      open = resolve;
    });
    await bench.driver.negotiate();
    await bench.driver.setUpQueue(QUEUE);
    const activation = bench.driver.start();
    const reset = bench.driver.reset();
    const acknowledge = bench.driver.write(0x70, 1);
    expect(bench.driver.status).toBe(11);
    open();
    await Promise.all([activation, reset, acknowledge]);
    expect(bench.device.log).toEqual(['activate', 'activated', 'reset', 'reset done']);
    expect(bench.driver.status).toBe(1);
  });

  it('wait for a reset of the machine, which waits for them', async () => {
    const activation = start();
    const reset = bench.transport.reset();
    await Promise.all([activation, reset]);
    await bench.transport.reset();
    expect(bench.driver.status).toBe(0);
    expect(bench.device.log.slice(-2)).toEqual(['reset', 'reset done']);
  });

  it('are done at once when nothing else is', () => {
    expect(bench.transport.write(0x70, 4, 1)).toBeUndefined();
    expect(bench.transport.write(0x70, 4, 0)).toBeUndefined();
  });

  it('a reset is over for the driver when it is over for the device', async () => {
    await start();
    let open = () => {};
    bench.device.gate = new Promise((resolve) => {
      open = resolve;
    });
    const reset = bench.driver.reset();
    expect(bench.driver.status).toBe(15);
    open();
    await reset;
    expect(bench.driver.status).toBe(0);
  });
});

describe('configuration', () => {
  it.each([
    [1, 'writeConfig 2: 170'],
    [2, 'writeConfig 2: 170 187'],
    [4, 'writeConfig 2: 170 187 204 221'],
  ])('is written in pieces of %d bytes', async (size, call) => {
    await bench.driver.negotiate();
    await bench.driver.write(0x102, 0xddcc_bbaa, size);
    expect(bench.device.log).toEqual([call]);
    expect(bench.driver.config(2, 1)[0]).toBe(0xaa);
    expect(bench.driver.interruptStatus).toBe(0);
  });
});

it('passes a notification on that the ioeventfd did not see, and counts it', async () => {
  await bench.driver.write(0x50, 0);
  expect(takeEvent(bench.kicks[0]!)).toBe(0n);
  await start();
  await bench.driver.write(0x50, 0);
  await bench.driver.write(0x50, 1);
  await bench.driver.write(0x50, 2);
  await bench.driver.write(0x50, 0xffff_ffff);
  expect(bench.kicks.map(takeEvent)).toEqual([1n, 0n]);
  expect(bench.transport.counters()).toMatchObject({
    notify_exits: 5,
    queue_0_notify_exits: 2,
    queue_1_notify_exits: 1,
    activations: 1,
    reconnects: 3,
  });
});

it('does not let a driver fill the log', async () => {
  for (let i = 0; i < 30; i += 1) {
    await bench.driver.write(0x70, 11);
    await bench.driver.reset();
  }
  expect(bench.lines.length).toBe(20);
  expect(bench.lines[19]).toContain('more of this device is not logged');
});

it('does nothing any more when closed', async () => {
  await start();
  bench.transport.close();
  await bench.driver.write(0x70, 0);
  bench.device.listener?.needsReset(new Error('gone'));
  // Magic, version 2, no device: the place is empty.
  expect([bench.driver.read(0), bench.driver.read(4)]).toEqual([0x74726976, 2]);
  expect(bench.page.bytes.slice(8).every((byte) => byte === 0)).toBe(true);
  expect(bench.device.log).toEqual(['activate', 'activated', 'close']);
});

it('leaves the page alone when a reset or an activation ends after it was closed', async () => {
  let open = () => {};
  const hold = (): void => {
    bench.device.gate = new Promise((resolve) => {
      open = resolve;
    });
  };
  await start();
  hold();
  const reset = bench.driver.reset();
  bench.transport.close();
  bench.page.bytes.fill(0xa5);
  open();
  await reset;
  expect(new Set(bench.page.bytes)).toEqual(new Set([0xa5]));

  bench.close();
  bench = createBench();
  hold();
  const started = start();
  await new Promise(setImmediate);
  bench.transport.close();
  bench.page.bytes.fill(0xa5);
  open();
  await started;
  expect(new Set(bench.page.bytes)).toEqual(new Set([0xa5]));
});

it('tells the driver of a device that broke while it was activated', async () => {
  let open = () => {};
  bench.device.gate = new Promise((resolve) => {
    open = resolve;
  });
  const started = start();
  await new Promise(setImmediate);
  bench.device.listener?.needsReset(new Error('a ring is broken'));
  open();
  await started;
  expect(bench.driver.status).toBe(15 | 64);
  expect(bench.driver.interruptStatus & 2).toBe(2);
  bench.device.gate = Promise.resolve();
  await bench.driver.reset();
  await start();
  expect(bench.driver.status).toBe(15);
});

it('keeps no descriptor when it cannot have all', () => {
  const before = countOwnFds();
  const [first, second] = [createEventFd(), createEventFd()];
  second.close();
  const options = { registers: bench.page, interrupt: bench.interrupt, kicks: [first, second], log: () => undefined };
  expect(() => new VirtioMmioTransport(new FakeDevice(), options)).toThrow(/closed/);
  first.close();
  expect(countOwnFds()).toBe(before);
});

it('has one kick descriptor a queue and one page', () => {
  const device = new FakeDevice();
  const { interrupt, kicks } = bench;
  const log = () => undefined;
  expect(() => new VirtioMmioTransport(device, { registers: allocatePinned(4096), interrupt, kicks: [], log })).toThrow(
    RangeError,
  );
  expect(() => new VirtioMmioTransport(device, { registers: allocatePinned(64), interrupt, kicks, log })).toThrow(
    RangeError,
  );
});
