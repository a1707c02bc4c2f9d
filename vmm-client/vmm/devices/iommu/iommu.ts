/**
 * An IOMMU between devices of back ends and guest memory, which the guest's driver programs. The VMM serves its queues;
 * back ends ask the front end of their device for translations and are told when they end. An endpoint's number is the
 * slot of its device. Properties of endpoints there are none: interrupts are no messages here, so no address is reserved
 * for them. Source: VIRTIO 1.3, 5.13 IOMMU Device.
 */

import { VIRTIO_ID_IOMMU } from '../../../../protocol/virtio/device-ids.ts';
import {
  VIRTIO_IOMMU_CONFIG as AT,
  VIRTIO_IOMMU_CONFIG_BYTES,
  VIRTIO_IOMMU_EVENT_QUEUE,
  VIRTIO_IOMMU_F_BYPASS_CONFIG,
  VIRTIO_IOMMU_F_DOMAIN_RANGE,
  VIRTIO_IOMMU_F_INPUT_RANGE,
  VIRTIO_IOMMU_F_MAP_UNMAP,
  VIRTIO_IOMMU_F_PROBE,
  VIRTIO_IOMMU_FAULT,
  VIRTIO_IOMMU_FAULT_BYTES,
  VIRTIO_IOMMU_FAULT_F_ADDRESS,
} from '../../../../protocol/virtio/iommu.ts';
import { featureMask, hasFeature } from '../../../../protocol/virtio/reserved-features.ts';
import type { SharedRegion } from '../../../frontend/hand-over.ts';
import type { IoMappings } from '../../../frontend/io-mappings.ts';
import type { LocalHost, LocalModel } from '../local/local-device.ts';
import { AddressSpaces, DOMAIN_END, INPUT_END, type SpacesOptions } from './address-spaces.ts';
import { answerRequest, PROBE_BYTES } from './requests.ts';
import { restoreSpaces, saveSpaces } from './state.ts';

export interface IommuOptions {
  readonly ram: SpacesOptions['ram'];
  /** The slot it is in, which is no endpoint. */
  readonly slot: number;
  readonly log: (line: string) => void;
}

/** Every size from a page on. */
const PAGE_SIZE_MASK = 0xffff_ffff_ffff_f000n;
const QUEUE_SIZES = [256, 64];
/** Like QEMU's: a guest whose kernel has no driver for the IOMMU has devices all the same. */
const INITIAL_BYPASS = true;
/** Lines that are logged of back ends. */
const MAX_COMPLAINTS = 20;

export class VirtioIommu implements LocalModel {
  readonly name = 'iommu';
  readonly deviceId = VIRTIO_ID_IOMMU;
  readonly queueSizes = QUEUE_SIZES;
  readonly bufferQueues = [VIRTIO_IOMMU_EVENT_QUEUE];
  readonly features = featureMask(
    VIRTIO_IOMMU_F_INPUT_RANGE,
    VIRTIO_IOMMU_F_DOMAIN_RANGE,
    VIRTIO_IOMMU_F_MAP_UNMAP,
    VIRTIO_IOMMU_F_PROBE,
    VIRTIO_IOMMU_F_BYPASS_CONFIG,
  );
  readonly #spaces: AddressSpaces;
  readonly #log: (line: string) => void;
  #host: LocalHost | undefined;
  /** What the driver accepted. */
  #accepted = 0n;
  /** The end of all changes so far. */
  #tail: Promise<unknown>;
  #requests = 0;
  #faults = 0;
  #faultsDropped = 0;
  #complaints = 0;

