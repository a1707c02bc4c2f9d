import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { MachineWatch } from '../../../../../vmm-client/vmm/queues/machine-watch.ts';
import type { ObservedQueue, ObservedSlot } from '../../../../../vmm-client/vmm/queues/observed.ts';
import type { QueueReport } from '../../../../../vmm-client/vmm/queues/queue-report.ts';
import { QueueWatch } from '../../../../../vmm-client/vmm/queues/queue-watch.ts';

const RAM_BYTES = 0x1_0000;
const USER = 0x7000_0000;
const DRIVER_OK = 0xf;
const ACCESS_PLATFORM = 1n << 33n;
const RING_PACKED = 1n << 34n;

/** RAM from address 0 on, as GuestMemory gives it. */
class FakeRam {
  readonly view = new DataView(new ArrayBuffer(RAM_BYTES));
  offset = 0;
  reads = 0;

  locate(address: number, length: number): boolean {
    this.reads += 1;
    if (address + length > RAM_BYTES) return false;
    this.offset = address;
    return true;
  }
}

/** A disk with one queue, whose rings are at 0x1000 and 0x2000 until a test moves them. */
class Rig {
  readonly ram = new FakeRam();
  deviceId = 2;
  features = 1n << 32n;
  status = DRIVER_OK;
  activations = 1;
  backendConnected: boolean | undefined = true;
  queue: ObservedQueue = { index: 0, size: 128, started: true, availRing: 0x1000, usedRing: 0x2000 };
  iommu: ObservedSlot['iommu'];
  readonly watch: QueueWatch;

