/**
 * What a driver has set up of a device in memory, and what it reads of that: status, features, queues, interrupt causes,
 * configuration space. What the device is to do about it is the transport's business. All of it can be taken elsewhere,
 * as plain data. Source: VIRTIO 1.3, 2.1 Device Status Field, 4.2.2 MMIO Device Register Layout.
 */

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
import {
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../../protocol/virtio/reserved-features.ts';
import type { VirtioDevice } from '../devices/virtio-device.ts';
import { VmError } from '../errors.ts';
import { PAGE_BYTES } from '../layout.ts';
import { bytesOf, fieldsOf, flagOf, integerOf, listOf } from '../state/codec.ts';
import { FeatureRegisters, type FeatureState } from './feature-registers.ts';
import { QueueRegisters, type QueueState } from './queue-registers.ts';
import { RegisterPage } from './register-page.ts';

/** "RING", little endian. */
const VENDOR_ID = 0x474e_4952;
const NO_REGION = 0xffff_ffff;
const MAX_REGISTER = 0xffff_ffff;
const INTERRUPT_CAUSES = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
const STATUS_BITS =
  VIRTIO_STATUS_ACKNOWLEDGE |
  VIRTIO_STATUS_DRIVER |
  VIRTIO_STATUS_DRIVER_OK |
  VIRTIO_STATUS_FEATURES_OK |
  VIRTIO_STATUS_DEVICE_NEEDS_RESET |
  VIRTIO_STATUS_FAILED;

/** The registers as plain data. */
export interface RegisterState {
  readonly deviceId: number;
  readonly status: number;
  readonly interruptStatus: number;
  readonly configGeneration: number;
  /** As the driver saw it last. */
  readonly config: Uint8Array;
  /** Whether `config` is news that the driver is to be told of at DRIVER_OK. */
  readonly changeUntold: boolean;
  readonly features: FeatureState;
  readonly selectedQueue: number;
  readonly queues: readonly QueueState[];
}

export class DriverRegisters {
  readonly page: RegisterPage;
  readonly #device: VirtioDevice;
  readonly #features: FeatureRegisters;
  #queues: QueueRegisters[];
  #selected = 0;
  /** Whether the configuration changed since the driver may have read it, and before it can be told. */
  changeUntold = false;

  /** Fills the page, which stays the caller's, with those of a device that nobody has touched. */
  constructor(memory: PinnedMemory, device: VirtioDevice) {
    this.#device = device;
    this.page = new RegisterPage(memory);
    this.#features = new FeatureRegisters(device.features);
    this.#queues = this.#freshQueues();
    this.page.set(AT.magic_value, VIRTIO_MMIO_MAGIC);
    this.page.set(AT.version, VIRTIO_MMIO_VERSION);
    this.page.set(AT.device_id, device.deviceId);
    this.page.set(AT.vendor_id, VENDOR_ID);
    for (const register of [AT.shm_len_low, AT.shm_len_high, AT.shm_base_low, AT.shm_base_high]) {
      this.page.set(register, NO_REGION);
    }
    this.page.replaceConfig(device.config);
    this.showSelected();
  }

  #freshQueues(): QueueRegisters[] {
    return this.#device.queueSizes.map((size, index) => new QueueRegisters(index, size));
  }

  /** Whether a bit of Status is set. */
  has(bit: number): boolean {
    return (this.page.get(AT.status) & bit) !== 0;
  }

  setStatus(bits: number): void {
    this.page.set(AT.status, this.page.get(AT.status) | bits);
  }

  /** Shows a cause of interrupts. */
  raise(cause: number): void {
    this.page.set(AT.interrupt_status, this.page.get(AT.interrupt_status) | cause);
  }

  /** Only a changed configuration can be acknowledged: used buffers are always shown. */
  acknowledge(causes: number): void {
    this.page.set(AT.interrupt_status, this.page.get(AT.interrupt_status) & ~(causes & VIRTIO_MMIO_INT_CONFIG));
  }

  /** What the driver accepted; undefined where some of it is not offered. */
  get accepted(): bigint | undefined {
    return this.#features.accepted;
  }

  /** What keeps the device from working with the features that the driver accepted. */
  get featureComplaint(): string | undefined {
    const { accepted } = this.#features;
    if (accepted === undefined) return 'some that are not offered';
    if (!hasFeature(accepted, VIRTIO_F_VERSION_1)) return 'all without VERSION_1';
    const needsPlatform = hasFeature(this.#device.features, VIRTIO_F_ACCESS_PLATFORM);
    if (needsPlatform && !hasFeature(accepted, VIRTIO_F_ACCESS_PLATFORM)) {
      return 'all without ACCESS_PLATFORM, and the device is behind an IOMMU';
    }
    const missing = (this.#device.required ?? 0n) & ~accepted;
    if (missing !== 0n) return `all without 0x${missing.toString(16)}, which the device cannot do without`;
    return undefined;
  }

  get #isPacked(): boolean {
    return hasFeature(this.#features.accepted ?? 0n, VIRTIO_F_RING_PACKED);
  }

  writeFeatures(offset: number, value: number): void {
    if (offset === AT.device_features_sel) this.#features.offeredSelector = value;
    else if (offset === AT.driver_features_sel) this.#features.acceptedSelector = value;
    else if (!this.has(VIRTIO_STATUS_FEATURES_OK)) this.#features.accept(value);
    this.showSelected();
  }

  select(queue: number): void {
    this.#selected = queue;
    this.showSelected();
  }

  get selected(): QueueRegisters | undefined {
    return this.#queues[this.#selected];
  }

  get queues(): readonly QueueRegisters[] {
    return this.#queues;
  }

  queue(index: number): QueueRegisters | undefined {
    return this.#queues[index];
  }

  /** A queue is set up between FEATURES_OK and DRIVER_OK, while it is not ready. Returns false where nothing was written. */
  writeQueue(offset: number, value: number): boolean {
    const queue = this.selected;
    const mayWrite = this.has(VIRTIO_STATUS_FEATURES_OK) && !this.has(VIRTIO_STATUS_DRIVER_OK);
    return queue !== undefined && mayWrite && !queue.ready && queue.write(offset, value, this.#isPacked);
  }

  /** The queues that the driver made ready. @throws RangeError - one of them can be none */
  readyQueues(): readonly QueueRegisters[] {
    const ready = this.#queues.filter((queue) => queue.ready);
    for (const queue of ready) queue.check(this.#isPacked);
    return ready;
  }

  /** Registers that say something of what was selected. */
  showSelected(): void {
    const queue = this.selected;
    this.page.set(AT.device_features, this.#features.offeredWord);
    this.page.set(AT.queue_num_max, queue?.maxSize ?? 0);
    this.page.set(AT.queue_ready, queue?.ready === true ? 1 : 0);
  }

  /** Back to where nobody has touched the device. */
  clear(): void {
    this.changeUntold = false;
    this.#features.reset();
    this.#queues = this.#freshQueues();
    this.#selected = 0;
    this.page.set(AT.interrupt_status, 0);
    this.page.set(AT.status, 0);
    this.page.replaceConfig(this.#device.config);
    this.showSelected();
  }

  save(): RegisterState {
    return {
      deviceId: this.#device.deviceId,
      status: this.page.get(AT.status),
      interruptStatus: this.page.get(AT.interrupt_status),
      configGeneration: this.page.get(AT.config_generation),
      config: this.#device.config.slice(),
      changeUntold: this.changeUntold,
      features: this.#features.save(),
      selectedQueue: this.#selected,
      queues: this.#queues.map((queue) => queue.save()),
    };
  }

  /**
   * Takes over what `save` returned, of a device that nobody has touched here. `what` is what it is called in messages.
   * @throws VmError - this is something else, or the device here is not like that one
   */
  load(state: unknown, what: string): void {
    const {
      deviceId,
      status,
      interruptStatus,
      configGeneration,
      config,
      changeUntold,
      features,
      selectedQueue,
      queues,
    } = fieldsOf(state, what);
    const id = integerOf(deviceId, `${what}: deviceId`, { maximum: MAX_REGISTER });
    if (id !== this.#device.deviceId) {
      throw new VmError(`${what}: it is of a device of type ${id}, here is one of type ${this.#device.deviceId}`);
    }
    const bits = integerOf(status, `${what}: status`, { maximum: STATUS_BITS });
    const causes = integerOf(interruptStatus, `${what}: interruptStatus`, { maximum: INTERRUPT_CAUSES });
    const generation = integerOf(configGeneration, `${what}: configGeneration`, { maximum: MAX_REGISTER });
    const space = bytesOf(config, `${what}: config`);
    if (space.length > PAGE_BYTES - AT.config) throw new VmError(`${what}: config: ${space.length} bytes are no space`);
    this.#features.load(features, `${what}: features`);
    this.#checkStatus(bits, what);
    this.#loadQueues(queues, `${what}: queues`);
    this.#selected = integerOf(selectedQueue, `${what}: selectedQueue`, { maximum: MAX_REGISTER });
    this.changeUntold = flagOf(changeUntold, `${what}: changeUntold`);
    this.page.set(AT.interrupt_status, causes);
    this.page.set(AT.status, bits);
    this.page.loadConfig(space, generation);
    this.showSelected();
  }

  #checkStatus(bits: number, what: string): void {
    if ((bits & ~STATUS_BITS) !== 0) throw new VmError(`${what}: status: there is no status 0x${bits.toString(16)}`);
    if ((bits & VIRTIO_STATUS_FEATURES_OK) !== 0) {
      const { missing } = this.#features;
      if (missing !== 0n) {
        throw new VmError(`${what}: the driver uses features that its back end here lacks (0x${missing.toString(16)})`);
      }
      const complaint = this.featureComplaint;
      if (complaint !== undefined) throw new VmError(`${what}: the driver's features cannot be: ${complaint}`);
    } else if ((bits & VIRTIO_STATUS_DRIVER_OK) !== 0) {
      throw new VmError(`${what}: status: DRIVER_OK without FEATURES_OK`);
    }
  }

  #loadQueues(states: unknown, what: string): void {
    const list = listOf(states, what, MAX_REGISTER);
    if (list.length !== this.#queues.length) {
      throw new VmError(`${what}: ${list.length} in the state, the device here has ${this.#queues.length}`);
    }
    for (const [index, queue] of this.#queues.entries()) queue.load(list[index], this.#isPacked, `${what}: ${index}`);
  }
}
