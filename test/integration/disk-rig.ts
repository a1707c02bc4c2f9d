/**
 * One queue of a block device, driven step by step: requests are staged, made available, and waited for while this
 * process does nothing else. So whatever changes in memory meanwhile was the device.
 */

import { BlkQueue } from '../../vmm-client/driver/blk-queue.ts';
import { ringFeaturesOf } from '../../vmm-client/driver/ring-features.ts';
import type { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import type { SharedMemory } from '../../vmm-client/frontend/shared-memory.ts';

export const READ = 0;
export const WRITE = 1;
export const PAGE = 4096;
const SIZE = 64;
const DEADLINE_MS = 10_000;

/** INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1; RING_PACKED. */
const SPLIT = (1n << 28n) | (1n << 29n) | (1n << 30n) | (1n << 32n);
const PACKED = SPLIT | (1n << 34n);

export class DiskRig {
  readonly frontend: VhostUserFrontend;
  readonly memory: SharedMemory;
  readonly queue: BlkQueue;
  /** Statuses of completed requests by token. */
  readonly statuses = new Map<number, number>();
  #nextToken = 0;

  private constructor(frontend: VhostUserFrontend, memory: SharedMemory, queue: BlkQueue) {
    this.frontend = frontend;
    this.memory = memory;
    this.queue = queue;
    queue.setCompletion((token, status) => void this.statuses.set(token, status));
  }

  /** Negotiates, and makes a queue in `memory`, which is not handed over yet. */
  static async open(frontend: VhostUserFrontend, memory: SharedMemory, packed = false): Promise<DiskRig> {
    const features = await frontend.acceptFeatures(packed ? PACKED : SPLIT);
    const limits = { index: 0, size: SIZE, segmentBytes: 1 << 20, maxSegments: 4 };
    return new DiskRig(frontend, memory, new BlkQueue(memory, { ...limits, ...ringFeaturesOf(features) }));
  }

  async start(): Promise<void> {
    await this.frontend.startVring(this.queue.vring, this.queue.base);
  }

  /** Stages a request for `length` bytes of the disk at `offset`, with data at `at` in memory. Returns its token. */
  stage(type: typeof READ | typeof WRITE, offset: number, at: number, length: number): number {
    this.#nextToken += 1;
    if (!this.queue.submit(type, offset / 512, this.memory.guestAddress + at, length, this.#nextToken)) {
      throw new Error('the queue is full');
    }
    return this.#nextToken;
  }

  /** Makes what was staged available, and waits for all of it. This process does nothing else. */
  finish(): void {
    this.queue.flush();
    for (const deadline = performance.now() + DEADLINE_MS; this.queue.outstanding > 0; ) {
      if (this.queue.poll(SIZE) < 0) throw new Error(this.queue.fault);
      if (performance.now() > deadline) throw new Error(`${this.queue.outstanding} requests are not completed`);
    }
  }

  /** The same, with the event loop running. */
  async finishAsync(): Promise<void> {
    this.queue.flush();
    for (const deadline = performance.now() + DEADLINE_MS; this.queue.outstanding > 0; ) {
      if (this.queue.poll(SIZE) < 0) throw new Error(this.queue.fault);
      if (performance.now() > deadline) throw new Error(`${this.queue.outstanding} requests are not completed`);
      await new Promise(setImmediate);
    }
  }

  /** One request from beginning to end. Returns its status. */
  async run(type: typeof READ | typeof WRITE, offset: number, at: number, length: number): Promise<number> {
    const token = this.stage(type, offset, at, length);
    await this.finishAsync();
    return this.statuses.get(token) ?? -1;
  }

  /** Offset of a user address in memory. */
  offsetOf(userAddress: number): number {
    return userAddress - this.memory.userAddress;
  }
}

/** Numbers of the pages in which two copies of memory differ. */
export const changedPages = (before: Uint8Array, after: Uint8Array): number[] => {
  const pages: number[] = [];
  for (let at = 0; at < before.length; at += PAGE) {
    if (Buffer.compare(before.subarray(at, at + PAGE), after.subarray(at, at + PAGE)) !== 0) pages.push(at / PAGE);
  }
  return pages;
};

/** Numbers of the pages that ranges of offsets touch. */
export const pagesOf = (ranges: readonly { readonly start: number; readonly length: number }[]): number[] => [
  ...new Set(
    ranges.flatMap(({ start, length }) => {
      const first = Math.floor(start / PAGE);
      return Array.from({ length: Math.ceil((start + length) / PAGE) - first }, (_, i) => first + i);
    }),
  ),
];
