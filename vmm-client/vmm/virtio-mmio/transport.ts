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
import { VIRTIO_MMIO as AT, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING } from '../../../protocol/virtio/mmio.ts';
import type { DirtyRange } from '../../frontend/dirty-bitmap.ts';
import type { SharedRegion } from '../../frontend/hand-over.ts';
import type { BusDevice } from '../bus.ts';
import type { Activation, DeviceState, VirtioDevice } from '../devices/virtio-device.ts';
import { VmError } from '../errors.ts';
import type { ObservedDevice } from '../queues/observed.ts';
import { fieldsOf } from '../state/codec.ts';
import { DriverRegisters, type RegisterState } from './driver-registers.ts';
import { showEmptySlot } from './register-page.ts';
import { Signals } from './signals.ts';
import { Turns } from './turns.ts';

/** Bits of Status that set themselves as the driver writes them. */
const PLAIN_STATUS = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FAILED;

/** Lines that are logged of one device's driver, who can do wrong as often as it likes. */
const MAX_COMPLAINTS = 20;

/** A suspended device in memory as plain data. */
export interface TransportState {
  readonly registers: RegisterState;
  readonly device: DeviceState;
}

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

export class VirtioMmioTransport implements BusDevice {
  readonly #device: VirtioDevice;
  readonly #memory: PinnedMemory;
  readonly #registers: DriverRegisters;
  readonly #log: (line: string) => void;
  readonly #signals: Signals;
  readonly #turns = new Turns();
  /** Whether `activate` was called since the last reset. */
  #activated = false;
  /** Whether the device broke while it was activated. */
  #faultUntold = false;
  /** Whether the device is being taken away from its driver. */
  #isLeaving = false;
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
    this.#notifyExits = device.queueSizes.map(() => 0);
    this.#memory = options.registers;
    this.#registers = new DriverRegisters(options.registers, device);
    try {
      this.#signals = new Signals(options.interrupt, options.kicks);
    } catch (error) {
      showEmptySlot(options.registers);
      throw error;
    }
    device.listen({
      configChanged: (byDriver) => this.#configChanged(byDriver),
      needsReset: (error) => {
        this.#complain(error.message);
        this.#needsReset();
      },
    });
  }

  read(offset: number, size: number): number {
    return this.#registers.page.read(offset, size);
  }

  /** Never throws, and its promise is always kept: what a driver may not write is ignored. */
  write(offset: number, size: number, value: number): void | Promise<void> {
    return this.#turns.run(() => this.#apply(offset, size, value));
  }

  /** Resets the device as the driver does by writing 0 to Status, for a reset of the whole machine. Never throws. */
  async reset(): Promise<void> {
    await this.write(AT.status, 4, 0);
  }

  /** Does something with the device when nothing else is under way. */
  async #inTurn<T>(step: () => Promise<T>): Promise<T> {
    return this.#turns.run(step);
  }

  #apply(offset: number, size: number, value: number): void | Promise<void> {
    if (this.#closed || this.#isLeaving) return;
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
        return this.#registers.acknowledge(value);
      case AT.status:
        this.#counts.status_writes += 1;
        return this.#writeStatus(value);
      case AT.device_features_sel:
      case AT.driver_features_sel:
      case AT.driver_features:
        this.#counts.feature_writes += 1;
        return this.#registers.writeFeatures(offset, value);
      case AT.queue_sel:
        this.#counts.queue_writes += 1;
        return this.#registers.select(value);
      case AT.queue_ready:
        this.#counts.queue_writes += 1;
        return this.#writeReady(value);
      default:
        if (this.#registers.writeQueue(offset, value)) this.#counts.queue_writes += 1;
        else this.#counts.ignored_writes += 1;
    }
  }

  #writeReady(value: number): void | Promise<void> {
    const queue = this.#registers.selected;
    if (queue === undefined || value > 1 || !this.#registers.has(VIRTIO_STATUS_FEATURES_OK)) return;
    if (!this.#registers.has(VIRTIO_STATUS_DRIVER_OK)) {
      queue.ready = value === 1;
      this.#registers.showSelected();
      return;
    }
    // From then on a queue can only be given up; starting it again takes RING_RESET, which is not offered.
    if (value === 1 || !queue.ready) return;
    return this.#device.stopQueue(queue.index).then(() => {
      if (this.#closed) return;
      queue.ready = false;
      this.#registers.showSelected();
    });
  }

  /** Only where the ioeventfd did not see the write: it is passed on. */
  #notified(index: number): void {
    this.#counts.notify_exits += 1;
    const exits = this.#notifyExits[index];
    if (exits === undefined) return;
    this.#notifyExits[index] = exits + 1;
    const isRunning = this.#registers.has(VIRTIO_STATUS_DRIVER_OK) && this.#registers.queue(index)?.ready === true;
    if (isRunning) this.#signals.kick(index);
  }

  #writeStatus(value: number): void | Promise<void> {
    if (value === 0) return this.#reset();
    const registers = this.#registers;
    // A driver never clears a bit.
    const added = value & ~registers.page.get(AT.status);
    registers.setStatus(added & PLAIN_STATUS);
    if ((added & VIRTIO_STATUS_FEATURES_OK) !== 0) {
      const complaint = registers.featureComplaint;
      if (complaint === undefined) registers.setStatus(VIRTIO_STATUS_FEATURES_OK);
      else this.#complain(`the driver's features are refused: ${complaint}`);
    }
    if ((added & VIRTIO_STATUS_DRIVER_OK) !== 0 && registers.has(VIRTIO_STATUS_FEATURES_OK)) return this.#activate();
  }

  async #activate(): Promise<void> {
    this.#counts.activations += 1;
    this.#activated = true;
    // The back end may use a buffer before the last ring is handed over.
    this.#registers.raise(VIRTIO_MMIO_INT_VRING);
    try {
      await this.#device.activate(this.#activation());
      if (this.#closed) return;
      this.#registers.setStatus(VIRTIO_STATUS_DRIVER_OK);
      if (this.#faultUntold) this.#needsReset();
      else if (this.#registers.changeUntold) this.#raiseConfig();
    } catch (error) {
      if (this.#closed) return;
      this.#complain(`the queues cannot be started: ${(error as Error).message}`);
      this.#registers.setStatus(VIRTIO_STATUS_DRIVER_OK);
      this.#needsReset();
    }
  }

  /** @throws RangeError - a queue that is ready can be none */
  #activation(): Activation {
    return this.#signals.activation(this.#registers.accepted ?? 0n, this.#registers.readyQueues());
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
    this.#faultUntold = false;
    this.#registers.clear();
  }

  #writeConfig(offset: number, size: number, value: number): void | Promise<void> {
    const { config } = this.#device;
    // Before the features are settled nobody knows what a driver may write.
    if (offset + size > config.length || size > 4 || !this.#registers.has(VIRTIO_STATUS_FEATURES_OK)) {
      this.#counts.ignored_writes += 1;
      return;
    }
    this.#counts.config_writes += 1;
    const bytes = Uint8Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 0xff);
    return this.#device.writeConfig(offset, bytes, this.#registers.accepted ?? 0n).then(() => {
      if (!this.#closed) this.#registers.page.replaceConfig(this.#device.config);
    });
  }

  /** `byDriver`: it asked for the change and is not told. */
  #configChanged(byDriver = false): void {
    if (this.#closed || !this.#registers.page.replaceConfig(this.#device.config) || byDriver) return;
    if (this.#registers.has(VIRTIO_STATUS_DRIVER_OK)) this.#raiseConfig();
    else this.#registers.changeUntold = this.#registers.has(VIRTIO_STATUS_DRIVER);
  }

  #needsReset(): void {
    if (this.#closed) return;
    if (!this.#registers.has(VIRTIO_STATUS_DRIVER_OK)) {
      // A driver that is not there yet learns it when it is.
      this.#faultUntold = this.#activated;
      return;
    }
    this.#registers.setStatus(VIRTIO_STATUS_DEVICE_NEEDS_RESET);
    this.#raiseConfig();
  }

  #raiseConfig(): void {
    this.#registers.raise(VIRTIO_MMIO_INT_CONFIG);
    this.#signals.interrupt();
  }

  /**
   * Stops the device where it is, when what the driver wrote last is done. Nothing touches guest memory afterwards, and no
   * vCPU runs. What follows is `resume`, `reset` or `close`.
   * @throws VmError - it cannot be suspended; it runs on
   */
  suspend(): Promise<TransportState> {
    return this.#inTurn(async () => {
      const device = await this.#device.suspend();
      return { registers: this.#registers.save(), device };
    });
  }

  /** Goes on after `suspend`. Never throws: a device that does not go on needs a reset. */
  resume(): Promise<void> {
    return this.#inTurn(async () => {
      try {
        await this.#device.resume();
      } catch (error) {
        this.#complain((error as Error).message);
        this.#needsReset();
      }
    });
  }

  /**
   * Goes on where another transport was suspended, with a driver that noticed nothing: it is interrupted once, and its
   * queues are looked at once. Nobody has touched the device here.
   * @throws VmError - `state` is none, or the device here is not like that one; it is to be closed
   */
  restore(state: unknown): Promise<void> {
    return this.#inTurn(async () => {
      const what = `state of ${this.#device.name}`;
      const { registers, device } = fieldsOf(state, what);
      this.#registers.load(registers, what);
      this.#activated = this.#registers.has(VIRTIO_STATUS_DRIVER_OK);
      const activation = this.#restoredActivation(what);
      await this.#device.restore(device, activation);
      this.#configChanged();
      if (!this.#activated) return;
      this.#registers.raise(VIRTIO_MMIO_INT_VRING);
      for (const queue of activation?.queues ?? []) queue.notify();
      this.#signals.interrupt();
    });
  }

  /** Undefined also where the driver was told that its queues can be none. */
  #restoredActivation(what: string): Activation | undefined {
    if (!this.#activated) return undefined;
    try {
      return this.#activation();
    } catch (error) {
      if (this.#registers.has(VIRTIO_STATUS_DEVICE_NEEDS_RESET)) return undefined;
      throw new VmError(`${what}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** From now on what the device writes to is noted. @throws VmError - the device cannot do that */
  startDirtyLog(): Promise<void> {
    return this.#inTurn(() => this.#device.startDirtyLog());
  }

  takeDirty(): readonly DirtyRange[] {
    return this.#device.takeDirty();
  }

  /** Never throws. */
  stopDirtyLog(): Promise<void> {
    return this.#inTurn(() => this.#device.stopDirtyLog());
  }

  /** Tells the outside world that the device is here now. Never throws. */
  announce(): Promise<void> {
    return this.#inTurn(async () => this.#device.announce?.());
  }

  /** @throws VmError - the device cannot have it */
  addMemory(region: SharedRegion): Promise<void> {
    return this.#inTurn(() => this.#device.addMemory(region));
  }

  /** Never throws. */
  removeMemory(region: SharedRegion): Promise<void> {
    return this.#inTurn(() => this.#device.removeMemory(region));
  }

  #complain(line: string): void {
    this.#complaints += 1;
    if (this.#complaints > MAX_COMPLAINTS) return;
    const last = this.#complaints === MAX_COMPLAINTS ? ' (more of this device is not logged)' : '';
    this.#log(`${this.#device.name}: ${line}${last}`);
  }

  /** What can be seen of the device and its queues at this moment, for those who watch. */
  observe(): ObservedDevice {
    const isRunning = this.#activated && this.#registers.has(VIRTIO_STATUS_DRIVER_OK);
    return {
      deviceId: this.#device.deviceId,
      status: this.#registers.page.get(AT.status),
      features: this.#registers.accepted ?? 0n,
      activations: this.#counts.activations,
      queues: this.#registers.queues.map(({ index, size, maxSize, ready, availRing, usedRing }) => {
        return { index, size: size === 0 ? maxSize : size, started: isRunning && ready, availRing, usedRing };
      }),
      backendConnected: this.#device.isConnected,
    };
  }

  /** Register writes by kind, notifications that left the guest by queue, and what the device counts. */
  counters(): Record<string, number> {
    const byQueue = this.#notifyExits.map((exits, index) => [`queue_${index}_notify_exits`, exits] as const);
    return { ...this.#counts, ...Object.fromEntries(byQueue), ...this.#device.counters() };
  }

  /**
   * Takes the device away from a driver that may be using it: vCPUs may run, what they write is ignored from now on. Ends
   * in `close`, when nothing of the device touches guest memory. Never throws.
   */
  async unplug(): Promise<void> {
    this.#isLeaving = true;
    await this.#inTurn(async () => {
      if (this.#activated && !this.#closed) await this.#device.reset();
      this.close();
    });
  }

  /** Ends transport and device; its place is empty then. No vCPU runs any more. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#device.close();
    this.#signals.close();
    showEmptySlot(this.#memory);
  }
}
