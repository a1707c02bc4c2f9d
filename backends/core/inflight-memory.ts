/** The in-flight region of all queues of one front end: made for GET_INFLIGHT_FD, taken over by SET_INFLIGHT_FD. */

import { SharedMapping } from '../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd, statFd } from '../../protocol/sys/owned-fd.ts';
import { inflightQueueBytes } from '../../protocol/vhost-user/inflight-layout.ts';
import type { Inflight } from '../../protocol/vhost-user/payloads.ts';
import { isSplitQueueSize } from '../../protocol/virtqueue/split-queue.ts';
import { Refused } from './refused.ts';

function checkShape({ numQueues, queueSize }: Inflight, maxQueues: number): number {
  if (numQueues === 0 || numQueues > maxQueues) {
    throw new Refused(`in-flight region for ${numQueues} queues, 1 to ${maxQueues} are possible`);
  }
  if (!isSplitQueueSize(queueSize)) {
    throw new Refused(`in-flight region for queues of ${queueSize} entries, a power of two up to 32768 is possible`);
  }
  return numQueues * inflightQueueBytes(queueSize);
}

/** Makes the region that a front end asks for. The descriptor is the caller's. */
export function createInflightFd(request: Inflight, maxQueues: number): { reply: Inflight; fd: OwnedFd } {
  const mmapSize = checkShape(request, maxQueues);
  const fd = createSealedMemfd('vhost-user-inflight', mmapSize);
  return { reply: { ...request, mmapSize, mmapOffset: 0 }, fd };
}

export class InflightMemory {
  readonly #mapping: SharedMapping;
  readonly #numQueues: number;
  readonly #queueSize: number;

  /** Maps a region; the descriptor stays the caller's. @throws Refused, SysError - sizes do not fit */
  constructor(area: Inflight, fd: OwnedFd, maxQueues: number) {
    const needed = checkShape(area, maxQueues);
    if (area.mmapSize < needed) {
      throw new Refused(`in-flight region of ${area.mmapSize} bytes, ${needed} are needed`);
    }
    const { size } = statFd(fd.fd);
    if (size < area.mmapOffset || size - area.mmapOffset < needed) {
      throw new Refused(`in-flight region at ${area.mmapOffset} of a file of ${size} bytes, ${needed} are needed`);
    }
    this.#mapping = new SharedMapping(fd.fd, area.mmapOffset, needed);
    this.#numQueues = area.numQueues;
    this.#queueSize = area.queueSize;
  }

  get faulted(): boolean {
    return this.#mapping.faulted;
  }

  /** The part of one queue; undefined for queues beyond the region. @throws Refused - the ring is larger than its part */
  queue(index: number, size: number): ArrayBuffer | undefined {
    if (index >= this.#numQueues) return undefined;
    if (size > this.#queueSize) {
      throw new Refused(`vring ${index} of ${size} entries, but its in-flight region has ${this.#queueSize}`);
    }
    const bytes = inflightQueueBytes(this.#queueSize);
    return this.#mapping.view(index * bytes, bytes);
  }

  close(): void {
    this.#mapping.retire();
  }
}
