/** What one front end negotiated of the network device, and what its rings are. */

import {
  ETHERNET_HEADER_BYTES,
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_HDR_BYTES,
  VIRTIO_NET_LEGACY_HDR_BYTES,
  VIRTIO_NET_MAX_PACKET_BYTES,
  VIRTIO_NET_MIN_MTU,
  VIRTIO_NET_S_ANNOUNCE,
} from '../../protocol/virtio/net.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../protocol/virtio/reserved-features.ts';
import type { Attachment, RingAttachment } from '../core/device.ts';
import { REQUEST_RING, type RingTraits } from '../core/ring-traits.ts';
import type { Vring } from '../core/vring.ts';
import { GUEST_OFFLOADS, hasSegmentation, tapOffloads } from './config-space.ts';
import { type Controlled, processControlQueue } from './control.ts';
import type { NetDevice } from './device.ts';
import type { ReceiveFormat } from './receive.ts';
import { compileReceiveFilter, ReceiveFilter } from './receive-filter.ts';

const RECEIVE_RING: RingTraits = { offersBuffers: true, runsDisabled: false };
/** What is sent while the ring is disabled is taken and dropped. */
const TRANSMIT_RING: RingTraits = { offersBuffers: false, runsDisabled: true };
/** Two tags of 4 bytes. */
const VLAN_BYTES = 8;

export class NetAttachment implements Attachment<NetAttachment>, RingAttachment, Controlled {
  readonly shared = this;
  readonly #device: NetDevice;
  #accepted = 0n;
  /** What the driver takes of the TAP: TUN_F_ bits. */
  offloads = 0;
  format: ReceiveFormat = { headerBytes: VIRTIO_NET_HDR_BYTES, mergeable: false, maxBytes: 0 };
  /** Pairs that the driver uses: all it enables, unless it says so on our control queue. */
  activePairs: number;
  /** What the driver asked for on the control queue. */
  filter: ReceiveFilter;
  /** The same for the TAP; undefined lets everything pass. */
  #program: Uint8Array | undefined;
  #filterChanged = false;
  /** Indices of receive and transmit rings that are started. */
  readonly #started = new Set<number>();
  #controlRing: Vring | undefined;
  /** The driver is asked to tell the network where it is. */
  #announces = false;

  constructor(device: NetDevice) {
    this.#device = device;
    this.activePairs = device.profile.pairs;
    this.filter = new ReceiveFilter(device.profile.mac, false);
    this.updateFormat();
  }

