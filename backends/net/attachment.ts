/** What one front end negotiated of the network device, and what its driver said on the control queue. */

import {
  ETHERNET_HEADER_BYTES,
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_HDR_BYTES,
  VIRTIO_NET_LEGACY_HDR_BYTES,
  VIRTIO_NET_MAX_PACKET_BYTES,
  VIRTIO_NET_MIN_MTU,
  VIRTIO_NET_S_ANNOUNCE,
} from '../../protocol/virtio/net.ts';
import { VIRTIO_F_VERSION_1 } from '../../protocol/virtio/reserved-features.ts';
import type { Attachment } from '../core/device.ts';
import { GUEST_OFFLOADS, hasSegmentation, tapOffloads } from './config-space.ts';
import type { ControlCommand } from './control.ts';
import type { NetDevice } from './device.ts';
import { type DriverChoices, decodeDriverChoices, encodeDriverChoices } from './driver-choices.ts';
import { compileReceiveFilter, ReceiveFilter } from './receive-filter.ts';
import { controlQueueOf } from './rings.ts';
import { NetDriverState } from './state.ts';

/** Two tags of 4 bytes. */
const VLAN_BYTES = 8;

export class NetAttachment implements Attachment<SharedArrayBuffer> {
  readonly #device: NetDevice;
  /** What data paths need to know of this driver. */
  readonly #driver = new NetDriverState();
  /** What the driver takes of the TAP: GUEST_ feature bits. */
  #takes = 0n;
  /** What the driver asked for on the control queue. */
  #filter: ReceiveFilter;
  /** The same for the TAP; undefined lets everything pass. */
  #program: Uint8Array | undefined;
  /** Indices of receive and transmit rings that are started. */
  readonly #started = new Set<number>();
  /** The control queue is in service. */
  #isControlled = false;
  /** The driver is asked to tell the network where it is. */
  #announces = false;
  /** What the driver told the daemon before this one, or on another host: until it chooses again or its rings are stopped. */
  #imported: DriverChoices | undefined;
  onChoice: () => void = () => undefined;

  /** @param id what the driver is called between threads */
  constructor(device: NetDevice, id: number) {
    this.#device = device;
    this.#driver.id = id;
    this.#driver.activePairs = device.profile.pairs;
    this.#filter = new ReceiveFilter(device.profile.mac, false);
    this.updateFormat();
  }

  get shared(): SharedArrayBuffer {
    return this.#driver.shared;
  }

  setFeatures(accepted: bigint): void {
    const driver = this.#driver;
    driver.features = accepted;
    this.#takes = accepted & GUEST_OFFLOADS;
    // 5.1.5.1: only the first pair until the driver says otherwise, which it does by a control queue.
    driver.activePairs = driver.hasNegotiated(VIRTIO_NET_F_CTRL_VQ) ? 1 : this.#device.profile.pairs;
    this.#filter = new ReceiveFilter(this.#device.profile.mac, driver.hasNegotiated(VIRTIO_NET_F_CTRL_VLAN));
    this.#program = undefined;
    this.#announces = false;
    if (this.#imported?.features === this.#deviceFeatures) this.#takeUp(this.#imported);
    this.updateFormat();
    this.#device.follow(this);
    this.onChoice();
  }

  /** What the driver accepted, without the bits of rings and transport. */
  get #deviceFeatures(): bigint {
    return this.#driver.features & this.#device.features;
  }

