/** The in-flight region of all queues of one front end: made for GET_INFLIGHT_FD, taken over by SET_INFLIGHT_FD. */

import { SharedMapping } from '../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd, statFd } from '../../protocol/sys/owned-fd.ts';
import { INFLIGHT_HEADER_BYTES, inflightQueueBytes } from '../../protocol/vhost-user/inflight-layout.ts';
import type { Inflight } from '../../protocol/vhost-user/payloads.ts';
import { isSplitQueueSize } from '../../protocol/virtqueue/split-queue.ts';
import { Refused } from './refused.ts';

const ROOMY_QUEUE_SIZE = 1024;
const STATE_BIT = 1;
/** Word of the header whose low half is the version. */
const VERSION_WORD = 2;

function checkShape({ numQueues, queueSize }: Inflight, maxQueues: number): number {
  if (numQueues === 0 || numQueues > maxQueues) {
    throw new Refused(`in-flight region for ${numQueues} queues, 1 to ${maxQueues} are possible`);
  }
  if (!isSplitQueueSize(queueSize)) {
    throw new Refused(`in-flight region for queues of ${queueSize} entries, a power of two up to 32768 is possible`);
  }
  return numQueues * inflightQueueBytes(queueSize);
}

/**
 * Bytes for one queue in regions that we make. QEMU asks for 128 entries and then, on virtio-mmio, lets the guest choose
 * up to 1024; it gives our size back with its own count of entries.
 */
function roomyStride(queueSize: number): number {
  return inflightQueueBytes(Math.max(queueSize, ROOMY_QUEUE_SIZE));
}

/** Makes the region that a front end asks for. The descriptor is the caller's. */
export function createInflightFd(request: Inflight, maxQueues: number): { reply: Inflight; fd: OwnedFd } {
  checkShape(request, maxQueues);
  const mmapSize = request.numQueues * roomyStride(request.queueSize);
  const fd = createSealedMemfd('vhost-user-inflight', mmapSize);
  return { reply: { ...request, mmapSize, mmapOffset: 0 }, fd };
}

export class InflightMemory {
  readonly #mapping: SharedMapping;
  /** Of the first queue. */
  readonly #header: Uint32Array;
  readonly #numQueues: number;
  /** Bytes of one queue's part. */
  readonly #stride: number;

  /** Maps a region; the descriptor stays the caller's. @throws Refused, SysError - sizes do not fit */
  constructor(area: Inflight, fd: OwnedFd, maxQueues: number) {
    const needed = checkShape(area, maxQueues);
    if (area.mmapSize < needed) {
      throw new Refused(`in-flight region of ${area.mmapSize} bytes, ${needed} are needed`);
    }
    const isRoomy = area.mmapSize === area.numQueues * roomyStride(area.queueSize);
    this.#stride = isRoomy ? roomyStride(area.queueSize) : inflightQueueBytes(area.queueSize);
    const length = area.numQueues * this.#stride;
    const { size } = statFd(fd.fd);
    if (size < area.mmapOffset || size - area.mmapOffset < length) {
      throw new Refused(`in-flight region at ${area.mmapOffset} of a file of ${size} bytes, ${length} are needed`);
    }
    this.#mapping = new SharedMapping(fd.fd, area.mmapOffset, length);
    this.#numQueues = area.numQueues;
    this.#header = new Uint32Array(this.#mapping.view(0, INFLIGHT_HEADER_BYTES));
  }

  /** Whether a daemon ran rings with this region before. */
  get wasUsed(): boolean {
    return ((this.#header[VERSION_WORD] ?? 0) & 0xffff) !== 0;
  }

  /** The device's bit of state, in the first queue's feature word, which the protocol leaves unused. */
  get deviceState(): boolean {
    return ((this.#header[0] ?? 0) & STATE_BIT) !== 0;
  }

  set deviceState(state: boolean) {
    this.#header[0] = state ? STATE_BIT : 0;
  }

  get faulted(): boolean {
    return this.#mapping.faulted;
  }

  /** The part of one queue; undefined when the region has none for it, or too small a one. */
  queue(index: number, size: number): ArrayBuffer | undefined {
    if (index >= this.#numQueues || inflightQueueBytes(size) > this.#stride) return undefined;
    return this.#mapping.view(index * this.#stride, this.#stride);
  }

  close(): void {
    this.#mapping.retire();
  }
}
