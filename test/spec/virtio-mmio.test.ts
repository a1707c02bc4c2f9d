/** VIRTIO 1.3, 4.2 Virtio Over MMIO and 2.1 Device Status Field: one test a rule for the device's side, literal offsets. */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { takeEvent } from '../support/frontend/descriptors.ts';
import { type Bench, createBench, FEATURES } from '../unit/vmm-client/vmm/virtio-mmio/fake-device.ts';

let bench: Bench;
beforeEach(() => {
  bench = createBench();
});
afterEach(() => bench.close());

const QUEUE = { index: 0, size: 16, table: 0x1000, avail: 0x2000, used: 0x3000 };

/** Through to DRIVER_OK with one queue. */
const start = async (): Promise<void> => {
  await bench.driver.negotiate();
  await bench.driver.setUpQueue(QUEUE);
  expect(await bench.driver.start()).toBe(15);
};

describe('4.2.2 MMIO Device Register Layout', () => {
  it.each([
    ['MagicValue is 0x74726976', 0x000, 0x74726976],
    ['Version is 2', 0x004, 2],
    ['DeviceID is that of the device', 0x008, 2],
    ['SHMLenLow of a region that is not there is -1', 0x0b0, 0xffffffff],
    ['SHMLenHigh of a region that is not there is -1', 0x0b4, 0xffffffff],
    ['SHMBaseLow of a region that is not there is all ones', 0x0b8, 0xffffffff],
    ['SHMBaseHigh of a region that is not there is all ones', 0x0bc, 0xffffffff],
    ['QueueReset is 0 without RING_RESET', 0x0c0, 0],
    ['Status is 0 at first', 0x070, 0],
    ['InterruptStatus is 0 at first', 0x060, 0],
  ])('%s', (_, offset, value) => {
    expect(bench.driver.read(offset)).toBe(value);
    expect(bench.transport.read(offset, 4)).toBe(value);
  });

  it.each([
    [0, 0x3000_0060],
    [1, 1],
    [2, 0],
    [0xffffffff, 0],
  ])('DeviceFeatures has bits 32*Sel to 32*Sel+31: Sel %d', async (sel, bits) => {
    await bench.driver.write(0x14, sel);
    expect(bench.driver.read(0x10)).toBe(bits);
  });

  it.each([
    [0, 128],
    [1, 64],
    [2, 0],
    [0xffffffff, 0],
  ])('QueueNumMax is the size of the selected queue, 0 where there is none: queue %d', async (index, max) => {
    await bench.driver.write(0x30, index);
    expect(bench.driver.read(0x34)).toBe(max);
  });

  it('QueueReady reads as the last value written, for the selected queue', async () => {
    await bench.driver.negotiate();
    await bench.driver.write(0x44, 1);
    expect(bench.driver.read(0x44)).toBe(1);
    await bench.driver.write(0x30, 1);
    expect(bench.driver.read(0x44)).toBe(0);
    await bench.driver.write(0x30, 0);
    await bench.driver.write(0x44, 0);
    expect(bench.driver.read(0x44)).toBe(0);
  });

  it('queue addresses are 64 bits in two halves', async () => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue({ ...QUEUE, table: 0x11_0000_1000, avail: 0x12_0000_2000, used: 0x13_0000_3000 });
    await bench.driver.start();
    expect(bench.device.activation?.queues).toMatchObject([
      { index: 0, size: 16, descriptorTable: 0x11_0000_1000, availRing: 0x12_0000_2000, usedRing: 0x13_0000_3000 },
    ]);
  });

  it('an event has its bit in InterruptStatus until it is acknowledged', async () => {
    await start();
    bench.device.config = Uint8Array.from([9, 2, 3, 4, 5, 6, 7, 8]);
    bench.device.listener?.configChanged();
    expect(bench.driver.interruptStatus & 2).toBe(2);
    await bench.driver.write(0x64, 1);
    expect(bench.driver.interruptStatus & 2).toBe(2);
    await bench.driver.write(0x64, 2);
    expect(bench.driver.interruptStatus & 2).toBe(0);
  });

  it('reset clears InterruptStatus and QueueReady', async () => {
    await start();
    bench.device.config = Uint8Array.from([9]);
    bench.device.listener?.configChanged();
    await bench.driver.reset();
    expect(bench.driver.interruptStatus).toBe(0);
    for (const index of [0, 1]) {
      await bench.driver.write(0x30, index);
      expect(bench.driver.read(0x44)).toBe(0);
    }
  });

  it('ConfigGeneration changes with the configuration space, and only then', async () => {
    const before = bench.driver.generation;
    bench.device.listener?.configChanged();
    expect(bench.driver.generation).toBe(before);
    bench.device.config = Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 9]);
    bench.device.listener?.configChanged();
    expect(bench.driver.generation).not.toBe(before);
    expect([...bench.driver.config(0, 8)]).toEqual([1, 2, 3, 4, 5, 6, 7, 9]);
  });

  it('a queue whose QueueReady became 0 is not accessed any more', async () => {
    await start();
    await bench.driver.write(0x30, 0);
    await bench.driver.write(0x44, 0);
    expect(bench.device.log).toEqual(['activate', 'activated', 'stopQueue 0']);
    expect(bench.driver.read(0x44)).toBe(0);
  });

  it('the configuration space starts at 0x100 and is accessed with byte alignment', () => {
    expect([0, 1, 2, 3].map((i) => bench.transport.read(0x100 + i, 1))).toEqual([1, 2, 3, 4]);
    expect(bench.transport.read(0x102, 2)).toBe(0x0403);
    expect(bench.transport.read(0x104, 4)).toBe(0x0807_0605);
  });
});

