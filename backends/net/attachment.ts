/** What one front end negotiated of the network device, and what its rings are. */

import {
  ETHERNET_HEADER_BYTES,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_HDR_BYTES,
  VIRTIO_NET_LEGACY_HDR_BYTES,
  VIRTIO_NET_MAX_PACKET_BYTES,
  VIRTIO_NET_MIN_MTU,
} from '../../protocol/virtio/net.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../protocol/virtio/reserved-features.ts';
import { type Attachment, REQUEST_RING, type RingTraits } from '../core/device.ts';
import type { Vring } from '../core/vring.ts';
import { hasSegmentation, tapOffloads } from './config-space.ts';
import type { NetDevice } from './device.ts';
import type { ReceiveFormat } from './receive.ts';

const RECEIVE_RING: RingTraits = { offersBuffers: true, runsDisabled: false };
/** What is sent while the ring is disabled is taken and dropped. */
const TRANSMIT_RING: RingTraits = { offersBuffers: false, runsDisabled: true };
/** Two tags of 4 bytes. */
const VLAN_BYTES = 8;

export class NetAttachment implements Attachment {
  readonly #device: NetDevice;
  #accepted = 0n;
  /** What the driver takes of the TAP: TUN_F_ bits. */
  offloads = 0;
  format: ReceiveFormat = { headerBytes: VIRTIO_NET_HDR_BYTES, mergeable: false, maxBytes: 0 };
  /** Pairs that the driver uses: all it enables, unless it says so on our control queue. */
  activePairs: number;

  constructor(device: NetDevice) {
    this.#device = device;
    this.activePairs = device.profile.pairs;
    this.updateFormat();
  }

  setFeatures(accepted: bigint): void {
    this.#accepted = accepted;
    this.offloads = tapOffloads(accepted);
    // 5.1.5.1: only the first pair until the driver says otherwise, which it does by a control queue.
    this.activePairs = hasFeature(accepted, VIRTIO_NET_F_CTRL_VQ) ? 1 : this.#device.profile.pairs;
    this.updateFormat();
    if (this.#device.isOwner(this)) this.#device.use(this);
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
    if (vring.index !== this.#controlQueue) this.#device.ringChanged(this, vring);
  }

  processQueue(vring: Vring, budget: number): number {
    if (vring.index === this.#controlQueue || vring.index >> 1 >= this.#device.pairs.length) return 0;
    return this.#device.processQueue(vring, budget, this);
  }

  readConfig(): Uint8Array {
    return this.#device.readConfig(this.#device.status);
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
  }

  saveState(): boolean {
    return false;
  }

  restoreState(): void {}

  reset(): void {
    this.setFeatures(0n);
  }
}
