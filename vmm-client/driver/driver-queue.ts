/**
 * A virtqueue with its kick, call and error descriptors: what every queue of a device driver is made of, and what is told
 * to the back end of it. Nothing here allocates or waits after construction.
 */

import { Notifier } from '../../protocol/sys/notifier.ts';
import { createEventFd } from '../../protocol/sys/owned-fd.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import type { Vring } from '../frontend/vring.ts';
import { PackedVirtqueueDriver } from './packed-virtqueue.ts';
import { SplitVirtqueueDriver } from './split-virtqueue.ts';
import type { RingFeatures, VirtqueueDriver, VirtqueueDriverOptions } from './virtqueue.ts';

export type DriverQueueOptions = VirtqueueDriverOptions & RingFeatures;

export class DriverQueue {
  readonly index: number;
  readonly ring: VirtqueueDriver;
  readonly vring: Vring;
  readonly #kick: Notifier;
  readonly #call: Notifier;
  readonly #error: Notifier;
  /** Kicks sent, for statistics. */
  kicks = 0;

  /**
   * Allocates the rings in `memory`, which outlives the queue. `onResume` is called when a back end died and another one
   * is about to get the ring: whatever was used has to be reaped there, and what is staged is made available.
   * @throws RangeError - memory or sizes
   * @throws SysError - no descriptors left
   */
  constructor(memory: SharedMemory, index: number, options: DriverQueueOptions, onResume: () => void) {
    this.index = index;
    this.ring = options.packed ? new PackedVirtqueueDriver(memory, options) : new SplitVirtqueueDriver(memory, options);
    const [kick, call, error] = [createEventFd(), createEventFd(), createEventFd()];
    this.#kick = new Notifier(kick);
    this.#call = new Notifier(call);
    this.#error = new Notifier(error);
    this.vring = {
      index,
      size: options.size,
      descriptorTable: memory.userAddress + this.ring.descriptorArea,
      availRing: memory.userAddress + this.ring.driverArea,
      usedRing: memory.userAddress + this.ring.deviceArea,
      kick,
      call,
      error,
      resume: (keepsInflight) => {
        onResume();
        return this.ring.resume(keepsInflight);
      },
      notify: () => this.#kick.signal(),
    };
  }

  /** Bytes of shared memory that rings of either layout and their tables take, alignment included. */
  static memoryBytes({ size, maxChain, indirect }: Pick<DriverQueueOptions, 'size' | 'maxChain' | 'indirect'>): number {
    return size * ((indirect ? maxChain * 16 : 0) + 16 + 8 + 2) + 5 * 4096;
  }

  /** Where a back end begins that gets the ring first, for SET_VRING_BASE. */
  get base(): number {
    return this.ring.initialBase;
  }

  /** Descriptor to watch: readable when the device has used something after `arm`. */
  get callFd(): number {
    return this.#call.fd;
  }

  /** Descriptor to watch: readable when the device declared the ring broken. */
  get errorFd(): number {
    return this.#error.fd;
  }

  /** Gives the device what was staged, and kicks it where it wants that. */
  flush(): void {
    if (!this.ring.publish()) return;
    this.kicks += 1;
    this.#kick.signal();
  }

  /** Asks for a signal on `callFd`. Returns false when there is something to reap already. */
  arm(): boolean {
    return this.ring.armInterrupt();
  }

  disarm(): void {
    this.ring.disarmInterrupt();
  }

  /** Takes a signal off `callFd`. */
  drainCall(): void {
    this.#call.drain();
  }

  /** Closes the descriptors. The caller proves that the device has let go of the ring. */
  close(): void {
    this.#kick.close();
    this.#call.close();
    this.#error.close();
  }
}