  constructor({ ram, slot, log }: IommuOptions) {
    this.#log = log;
    this.#spaces = new AddressSpaces({
      ram,
      without: [slot],
      onFault: (reason, endpoint, iova, permission) => this.#report(reason, endpoint, iova, permission),
      onRefusal: (endpoint, error) => this.#complain(`endpoint ${endpoint}: ${error.message}`),
    });
    this.#tail = this.#spaces.setBypass(INITIAL_BYPASS);
  }

  /** What the device in a slot reaches, whether there is one or not. @throws RangeError - the slot has no endpoint */
  endpoint(slot: number): IoMappings {
    const endpoint = this.#spaces.endpoints.get(slot);
    if (endpoint === undefined) throw new RangeError(`slot ${slot} is not behind the IOMMU`);
    return endpoint.mappings;
  }

  /** After a reset of the whole machine, of which a reset of the device is a part: `bypass` is as at the start. */
  async systemReset(): Promise<void> {
    await this.#next(() => this.#spaces.setBypass(INITIAL_BYPASS));
    this.#host?.configChanged();
  }

  get config(): Uint8Array {
    const view = new DataView(new ArrayBuffer(VIRTIO_IOMMU_CONFIG_BYTES));
    view.setBigUint64(AT.page_size_mask, PAGE_SIZE_MASK, true);
    view.setBigUint64(AT.input_range_end, BigInt(INPUT_END), true);
    view.setUint32(AT.domain_range_end, DOMAIN_END, true);
    view.setUint32(AT.probe_size, PROBE_BYTES, true);
    view.setUint8(AT.bypass, this.#spaces.bypass ? 1 : 0);
    return new Uint8Array(view.buffer);
  }

  plug(host: LocalHost): void {
    this.#host = host;
  }

  activated(features: bigint): void {
    this.#accepted = features;
  }

  serve(_queue: number, request: Uint8Array, writable: number): Promise<Uint8Array> {
    this.#requests += 1;
    return this.#next(() => answerRequest(this.#spaces, this.#accepted, request, writable));
  }

  /** Changes come one after the other, whoever asks for them. */
  #next<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(change);
    this.#tail = result.catch(() => undefined);
    return result;
  }

  async writeConfig(offset: number, bytes: Uint8Array, features: bigint): Promise<void> {
    const [value = 2] = bytes;
    if (offset !== AT.bypass || bytes.length !== 1 || value > 1) return;
    if (!hasFeature(features, VIRTIO_IOMMU_F_BYPASS_CONFIG)) return;
    await this.#next(() => this.#spaces.setBypass(value === 1));
  }

  async reset(): Promise<void> {
    this.#accepted = 0n;
    await this.#next(() => this.#spaces.clear());
  }

  save(): unknown {
    return saveSpaces(this.#spaces);
  }

  async restore(state: unknown): Promise<void> {
    await this.#next(() => restoreSpaces(this.#spaces, state, this.name));
  }

  async memoryAdded(region: SharedRegion): Promise<void> {
    await this.#next(() => this.#spaces.memoryAdded(region));
  }

  async memoryRemoved(region: SharedRegion): Promise<void> {
    await this.#next(() => this.#spaces.memoryRemoved(region));
  }

  /** Reports a fault to the driver, if it has left a buffer for that. */
  #report(reason: number, endpoint: number, iova: bigint, permission: number): void {
    this.#faults += 1;
    const view = new DataView(new ArrayBuffer(VIRTIO_IOMMU_FAULT_BYTES));
    view.setUint8(VIRTIO_IOMMU_FAULT.reason, reason);
    // READ and WRITE are the same bits in both.
    view.setUint32(VIRTIO_IOMMU_FAULT.flags, VIRTIO_IOMMU_FAULT_F_ADDRESS | permission, true);
    view.setUint32(VIRTIO_IOMMU_FAULT.endpoint, endpoint, true);
    view.setBigUint64(VIRTIO_IOMMU_FAULT.address, iova, true);
    const isTold = this.#host?.send(VIRTIO_IOMMU_EVENT_QUEUE, new Uint8Array(view.buffer)) ?? false;
    if (!isTold) this.#faultsDropped += 1;
  }

  #complain(line: string): void {
    this.#complaints += 1;
    if (this.#complaints <= MAX_COMPLAINTS) this.#log(`${this.name}: ${line}`);
  }

  counters(): Record<string, number> {
    return {
      requests: this.#requests,
      domains: this.#spaces.domainCount,
      mappings: this.#spaces.mappingCount,
      attached_endpoints: this.#spaces.attachedCount,
      faults: this.#faults,
      faults_dropped: this.#faultsDropped,
    };
  }

  close(): void {
    this.#host = undefined;
  }
}