describe('4.2.3.4 Notifications From The Device', () => {
  it('the interrupt is asserted for a change of the configuration', async () => {
    await start();
    bench.device.config = Uint8Array.from([9]);
    bench.device.listener?.configChanged();
    expect(takeEvent(bench.interrupt)).toBe(1n);
  });
});

describe('4.2.3.3 Available Buffer Notifications', () => {
  it.each([0, 1])('the value written to QueueNotify is the queue: %d', async (index) => {
    await bench.driver.negotiate();
    await bench.driver.setUpQueue(QUEUE);
    await bench.driver.setUpQueue({ ...QUEUE, index: 1 });
    await bench.driver.start();
    await bench.driver.write(0x50, index);
    expect(bench.kicks.map(takeEvent)).toEqual([index === 0 ? 1n : 0n, index === 1 ? 1n : 0n]);
  });
});

describe('2.1 Device Status Field, 2.2 Feature Bits', () => {
  it.each([
    ['all that is offered', FEATURES, 11],
    ['VERSION_1 alone', 1n << 32n, 11],
    ['one that is not offered', (1n << 32n) | 1n, 3],
    ['one beyond the first word that is not offered', (1n << 32n) | (1n << 40n), 3],
    ['without VERSION_1', 0x20n, 3],
    ['none', 0n, 3],
  ])('FEATURES_OK is set only for features that are offered: %s', async (_, features, status) => {
    await bench.driver.write(0x70, 1);
    await bench.driver.write(0x70, 3);
    await bench.driver.accept(features);
    await bench.driver.write(0x70, 11);
    expect(bench.driver.status).toBe(status);
  });

  it('features in words that the device has not are refused', async () => {
    await bench.driver.write(0x70, 3);
    await bench.driver.accept(1n << 32n);
    await bench.driver.write(0x24, 2);
    await bench.driver.write(0x20, 1);
    await bench.driver.write(0x70, 11);
    expect(bench.driver.status).toBe(3);
  });

  it('features are settled at FEATURES_OK', async () => {
    await bench.driver.negotiate(1n << 28n);
    await bench.driver.accept(FEATURES);
    await bench.driver.start();
    expect(bench.device.activation?.features).toBe((1n << 32n) | (1n << 28n));
  });

  it('writing 0 resets: status 0, no queue, no features', async () => {
    await start();
    await bench.driver.reset();
    expect(bench.driver.status).toBe(0);
    expect(bench.device.log).toEqual(['activate', 'activated', 'reset', 'reset done']);
    await bench.driver.write(0x70, 11);
    expect(bench.driver.status).toBe(3);
  });

  it('after DEVICE_NEEDS_RESET a driver that is OK gets a configuration change notification', async () => {
    await start();
    bench.device.listener?.needsReset(new Error('gone'));
    expect(bench.driver.status).toBe(15 | 64);
    expect(bench.driver.interruptStatus & 2).toBe(2);
    expect(takeEvent(bench.interrupt)).toBe(1n);
  });

  it('a driver cannot set DEVICE_NEEDS_RESET', async () => {
    await bench.driver.write(0x70, 64 | 1);
    expect(bench.driver.status).toBe(1);
  });
});