  #takeUp({ offloads, pairs, filter, announces }: DriverChoices): void {
    this.#takes = offloads;
    if (pairs > 0) this.#driver.activePairs = pairs;
    this.#filter = filter;
    this.#announces = announces;
    this.compileFilter();
  }

  exportState(): Uint8Array {
    if (this.#imported !== undefined) return encodeDriverChoices(this.#imported);
    const isAsked = this.#driver.hasNegotiated(VIRTIO_NET_F_CTRL_VQ);
    return encodeDriverChoices({
      features: this.#deviceFeatures,
      offloads: this.#takes,
      pairs: isAsked ? this.activePairs : 0,
      filter: this.#filter,
      announces: this.#announces,
    });
  }

  /** The front end may tell the driver's features after this. */
  importState(state: Uint8Array): string | undefined {
    const choices = decodeDriverChoices(state);
    if (typeof choices === 'string') return choices;
    const { pairs } = this.#device.profile;
    if (choices.pairs > pairs) return `the driver uses ${choices.pairs} pairs of queues, there are ${pairs}`;
    const missing = choices.features & ~this.#device.features;
    if (missing !== 0n) return `the driver uses features that are not offered here: 0x${missing.toString(16)}`;
    this.#imported = choices;
    if (choices.features === this.#deviceFeatures) this.setFeatures(this.#driver.features);
    return undefined;
  }

  saveChoices(): Uint8Array {
    return this.exportState();
  }

  restoreChoices(choices: Uint8Array): string | undefined {
    return this.importState(choices);
  }

  /** TUN_F_ bits. */
  get offloads(): number {
    return tapOffloads(this.#takes);
  }

  /** Pairs that the driver uses: all it enables, unless it says so on our control queue. */
  get activePairs(): number {
    return this.#driver.activePairs;
  }

  get headerBytes(): number {
    return this.#driver.format.headerBytes;
  }

  /** Follows the driver's features and the TAP's MTU. */
  updateFormat(): void {
    const mergeable = this.#driver.hasNegotiated(VIRTIO_NET_F_MRG_RXBUF);
    const modern = mergeable || this.#driver.hasNegotiated(VIRTIO_F_VERSION_1);
    const headerBytes = modern ? VIRTIO_NET_HDR_BYTES : VIRTIO_NET_LEGACY_HDR_BYTES;
    const frame = hasSegmentation(this.offloads)
      ? VIRTIO_NET_MAX_PACKET_BYTES
      : Math.min(this.#device.mtu + ETHERNET_HEADER_BYTES + VLAN_BYTES, VIRTIO_NET_MAX_PACKET_BYTES);
    this.#driver.format = { headerBytes, mergeable, maxBytes: headerBytes + frame };
  }

  /** A ring was started or stopped, enabled or disabled. Returns whether it is the control queue. */
  noteRing(index: number, started: boolean, enabled: boolean): boolean {
    const { pairs, controlQueue } = this.#device.profile;
    const isControl = controlQueue && index === controlQueueOf(this.#driver, pairs);
    if (started && !isControl) this.#started.add(index);
    else this.#started.delete(index);
    if (isControl) this.#isControlled = started && enabled;
    if (this.#started.size === 0 && !started) this.#imported = undefined;
    return isControl;
  }

  /** Does what a command on the control queue says. False when it cannot be done, and nothing was. */
  perform(command: ControlCommand): boolean {
    this.#imported = undefined;
    const done = this.#perform(command);
    if (done) this.onChoice();
    return done;
  }

  #perform(command: ControlCommand): boolean {
    switch (command.kind) {
      case 'mode':
        this.#filter[command.mode] = command.on;
        return true;
      case 'tables':
        this.#filter.unicast = command.unicast;
        this.#filter.multicast = command.multicast;
        return true;
      case 'address':
        this.#filter.mac = command.mac;
        return true;
      case 'vlan':
        this.#filter.setVlan(command.id, command.passes);
        return true;
      case 'pairs':
        return this.#usePairs(command.count);
      case 'offloads':
        return this.#useOffloads(command.features);
      case 'announced':
        this.#announces = false;
        return true;
    }
  }

  /** The filter was changed: makes the TAP's from it. */
  compileFilter(): void {
    this.#program = this.#driver.hasNegotiated(VIRTIO_NET_F_CTRL_RX) ? compileReceiveFilter(this.#filter) : undefined;
  }

  /** What the TAP lets pass while rings are in service. */
  get filterProgram(): Uint8Array | undefined {
    return this.#started.size > 0 ? this.#program : undefined;
  }

  #usePairs(count: number): boolean {
    if (count < 1 || count > this.#device.profile.pairs) return false;
    this.#driver.activePairs = count;
    this.#device.followCommand(this);
    return true;
  }

  #useOffloads(features: bigint): boolean {
    if ((features & ~(this.#driver.features & GUEST_OFFLOADS)) !== 0n) return false;
    this.#takes = features;
    this.updateFormat();
    this.#device.followCommand(this);
    return true;
  }

  readConfig(): Uint8Array {
    const { status } = this.#device;
    const bytes = this.#device.readConfig(this.#announces ? status | VIRTIO_NET_S_ANNOUNCE : status);
    if (this.#filter.mac !== undefined) bytes.set(this.#filter.mac, VIRTIO_NET_CONFIG.mac);
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
    if (!this.#isControlled || !this.#driver.hasNegotiated(VIRTIO_NET_F_GUEST_ANNOUNCE)) return;
    // The driver knows more of its addresses than we do, if it hears of it.
    this.#announces = true;
    this.#imported = undefined;
    this.onChoice();
    this.#device.onConfigChange();
  }

  saveState(): boolean {
    return false;
  }

  restoreState(): void {}

  reset(): void {
    this.#imported = undefined;
    this.setFeatures(0n);
  }

  close(): void {
    this.#device.detach(this.#driver.id);
  }
}
