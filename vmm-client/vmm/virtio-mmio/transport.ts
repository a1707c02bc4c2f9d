/**
 * A virtio device as registers in the guest's memory (version 2, "modern"). What the driver reads is in a page that is
 * kept up to date, so only writes come by here, one at a time: one that arrives while another takes its time waits.
 * Kicks and interrupts do not come by either: QueueNotify is an ioeventfd on the kick descriptor of its queue, the
 * interrupt descriptor is an irqfd.
 *
 * InterruptStatus cannot tell whether the back end used a buffer, which this process does not hear of. Its bit 0 reads as
 * 1 from DRIVER_OK to the reset: a driver that looks at its queues in vain now and then is no worse off, one that did not
 * look would be. Source: VIRTIO 1.3, 2.1 Device Status Field, 4.2 Virtio Over MMIO.
 */

import { Notifier } from '../../../protocol/sys/notifier.ts';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { PinnedMemory } from '../../../protocol/sys/pinned.ts';
import {
  VIRTIO_STATUS_ACKNOWLEDGE,
  VIRTIO_STATUS_DEVICE_NEEDS_RESET,
  VIRTIO_STATUS_DRIVER,
  VIRTIO_STATUS_DRIVER_OK,
  VIRTIO_STATUS_FAILED,
  VIRTIO_STATUS_FEATURES_OK,
} from '../../../protocol/virtio/device-status.ts';
import {
  VIRTIO_MMIO as AT,
  VIRTIO_MMIO_INT_CONFIG,
  VIRTIO_MMIO_INT_VRING,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_VERSION,
} from '../../../protocol/virtio/mmio.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../../protocol/virtio/reserved-features.ts';
import type { BusDevice } from '../bus.ts';
import type { ReadyQueue, VirtioDevice } from '../devices/virtio-device.ts';
import { FeatureRegisters } from './feature-registers.ts';
import { QueueRegisters } from './queue-registers.ts';
import { RegisterPage } from './register-page.ts';

/** "RING", little endian. */
const VENDOR_ID = 0x474e_4952;
const NO_REGION = 0xffff_ffff;
/** Bits of Status that set themselves as the driver writes them. */
const PLAIN_STATUS = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FAILED;

/** Lines that are logged of one device's driver, who can do wrong as often as it likes. */
const MAX_COMPLAINTS = 20;

export interface TransportOptions {
  /** The page that the guest reads; page-aligned, 4096 bytes, the caller's. */
  readonly registers: PinnedMemory;
  /** Raises the device's interrupt when written. Stays the caller's, open until `close`. */
  readonly interrupt: OwnedFd;
  /** One a queue, the ioeventfd of QueueNotify. They stay the caller's, open until `close`. */
  readonly kicks: readonly OwnedFd[];
  /** Gets one line without its end for each thing that the driver or the device got wrong. */
  readonly log: (line: string) => void;
}

/** One for each descriptor, on a duplicate. @throws SysError - no descriptors left */
function openNotifiers(interrupt: OwnedFd, kicks: readonly OwnedFd[]): [Notifier, ...Notifier[]] {
  const opened: Notifier[] = [];
  try {
    for (const fd of [interrupt, ...kicks]) opened.push(new Notifier(fd.duplicate()));
    return opened as [Notifier, ...Notifier[]];
  } catch (error) {
    for (const notifier of opened) notifier.close();
    throw error;
  }
}

