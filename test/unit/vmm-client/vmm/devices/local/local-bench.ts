/** A device of the VMM's own with a guest's memory and rings, and no transport between. */

import { afterEach, beforeEach, expect } from 'vitest';
import { signalEventFd } from '../../../../../../protocol/sys/notifier.ts';
import {
  LocalDevice,
  type LocalHost,
  type LocalModel,
} from '../../../../../../vmm-client/vmm/devices/local/local-device.ts';
import type { Activation } from '../../../../../../vmm-client/vmm/devices/virtio-device.ts';
import { MmioGuest } from '../../../../../support/frontend/mmio-guest.ts';
import { countOwnFds } from '../../../../../support/frontend/process-probe.ts';
import { WRITE } from '../../../../../support/frontend/raw-ring.ts';

/** VERSION_1, EVENT_IDX, INDIRECT_DESC. */
export const RING_FEATURES = (1n << 32n) | (1n << 29n) | (1n << 28n);

/** Answers with what it was asked, as far as there is room; a queue of requests and one of buffers. */
export class EchoModel implements LocalModel {
  readonly name = 'echo';
  readonly deviceId = 99;
  readonly queueSizes = [64, 16];
  readonly features = 1n << 5n;
  readonly bufferQueues = [1];
  readonly calls: string[] = [];
  config = new Uint8Array(8);
  host: LocalHost | undefined;
  /** What a request waits for. */
  gate: Promise<void> | undefined;
  memory = 'nothing';

  plug(host: LocalHost): void {
    this.host = host;
  }

  serve(queue: number, request: Uint8Array, writable: number): Uint8Array | Promise<Uint8Array> {
    this.calls.push(`serve ${queue} ${request.length} ${writable}`);
    const answer = request.slice(0, writable);
    return this.gate === undefined ? answer : this.gate.then(() => answer);
  }

  activated(features: bigint): void {
    this.calls.push(`activated ${features.toString(16)}`);
  }

  reset(): void {
    this.calls.push('reset');
  }

  writeConfig(offset: number, bytes: Uint8Array): void {
    this.config = this.config.with(offset, bytes[0] ?? 0);
  }

  save(): unknown {
    return { memory: this.memory };
  }

  restore(state: unknown): void {
    this.memory = (state as { memory: string }).memory;
    this.calls.push('restore');
  }

  memoryAdded(): void {
    this.calls.push('memoryAdded');
  }

  memoryRemoved(): void {
    this.calls.push('memoryRemoved');
  }

  counters(): Record<string, number> {
    return { served: this.calls.length };
  }

  close(): void {
    this.calls.push('close');
  }
}

export class LocalBench {
  guest = new MmioGuest();
  readonly complaints: string[] = [];
  readonly #devices: LocalDevice[] = [];
  #fdsBefore = 0;

  /** Registers itself with the tests of the file; every test ends with as many descriptors as it began with. */
  constructor(queueSizes: readonly number[]) {
    this.guest.close();
    beforeEach(() => {
      this.#fdsBefore = countOwnFds();
      this.complaints.length = 0;
      this.guest = new MmioGuest({ queueSizes });
    });
    afterEach(() => {
      for (const device of this.#devices.splice(0)) device.close();
      this.guest.close();
      expect(countOwnFds()).toBe(this.#fdsBefore);
    });
  }

  open(model: LocalModel): LocalDevice {
    const device = new LocalDevice(model, { ram: this.guest.deviceMemory });
    device.listen({
      configChanged: () => this.complaints.push('config changed'),
      needsReset: (error) => this.complaints.push(error.message),
    });
    this.#devices.push(device);
    return device;
  }

  /** Of the guest's rings as they are laid out, of which those in `which` are ready. */
  activation(
    features = RING_FEATURES,
    which: readonly number[] = this.guest.queues.map(({ index }) => index),
  ): Activation {
    const { ram, queues } = this.guest;
    const interrupt = this.guest.ring().call;
    return {
      features,
      interrupt,
      signalInterrupt: () => signalEventFd(interrupt.fd),
      queues: queues
        .filter(({ index }) => which.includes(index))
        .map(({ index }) => this.guest.ring(index))
        .map(({ index, size, table, avail, used, kick }) => ({
          index,
          size,
          descriptorTable: ram.guest(table),
          availRing: ram.guest(avail),
          usedRing: ram.guest(used),
          kick,
          notify: () => signalEventFd(kick.fd),
        })),
    };
  }

  /** Lays a request at place `first` of ring 0: readable bytes, and room for an answer behind them. Returns where that is. */
  request(first: number, bytes: Uint8Array, room: number): number {
    const { ram, dataStart } = this.guest;
    const at = dataStart + 8192 * first;
    ram.bytes.set(bytes, at);
    ram.bytes.fill(0xee, at + 6000, at + 6000 + room);
    const chain = [
      { address: ram.guest(at), length: bytes.length },
      { address: ram.guest(at + 6000), length: room, flags: WRITE },
    ];
    this.guest.ring().setChain(
      first,
      chain.filter(({ length }) => length > 0),
    );
    return at + 6000;
  }

  /** Runs one request and returns the answer, as long as the device said it is. */
  async run(bytes: Uint8Array, room: number): Promise<Uint8Array> {
    const at = this.request(0, bytes, room);
    const [used] = await this.guest.ring().run(0);
    return this.guest.ram.bytes.slice(at, at + (used?.length ?? 0));
  }
}