  setFeatures(accepted: bigint): void {
    this.#accepted = accepted;
    this.offloads = tapOffloads(accepted);
    // 5.1.5.1: only the first pair until the driver says otherwise, which it does by a control queue.
    this.activePairs = hasFeature(accepted, VIRTIO_NET_F_CTRL_VQ) ? 1 : this.#device.profile.pairs;
    this.filter = new ReceiveFilter(this.#device.profile.mac, hasFeature(accepted, VIRTIO_NET_F_CTRL_VLAN));
    this.#program = undefined;
    this.#announces = false;
    this.updateFormat();
    if (this.#device.isOwner(this)) this.#device.adopt(this);
  }

  hasNegotiated(feature: number): boolean {
    return hasFeature(this.#accepted, feature);
  }

  /** Follows the driver's features and the TAP's MTU. */
  updateFormat(): void {
    const mergeable = hasFeature(this.#accepted, VIRTIO_NET_F_MRG_RXBUF);
    const modern = mergeable || hasFeature(this.#accepted, VIRTIO_F_VERSION_1);
    const headerBytes = modern ? VIRTIO_NET_HDR_BYTES : VIRTIO_NET_LEGACY_HDR_BYTES;
    const frame = hasSegmentation(this.offloads)
      ? VIRTIO_NET_MAX_PACKET_BYTES
      : Math.min(this.#device.mtu + ETHERNET_HEADER_BYTES + VLAN_BYTES, VIRTIO_NET_MAX_PACKET_BYTES);
    this.format = { headerBytes, mergeable, maxBytes: headerBytes + frame };
  }

  /** Index of the control queue, or -1: behind the pairs that are negotiated, 5.1.2. */
  get #controlQueue(): number {
    if (!this.#device.profile.controlQueue || !hasFeature(this.#accepted, VIRTIO_NET_F_CTRL_VQ)) return -1;
    return hasFeature(this.#accepted, VIRTIO_NET_F_MQ) ? 2 * this.#device.profile.pairs : 2;
  }

  ringTraits(index: number): RingTraits {
    if (index === this.#controlQueue) return REQUEST_RING;
    return (index & 1) === 0 ? RECEIVE_RING : TRANSMIT_RING;
  }

  ringChanged(vring: Vring): void {
    const isControl = vring.index === this.#controlQueue;
    if (vring.started && !isControl) this.#started.add(vring.index);
    else this.#started.delete(vring.index);
    if (isControl) this.#controlRing = vring.started && vring.enabled ? vring : undefined;
    else this.#device.ringChanged(this, vring);
  }

  processQueue(vring: Vring, budget: number): number {
    if (vring.index === this.#controlQueue) return this.#processControlQueue(vring, budget);
    if (vring.index >> 1 >= this.#device.pairs.length) return 0;
    return this.#device.processQueue(vring, budget, this);
  }

  #processControlQueue(vring: Vring, budget: number): number {
    const taken = processControlQueue(vring, budget, this);
    // Before the driver is told that the commands are done.
    if (this.#filterChanged) {
      this.#filterChanged = false;
      this.#program = this.hasNegotiated(VIRTIO_NET_F_CTRL_RX) ? compileReceiveFilter(this.filter) : undefined;
      if (this.#device.isOwner(this)) this.#device.updateFilter();
    }
    return taken;
  }

  filterChanged(): void {
    this.#filterChanged = true;
  }

  /** What the TAP lets pass while rings are in service. */
  get filterProgram(): Uint8Array | undefined {
    return this.#started.size > 0 ? this.#program : undefined;
  }

  usePairs(count: number): boolean {
    if (count < 1 || count > this.#device.profile.pairs) return false;
    this.activePairs = count;
    if (this.#device.isOwner(this)) this.#device.limitPairs(count);
    return true;
  }

  useOffloads(features: bigint): boolean {
    if ((features & ~(this.#accepted & GUEST_OFFLOADS)) !== 0n) return false;
    this.offloads = tapOffloads(features);
    this.updateFormat();
    if (this.#device.isOwner(this)) this.#device.adopt(this);
    return true;
  }

  readConfig(): Uint8Array {
    const { status } = this.#device;
    const bytes = this.#device.readConfig(this.#announces ? status | VIRTIO_NET_S_ANNOUNCE : status);
    if (this.filter.mac !== undefined) bytes.set(this.filter.mac, VIRTIO_NET_CONFIG.mac);
    return bytes;
  }

  writeConfig(offset: number, data: Uint8Array, migration: boolean): string | undefined {
    // A migrated configuration space comes whole, and none of it is state of ours.
    if (migration) return undefined;
    return `${data.length} bytes at ${offset} of the configuration space: nothing of it is writable`;
  }

  setMtu(mtu: number): string | undefined {
    if (mtu < VIRTIO_NET_MIN_MTU) return `MTU ${mtu}: at least ${VIRTIO_NET_MIN_MTU} is possible`;
    const { mtu: limit } = this.#device;
    return mtu > limit ? `MTU ${mtu}: that of the TAP is ${limit}` : undefined;
  }

  announce(address: Uint8Array): void {
    this.#device.announce(address);
    if (this.#controlRing === undefined || !this.hasNegotiated(VIRTIO_NET_F_GUEST_ANNOUNCE)) return;
    // The driver knows more of its addresses than we do, if it hears of it.
    this.#announces = true;
    this.#device.onConfigChange();
  }

  announcementAcknowledged(): void {
    this.#announces = false;
  }

  saveState(): boolean {
    return false;
  }

  restoreState(): void {}

  reset(): void {
    this.setFeatures(0n);
  }
}