export class VirtioMmioTransport implements BusDevice {
  readonly #device: VirtioDevice;
  readonly #page: RegisterPage;
  readonly #log: (line: string) => void;
  readonly #interrupt: OwnedFd;
  readonly #interruptNotifier: Notifier;
  readonly #kicks: readonly OwnedFd[];
  readonly #kickNotifiers: readonly Notifier[];
  readonly #features: FeatureRegisters;
  #queues: QueueRegisters[];
  #selected = 0;
  /** Whether `activate` was called since the last reset. */
  #activated = false;
  /** Whether the configuration changed since the driver may have read it, and before it can be told. */
  #changeUntold = false;
  /** Whether the device broke while it was activated. */
  #faultUntold = false;
  /** The end of all writes so far that take their time. */
  #tail: Promise<void> | undefined;
  #closed = false;
  #complaints = 0;
  readonly #counts = {
    feature_writes: 0,
    queue_writes: 0,
    status_writes: 0,
    interrupt_ack_writes: 0,
    config_writes: 0,
    ignored_writes: 0,
    notify_exits: 0,
    activations: 0,
    resets: 0,
  };
  readonly #notifyExits: number[];

  /** @throws RangeError - not one kick descriptor a queue (our mistake) @throws SysError - no descriptors left */
  constructor(device: VirtioDevice, options: TransportOptions) {
    if (options.kicks.length !== device.queueSizes.length) {
      throw new RangeError(`${options.kicks.length} kick descriptors for ${device.queueSizes.length} queues`);
    }
    this.#device = device;
    this.#log = options.log;
    this.#page = new RegisterPage(options.registers);
    this.#features = new FeatureRegisters(device.features);
    this.#queues = this.#freshQueues();
    this.#notifyExits = device.queueSizes.map(() => 0);
    this.#interrupt = options.interrupt;
    this.#kicks = options.kicks;
    [this.#interruptNotifier, ...this.#kickNotifiers] = openNotifiers(options.interrupt, options.kicks);
    this.#page.set(AT.magic_value, VIRTIO_MMIO_MAGIC);
    this.#page.set(AT.version, VIRTIO_MMIO_VERSION);
    this.#page.set(AT.device_id, device.deviceId);
    this.#page.set(AT.vendor_id, VENDOR_ID);
    for (const register of [AT.shm_len_low, AT.shm_len_high, AT.shm_base_low, AT.shm_base_high]) {
      this.#page.set(register, NO_REGION);
    }
    this.#page.replaceConfig(device.config);
    this.#showSelected();
    device.listen({
      configChanged: () => this.#configChanged(),
      needsReset: (error) => {
        this.#complain(error.message);
        this.#needsReset();
      },
    });
  }

  read(offset: number, size: number): number {
    return this.#page.read(offset, size);
  }

  /** Never throws, and its promise is always kept: what a driver may not write is ignored. */
  write(offset: number, size: number, value: number): void | Promise<void> {
    const step = () => this.#apply(offset, size, value);
    if (this.#tail !== undefined) return this.#hold(this.#tail.then(step));
    const pending = step();
    return pending === undefined ? undefined : this.#hold(pending);
  }

  /** Resets the device as the driver does by writing 0 to Status, for a reset of the whole machine. Never throws. */
  async reset(): Promise<void> {
    await this.write(AT.status, 4, 0);
  }

  #hold(pending: Promise<void>): Promise<void> {
    const tail = pending.finally(() => {
      if (this.#tail === tail) this.#tail = undefined;
    });
    this.#tail = tail;
    return tail;
  }

  #apply(offset: number, size: number, value: number): void | Promise<void> {
    if (this.#closed) return;
    if (offset >= AT.config) return this.#writeConfig(offset - AT.config, size, value);
    if (size !== 4 || offset % 4 !== 0) {
      this.#counts.ignored_writes += 1;
      return;
    }
    switch (offset) {
      case AT.queue_notify:
        return this.#notified(value);
      case AT.interrupt_ack:
        this.#counts.interrupt_ack_writes += 1;
        this.#page.set(AT.interrupt_status, this.#page.get(AT.interrupt_status) & ~(value & VIRTIO_MMIO_INT_CONFIG));
        return;
      case AT.status:
        this.#counts.status_writes += 1;
        return this.#writeStatus(value);
      case AT.device_features_sel:
      case AT.driver_features_sel:
      case AT.driver_features:
        return this.#writeFeatures(offset, value);
      case AT.queue_sel:
        this.#counts.queue_writes += 1;
        this.#selected = value;
        this.#showSelected();
        return;
      case AT.queue_ready:
        this.#counts.queue_writes += 1;
        return this.#writeReady(value);
      default:
        return this.#writeQueue(offset, value);
    }
  }

  #writeFeatures(offset: number, value: number): void {
    this.#counts.feature_writes += 1;
    if (offset === AT.device_features_sel) this.#features.offeredSelector = value;
    else if (offset === AT.driver_features_sel) this.#features.acceptedSelector = value;
    else if (!this.#has(VIRTIO_STATUS_FEATURES_OK)) this.#features.accept(value);
    this.#showSelected();
  }

  /** A queue is set up between FEATURES_OK and DRIVER_OK, while it is not ready. */
  #writeQueue(offset: number, value: number): void {
    const queue = this.#queues[this.#selected];
    const mayWrite = this.#has(VIRTIO_STATUS_FEATURES_OK) && !this.#has(VIRTIO_STATUS_DRIVER_OK);
    if (queue !== undefined && mayWrite && !queue.ready && queue.write(offset, value)) this.#counts.queue_writes += 1;
    else this.#counts.ignored_writes += 1;
  }

  #writeReady(value: number): void | Promise<void> {
    const queue = this.#queues[this.#selected];
    if (queue === undefined || value > 1 || !this.#has(VIRTIO_STATUS_FEATURES_OK)) return;
    if (!this.#has(VIRTIO_STATUS_DRIVER_OK)) {
      queue.ready = value === 1;
      this.#showSelected();
      return;
    }
    // From then on a queue can only be given up; starting it again takes RING_RESET, which is not offered.
    if (value === 1 || !queue.ready) return;
    return this.#device.stopQueue(queue.index).then(() => {
      if (this.#closed) return;
      queue.ready = false;
      this.#showSelected();
    });
  }

  /** Only where the ioeventfd did not see the write: it is passed on. */
  #notified(index: number): void {
    this.#counts.notify_exits += 1;
    const exits = this.#notifyExits[index];
    if (exits === undefined) return;
    this.#notifyExits[index] = exits + 1;
    if (this.#has(VIRTIO_STATUS_DRIVER_OK) && this.#queues[index]?.ready) this.#kickNotifiers[index]?.signal();
  }

  #writeStatus(value: number): void | Promise<void> {
    if (value === 0) return this.#reset();
    // A driver never clears a bit.
    const added = value & ~this.#page.get(AT.status);
    this.#setStatus(added & PLAIN_STATUS);
    if ((added & VIRTIO_STATUS_FEATURES_OK) !== 0) this.#settleFeatures();
    if ((added & VIRTIO_STATUS_DRIVER_OK) !== 0 && this.#has(VIRTIO_STATUS_FEATURES_OK)) return this.#activate();
  }

  #settleFeatures(): void {
    const { accepted } = this.#features;
    if (accepted !== undefined && hasFeature(accepted, VIRTIO_F_VERSION_1)) {
      this.#setStatus(VIRTIO_STATUS_FEATURES_OK);
      return;
    }
    const why = accepted === undefined ? 'some that are not offered' : 'all without VERSION_1';
    this.#complain(`the driver's features are refused: ${why}`);
  }

  async #activate(): Promise<void> {
    this.#counts.activations += 1;
    this.#activated = true;
    // The back end may use a buffer before the last ring is handed over.
    this.#page.set(AT.interrupt_status, this.#page.get(AT.interrupt_status) | VIRTIO_MMIO_INT_VRING);
    try {
      await this.#device.activate({
        features: this.#features.accepted ?? 0n,
        queues: this.#readyQueues(),
        interrupt: this.#interrupt,
        signalInterrupt: () => this.#interruptNotifier.signal(),
      });
      if (this.#closed) return;
      this.#setStatus(VIRTIO_STATUS_DRIVER_OK);
      if (this.#faultUntold) this.#needsReset();
      else if (this.#changeUntold) this.#raiseConfig();
    } catch (error) {
      if (this.#closed) return;
      this.#complain(`the queues cannot be started: ${(error as Error).message}`);
      this.#setStatus(VIRTIO_STATUS_DRIVER_OK);
      this.#needsReset();
    }
  }

  /** @throws RangeError - one of them can be none */
  #readyQueues(): ReadyQueue[] {
    return this.#queues
      .filter(({ ready }) => ready)
      .map((queue) => {
        queue.check();
        const { index, size, descriptorTable, availRing, usedRing } = queue;
        const kick = this.#kicks[index] as OwnedFd;
        const notify = () => this.#kickNotifiers[index]?.signal();
        return { index, size, descriptorTable, availRing, usedRing, kick, notify };
      });
  }

  #reset(): void | Promise<void> {
    this.#counts.resets += 1;
    if (!this.#activated) {
      this.#clear();
      return;
    }
    return this.#device.reset().then(() => {
      // The page may be another device's by now.
      if (!this.#closed) this.#clear();
    });
  }

  #clear(): void {
    this.#activated = false;
    this.#changeUntold = false;
    this.#faultUntold = false;
    this.#features.reset();
    this.#queues = this.#freshQueues();
    this.#selected = 0;
    this.#page.set(AT.interrupt_status, 0);
    this.#page.set(AT.status, 0);
    this.#page.replaceConfig(this.#device.config);
    this.#showSelected();
  }

  #freshQueues(): QueueRegisters[] {
    return this.#device.queueSizes.map((size, index) => new QueueRegisters(index, size));
  }

  #writeConfig(offset: number, size: number, value: number): void | Promise<void> {
    const { config } = this.#device;
    // Before the features are settled nobody knows what a driver may write.
    if (offset + size > config.length || size > 4 || !this.#has(VIRTIO_STATUS_FEATURES_OK)) {
      this.#counts.ignored_writes += 1;
      return;
    }
    this.#counts.config_writes += 1;
    const bytes = Uint8Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 0xff);
    return this.#device.writeConfig(offset, bytes, this.#features.accepted ?? 0n).then(() => {
      if (!this.#closed) this.#page.replaceConfig(this.#device.config);
    });
  }

  #configChanged(): void {
    if (this.#closed || !this.#page.replaceConfig(this.#device.config)) return;
    if (this.#has(VIRTIO_STATUS_DRIVER_OK)) this.#raiseConfig();
    else this.#changeUntold = this.#has(VIRTIO_STATUS_DRIVER);
  }

  #needsReset(): void {
    if (this.#closed) return;
    if (!this.#has(VIRTIO_STATUS_DRIVER_OK)) {
      // A driver that is not there yet learns it when it is.
      this.#faultUntold = this.#activated;
      return;
    }
    this.#setStatus(VIRTIO_STATUS_DEVICE_NEEDS_RESET);
    this.#raiseConfig();
  }

  #raiseConfig(): void {
    this.#page.set(AT.interrupt_status, this.#page.get(AT.interrupt_status) | VIRTIO_MMIO_INT_CONFIG);
    this.#interruptNotifier.signal();
  }

  #complain(line: string): void {
    this.#complaints += 1;
    if (this.#complaints > MAX_COMPLAINTS) return;
    const last = this.#complaints === MAX_COMPLAINTS ? ' (more of this device is not logged)' : '';
    this.#log(`${this.#device.name}: ${line}${last}`);
  }

  #has(bit: number): boolean {
    return (this.#page.get(AT.status) & bit) !== 0;
  }

  #setStatus(bits: number): void {
    this.#page.set(AT.status, this.#page.get(AT.status) | bits);
  }

  /** Registers that say something of what was selected. */
  #showSelected(): void {
    const queue = this.#queues[this.#selected];
    this.#page.set(AT.device_features, this.#features.offeredWord);
    this.#page.set(AT.queue_num_max, queue?.maxSize ?? 0);
    this.#page.set(AT.queue_ready, queue?.ready === true ? 1 : 0);
  }

  /** Register writes by kind, notifications that left the guest by queue, and what the device counts. */
  counters(): Record<string, number> {
    const byQueue = this.#notifyExits.map((exits, index) => [`queue_${index}_notify_exits`, exits] as const);
    return { ...this.#counts, ...Object.fromEntries(byQueue), ...this.#device.counters() };
  }

  /** Ends transport and device. No vCPU runs any more. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#device.close();
    this.#interruptNotifier.close();
    for (const notifier of this.#kickNotifiers) notifier.close();
  }
}
