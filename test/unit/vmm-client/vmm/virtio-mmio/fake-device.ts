/** A device without a back end, behind a transport: for tests of the registers. */

import { createEventFd, type OwnedFd } from '../../../../../protocol/sys/owned-fd.ts';
import { allocatePinned, type PinnedMemory } from '../../../../../protocol/sys/pinned.ts';
import type { DirtyRange } from '../../../../../vmm-client/frontend/dirty-bitmap.ts';
import type { SharedRegion } from '../../../../../vmm-client/frontend/hand-over.ts';
import type {
  Activation,
  DeviceState,
  VirtioDevice,
  VirtioDeviceListener,
} from '../../../../../vmm-client/vmm/devices/virtio-device.ts';
import { VirtioMmioTransport } from '../../../../../vmm-client/vmm/virtio-mmio/transport.ts';
import { MmioDriver } from '../../../../support/frontend/mmio-driver.ts';

/** VERSION_1, EVENT_IDX, INDIRECT_DESC, and bits 5 and 6. */
export const FEATURES = (1n << 32n) | (1n << 29n) | (1n << 28n) | 0x60n;

export class FakeDevice implements VirtioDevice {
  readonly name = 'fake';
  readonly deviceId = 2;
  readonly queueSizes = [128, 64];
  readonly features = FEATURES;
  config = Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8]);
  listener: VirtioDeviceListener | undefined;
  /** What was called, in order. */
  readonly log: string[] = [];
  activation: Activation | undefined;
  /** What `restore` got. */
  restored: DeviceState;
  /** What the next calls wait for, or fail with. */
  gate: Promise<void> = Promise.resolve();
  failure: Error | undefined;

  listen(listener: VirtioDeviceListener): void {
    this.listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    this.log.push('activate');
    this.activation = activation;
    await this.gate;
    if (this.failure !== undefined) throw this.failure;
    this.log.push('activated');
  }

  async stopQueue(index: number): Promise<void> {
    this.log.push(`stopQueue ${index}`);
    await this.gate;
  }

  async reset(): Promise<void> {
    this.log.push('reset');
    await this.gate;
    this.log.push('reset done');
    this.activation = undefined;
  }

  async writeConfig(offset: number, bytes: Uint8Array): Promise<void> {
    this.log.push(`writeConfig ${offset}: ${bytes.join(' ')}`);
    this.config = Uint8Array.from(this.config);
    this.config.set(bytes, offset);
  }

  async suspend(): Promise<DeviceState> {
    this.log.push('suspend');
    await this.gate;
    if (this.failure !== undefined) throw this.failure;
    return { mark: 'of the fake', config: this.config };
  }

  async resume(): Promise<void> {
    this.log.push('resume');
    if (this.failure !== undefined) throw this.failure;
  }

  async restore(state: DeviceState, activation: Activation | undefined): Promise<void> {
    this.log.push('restore');
    this.restored = state;
    this.activation = activation;
    if (this.failure !== undefined) throw this.failure;
  }

  async startDirtyLog(): Promise<void> {
    this.log.push('startDirtyLog');
  }

  takeDirty(): readonly DirtyRange[] {
    return [{ guestAddress: 0x5000, length: 4096 }];
  }

  async stopDirtyLog(): Promise<void> {
    this.log.push('stopDirtyLog');
  }

  async addMemory({ region }: SharedRegion): Promise<void> {
    this.log.push(`addMemory ${region.size}`);
  }

  async removeMemory({ region }: SharedRegion): Promise<void> {
    this.log.push(`removeMemory ${region.size}`);
  }

  counters(): Record<string, number> {
    return { reconnects: 3 };
  }

  close(): void {
    this.log.push('close');
  }
}

export interface Bench {
  readonly device: FakeDevice;
  readonly transport: VirtioMmioTransport;
  readonly driver: MmioDriver;
  readonly page: PinnedMemory;
  readonly interrupt: OwnedFd;
  readonly kicks: readonly OwnedFd[];
  readonly lines: string[];
  close(): void;
}

/** One page for all tests of a file: pinned memory is never given back. */
const page = allocatePinned(4096);

export function createBench(): Bench {
  const device = new FakeDevice();
  const interrupt = createEventFd();
  const kicks = device.queueSizes.map(() => createEventFd());
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  const transport = new VirtioMmioTransport(device, { registers: page, interrupt, kicks, log });
  const driver = new MmioDriver(page, transport);
  return {
    device,
    transport,
    driver,
    page,
    interrupt,
    kicks,
    lines,
    close: () => {
      transport.close();
      for (const fd of [interrupt, ...kicks]) fd.close();
    },
  };
}