  constructor() {
    const region = { guestAddress: 0, size: RAM_BYTES, userAddress: USER };
    this.watch = new QueueWatch({ ram: { memory: this.ram, regions: [{ region }] }, observe: () => [this.#slot()] });
  }

  #slot(): ObservedSlot {
    const { deviceId, features, status, activations, backendConnected, queue, iommu } = this;
    const device = { deviceId, features, status, activations, backendConnected, queues: [queue] };
    return { id: '_disk0', slot: 3, device, iommu };
  }

  /** Indexes are behind the flags of each ring (VIRTIO 1.3, 2.7.6, 2.7.8). */
  set(available: number, used: number, availRing = 0x1000, usedRing = 0x2000): void {
    this.ram.view.setUint16(availRing + 2, available & 0xffff, true);
    this.ram.view.setUint16(usedRing + 2, used & 0xffff, true);
  }

  async report(): Promise<QueueReport> {
    const answer = this.watch.report();
    await vi.advanceTimersByTimeAsync(250);
    return (await answer).devices[0]?.queues[0] as QueueReport;
  }

  /** Goes on for `ms`, in steps of 5 ms in which `step` can change the indexes. */
  async run(ms: number, step: () => void): Promise<void> {
    for (let at = 0; at < ms; at += 5) {
      step();
      await vi.advanceTimersByTimeAsync(5);
    }
  }
}

describe('The watch of queues', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('finds rate and latency of a busy queue', async () => {
    const rig = new Rig();
    let used = 0;
    const first = rig.watch.report();
    await rig.run(1000, () => {
      used += 10;
      rig.set(used + 32, used);
    });
    await first;
    const queue = await rig.report();
    expect(queue).toMatchObject({ name: 'request 0', role: 'requests', state: 'busy', size: 128, in_flight: 32 });
    expect(queue.exact).toBe(true);
    // 2000 a second until a quarter of the window ago, when this test stopped to move the indexes.
    expect(queue.rate).toBeGreaterThan(1400);
    expect(queue.rate).toBeLessThan(2100);
    expect(queue.latency_us).toBeGreaterThan(15_000);
  });

  it('says that a queue is stuck when requests wait for two seconds', async () => {
    const rig = new Rig();
    rig.set(5, 2);
    expect(await rig.report()).toMatchObject({ state: 'waiting', in_flight: 3, rate: 0, latency_us: null });
    await rig.run(1500, () => undefined);
    expect(await rig.report()).toMatchObject({ state: 'waiting' });
    await rig.run(500, () => undefined);
    const queue = await rig.report();
    expect(queue.state).toBe('stuck');
    expect(queue.waiting_ms).toBeGreaterThanOrEqual(2000);
    rig.set(5, 5);
    expect(await rig.report()).toMatchObject({ state: 'busy', in_flight: 0, waiting_ms: 0 });
  });

  it('does not take buffers that wait for packets for a stuck queue', async () => {
    const rig = new Rig();
    rig.deviceId = 1;
    rig.set(128, 0);
    await rig.report();
    await rig.run(3000, () => undefined);
    const idle = await rig.report();
    expect(idle).toMatchObject({ name: 'receive 0', role: 'buffers', state: 'idle', in_flight: 128, waiting_ms: 0 });
    expect(idle.latency_us).toBeNull();
    rig.set(128, 128);
    expect(await rig.report()).toMatchObject({ state: 'busy', in_flight: 0 });
    await rig.run(1200, () => undefined);
    expect(await rig.report()).toMatchObject({ state: 'empty' });
  });

  it('begins anew with a ring that was moved or started again', async () => {
    const rig = new Rig();
    rig.set(1000, 1000);
    await rig.report();
    // After a reset the indexes begin at 0; taken for progress that would be 64,536 chains.
    rig.activations = 2;
    rig.set(4, 0);
    expect(await rig.report()).toMatchObject({ used: 0, rate: 0, in_flight: 4, state: 'waiting' });
    rig.queue = { ...rig.queue, availRing: 0x3000, usedRing: 0x4000 };
    rig.set(77, 70, 0x3000, 0x4000);
    expect(await rig.report()).toMatchObject({ used: 0, rate: 0, in_flight: 7 });
  });

  it('says why it does not know', async () => {
    const rig = new Rig();
    rig.queue = { ...rig.queue, started: false };
    expect(await rig.report()).toMatchObject({ state: 'off', exact: true });
    rig.queue = { ...rig.queue, started: true, usedRing: 0xffff_0000 };
    expect(await rig.report()).toMatchObject({
      state: 'unknown',
      exact: false,
      reason: 'its used ring at 0xffff0000 is not in RAM',
    });
    rig.features |= RING_PACKED;
    expect(await rig.report()).toMatchObject({ state: 'unknown', reason: 'a packed ring has no indexes that tell' });
  });

  it('follows the IOMMU to a ring', async () => {
    const rig = new Rig();
    rig.features |= ACCESS_PLATFORM;
    rig.set(9, 3);
    expect(await rig.report()).toMatchObject({
      state: 'unknown',
      reason: 'its available ring at 0x1000 is not mapped by the IOMMU',
    });
    // I/O addresses from 0xa000_0000 on are RAM from 0 on.
    rig.queue = { ...rig.queue, availRing: 0xa000_1000, usedRing: 0xa000_2000 };
    rig.iommu = { find: () => ({ iova: 0xa000_0000, size: 0x8000, userAddress: USER }) };
    expect(await rig.report()).toMatchObject({ in_flight: 6, exact: true });
    // What is mapped to where no RAM is.
    rig.iommu = { find: () => ({ iova: 0xa000_0000, size: 0x8000, userAddress: 0x10 }) };
    expect(await rig.report()).toMatchObject({ state: 'unknown' });
  });

  it('tells the state of device and back end', async () => {
    const rig = new Rig();
    const describeDevice = async () => {
      await rig.report();
      const answer = rig.watch.report();
      await vi.advanceTimersByTimeAsync(250);
      const [device] = (await answer).devices;
      return {
        id: device?.id,
        slot: device?.slot,
        kind: device?.kind,
        status: device?.status,
        backend: device?.backend,
      };
    };
    const disk = { id: '_disk0', slot: 3, kind: 'disk' };
    expect(await describeDevice()).toEqual({ ...disk, status: 'running', backend: 'connected' });
    rig.status = 0x4f;
    rig.backendConnected = false;
    expect(await describeDevice()).toEqual({ ...disk, status: 'needs reset', backend: 'away' });
    rig.status = 0x8f;
    rig.backendConnected = undefined;
    expect(await describeDevice()).toEqual({ ...disk, status: 'failed', backend: null });
    rig.status = 3;
    expect(await describeDevice()).toMatchObject({ status: 'driver' });
    rig.status = 0;
    expect(await describeDevice()).toMatchObject({ status: 'down' });
  });

  it('looks every 10 ms while somebody asks, and no more 5 s after the last time', async () => {
    const rig = new Rig();
    await rig.report();
    const before = rig.ram.reads;
    await rig.run(1000, () => undefined);
    // Two reads a look.
    expect(rig.ram.reads - before).toBeGreaterThanOrEqual(190);
    expect(rig.ram.reads - before).toBeLessThanOrEqual(204);
    await rig.run(4500, () => undefined);
    const after = rig.ram.reads;
    await rig.run(1000, () => undefined);
    expect(rig.ram.reads).toBe(after);
    // And begins again, with nothing of before.
    rig.set(10, 10);
    expect(await rig.report()).toMatchObject({ used: 0, state: 'idle' });
  });

  it('answers after its end, and looks no more', async () => {
    const rig = new Rig();
    rig.watch.close();
    expect(await rig.report()).toBeUndefined();
    await rig.run(100, () => undefined);
    expect(rig.ram.reads).toBe(0);
  });

  it('answers for a machine that ends meanwhile', async () => {
    const parts = {
      ram: { memory: new FakeRam(), regions: [] },
      slots: { observe: () => [] },
      processors: { vcpus: [] },
    };
    let isThere = true;
    const watch = new MachineWatch(() => {
      if (isThere) return parts;
      throw new Error('the machine is not there');
    });
    const answer = watch.report();
    watch.close();
    isThere = false;
    await vi.advanceTimersByTimeAsync(250);
    expect(await answer).toMatchObject({ devices: [], vcpus: [] });
  });
});
