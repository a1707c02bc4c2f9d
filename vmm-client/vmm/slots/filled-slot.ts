/**
 * A slot with a device in it: the transport, the daemon behind it, and the eventfds by which the guest and the device reach
 * each other without this process.
 *
 *     QueueNotify             ioeventfd -> the device's kick: no exit
 *     the device's call       irqfd -> I/O APIC
 *     InterruptACK of VRING   ioeventfd that nobody reads: InterruptStatus always has that bit
 */

import type { KvmVm } from '../../../protocol/sys/kvm.ts';
import { createEventFd, type OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { PinnedMemory } from '../../../protocol/sys/pinned.ts';
import { VIRTIO_MMIO, VIRTIO_MMIO_INT_VRING } from '../../../protocol/virtio/mmio.ts';
import { FIRST_VIRTIO_GSI, slotAddress } from '../layout.ts';
import type { SupervisedDaemon } from '../supervisor.ts';
import type { VirtioMmioTransport } from '../virtio-mmio/transport.ts';
import type { OpenedDevice } from './open-device.ts';
import type { PlannedDevice } from './plan.ts';

export interface SlotOptions {
  readonly index: number;
  /** Its page of registers. */
  readonly registers: PinnedMemory;
  /** Takes acknowledgements that need no attention. The caller's; open until `close`. */
  readonly acknowledged: OwnedFd;
  readonly Transport: typeof VirtioMmioTransport;
  readonly log: (line: string) => void;
}

export class FilledSlot {
  readonly index: number;
  readonly planned: PlannedDevice;
  readonly daemon: SupervisedDaemon | undefined;
  readonly transport: VirtioMmioTransport;
  isRemovalRequested = false;
  readonly #acknowledged: OwnedFd;
  readonly #interrupt: OwnedFd;
  readonly #kicks: readonly OwnedFd[];
  /** What takes the eventfds away from the virtual machine that they were given to. */
  readonly #disconnect: (() => void)[] = [];

  /** Takes the device and its daemon over. @throws SysError - no descriptors left; it stays the caller's */
  constructor({ planned, device, daemon }: OpenedDevice, options: SlotOptions) {
    const { index, registers, acknowledged, Transport, log } = options;
    this.index = index;
    this.planned = planned;
    this.daemon = daemon;
    this.#acknowledged = acknowledged;
    const eventFds: OwnedFd[] = [];
    try {
      while (eventFds.length <= device.queueSizes.length) eventFds.push(createEventFd());
      const [interrupt, ...kicks] = eventFds as [OwnedFd, ...OwnedFd[]];
      this.#interrupt = interrupt;
      this.#kicks = kicks;
      this.transport = new Transport(device, { registers, interrupt, kicks, log });
    } catch (error) {
      for (const fd of eventFds) fd.close();
      throw error;
    }
  }

  get id(): string {
    return this.planned.id;
  }

  get address(): number {
    return slotAddress(this.index);
  }

  /** Global system interrupt. */
  get gsi(): number {
    return FIRST_VIRTIO_GSI + this.index;
  }

  /** Shows the device to a virtual machine, which has none of this yet. @throws SysError - it has not got it then either */
  connect(vm: KvmVm): void {
    this.forget();
    const addIoEventFd = ({ fd }: OwnedFd, register: number, value: number): void => {
      vm.addIoEventFd(fd, this.address + register, value);
      this.#disconnect.push(() => vm.removeIoEventFd(fd, this.address + register, value));
    };
    const interrupt = this.#interrupt.fd;
    try {
      vm.addIrqFd(interrupt, this.gsi);
      this.#disconnect.push(() => vm.removeIrqFd(interrupt, this.gsi));
      addIoEventFd(this.#acknowledged, VIRTIO_MMIO.interrupt_ack, VIRTIO_MMIO_INT_VRING);
      for (const [queue, kick] of this.#kicks.entries()) addIoEventFd(kick, VIRTIO_MMIO.queue_notify, queue);
    } catch (error) {
      this.disconnect();
      throw error;
    }
  }

  /** Takes the device away from the virtual machine that it is connected to. */
  disconnect(): void {
    for (const each of this.#disconnect.splice(0).reverse()) each();
  }

  /** The virtual machine that it was connected to is gone. */
  forget(): void {
    this.#disconnect.length = 0;
  }

  /** Resets the device and lets go of it, while the guest may run. Its page is that of an empty slot then. Never throws. */
  async unplug(): Promise<void> {
    await this.transport.unplug();
    this.#closeEventFds();
  }

  /** Lets go of the device, which nobody drives. The daemon is the caller's to stop. */
  close(): void {
    this.transport.close();
    this.#closeEventFds();
  }

  #closeEventFds(): void {
    this.#interrupt.close();
    for (const kick of this.#kicks) kick.close();
  }
}
