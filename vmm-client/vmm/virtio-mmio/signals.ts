/**
 * How driver and back end reach each other: the interrupt of a device and a kick for each of its queues, descriptors that
 * the machine has given to KVM, and notifiers for the times when it is this process that has to write to them.
 */

import { Notifier } from '../../../protocol/sys/notifier.ts';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { Activation, ReadyQueue } from '../devices/virtio-device.ts';
import type { QueueRegisters } from './queue-registers.ts';

export class Signals {
  readonly #interrupt: OwnedFd;
  readonly #kicks: readonly OwnedFd[];
  readonly #interruptNotifier: Notifier;
  readonly #kickNotifiers: readonly Notifier[];

  /** The descriptors stay the caller's; it works on duplicates. @throws SysError - no descriptors left */
  constructor(interrupt: OwnedFd, kicks: readonly OwnedFd[]) {
    this.#interrupt = interrupt;
    this.#kicks = kicks;
    const opened: Notifier[] = [];
    try {
      for (const fd of [interrupt, ...kicks]) opened.push(new Notifier(fd.duplicate()));
    } catch (error) {
      for (const notifier of opened) notifier.close();
      throw error;
    }
    [this.#interruptNotifier, ...this.#kickNotifiers] = opened as [Notifier, ...Notifier[]];
  }

  interrupt(): void {
    this.#interruptNotifier.signal();
  }

  kick(queue: number): void {
    this.#kickNotifiers[queue]?.signal();
  }

  /** What a device gets that is activated with these queues. */
  activation(features: bigint, queues: readonly QueueRegisters[]): Activation {
    return {
      features,
      queues: queues.map((queue): ReadyQueue => {
        const { index, size, descriptorTable, availRing, usedRing } = queue;
        const kick = this.#kicks[index] as OwnedFd;
        return { index, size, descriptorTable, availRing, usedRing, kick, notify: () => this.kick(index) };
      }),
      interrupt: this.#interrupt,
      signalInterrupt: () => this.interrupt(),
    };
  }

  /** The descriptors themselves stay open. */
  close(): void {
    this.#interruptNotifier.close();
    for (const notifier of this.#kickNotifiers) notifier.close();
  }
}
