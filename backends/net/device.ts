/**
 * The network device: it joins rings and TAP. Rings come in pairs, each with a queue of the TAP; `processQueue` submits
 * packets, `poll` hands them to the kernel and finishes them. One per daemon; each front end has an attachment with what
 * it negotiated. Source: VIRTIO 1.3, 5.1 Network Device.
 */

import { EBADFD, EINVAL, EIO, ENOSYS, EPERM, SysError } from '../../protocol/sys/errors.ts';
import { supportsNowait } from '../../protocol/sys/tap.ts';
import { VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_RARP } from '../../protocol/vhost-user/features.ts';
import { VIRTIO_NET_S_LINK_UP } from '../../protocol/virtio/net.ts';
import { featureMask } from '../../protocol/virtio/reserved-features.ts';
import type { DataPath, Device } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import type { Vring } from '../core/vring.ts';
import { NetAttachment } from './attachment.ts';
import { encodeNetConfig, type NetProfile, netFeatures } from './config-space.ts';
import { Counters } from './counters.ts';
import type { Engine } from './engines/engine.ts';
import { NullEngine } from './engines/null.ts';
import { SyscallEngine } from './engines/syscalls.ts';
import { UringEngine } from './engines/uring.ts';
import { LOT } from './limits.ts';
import { Packet, RECEIVE, TRANSMIT } from './packet.ts';
import { QueuePair } from './queue-pair.ts';
import { rarpAnnouncement } from './rarp.ts';
import type { Tap } from './tap.ts';
import { TapPort } from './tap-port.ts';

export class NetDevice implements Device<NetAttachment>, DataPath<NetAttachment> {
  readonly type = 'net';
  readonly maxQueues: number;
  readonly features: bigint;
  readonly protocolFeatures = featureMask(VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_RARP);
  readonly budget = LOT;
  readonly isFull = false;
  onCompletion: () => void = () => undefined;
  onConfigChange: () => void = () => undefined;

  readonly profile: NetProfile;
  readonly counters: Counters;
  readonly pairs: readonly QueuePair[];
  /** Undefined with --null. */
  readonly tap: Tap | undefined;
  readonly #log: Logger;
  readonly #engine: Engine;
  readonly #port: TapPort | undefined;
  /** The attachment whose driver the TAP is set up for. */
  #owner: NetAttachment | undefined;
  #checkIsDue = false;

  /** Takes over the TAP. @throws SysError - io_uring failed in a way that is not "not to be had" */
  constructor(tap: Tap | undefined, profile: NetProfile, log: Logger) {
    this.tap = tap;
    this.profile = profile;
    this.#log = log;
    this.#port = tap === undefined ? undefined : new TapPort(tap, log);
    this.maxQueues = 2 * profile.pairs + (profile.controlQueue ? 1 : 0);
    this.features = netFeatures(profile);
    this.counters = new Counters(log);
    const packets: Packet[] = [];
    const make = (direction: typeof TRANSMIT | typeof RECEIVE, pair: number): Packet[] =>
      Array.from({ length: LOT }, () => {
        const packet = new Packet(packets.length, direction, pair);
        packets.push(packet);
        return packet;
      });
    this.pairs = Array.from({ length: profile.pairs }, (_, index) => {
      const pair = new QueuePair(index, make(TRANSMIT, index), make(RECEIVE, index), this.counters);
      pair.onError = (errno) => this.#onError(pair, errno);
      pair.onReadable = () => this.onCompletion();
      return pair;
    });
    this.#engine = this.#createEngine(packets);
    if (tap === undefined) return;
    this.#takeQueues(tap.fds);
    tap.onChange = () => this.#onLinkChange();
    tap.onQueuesChange = () => this.#onQueuesChange(tap);
  }

  #createEngine(packets: readonly Packet[]): Engine {
    const complete = (packet: Packet): void => (this.pairs[packet.pair] as QueuePair).complete(packet);
    if (this.tap === undefined) return new NullEngine(complete);
    const { fds } = this.tap;
    if (!supportsNowait(fds[0] as number)) {
      this.#log.warn('TAPs of this kernel (before 6.4) need one system call a packet, which is slower');
      return new SyscallEngine(fds, complete);
    }
    try {
      return new UringEngine(fds, packets, complete);
    } catch (error) {
      if (!(error instanceof SysError) || ![ENOSYS, EPERM, EINVAL].includes(error.errno)) throw error;
      this.#log.warn(`io_uring is not to be had (${error.code}): one system call a packet, which is slower`);
      return new SyscallEngine(fds, complete);
    }
  }

  get engineName(): string {
    return this.#engine.name;
  }

  get mustPoll(): boolean {
    return this.#engine.mustPoll;
  }

  attach(): NetAttachment {
    return new NetAttachment(this);
  }

  openDataPath(): this {
    return this;
  }

  serve(attachment: NetAttachment): NetAttachment {
    return attachment;
  }

  /** Whether packets can pass now. */
  get #engineWithLink(): Engine | undefined {
    return this.tap === undefined || this.tap.running ? this.#engine : undefined;
  }

  /** Takes chains of a transmit or receive ring. Returns how many were given back or submitted for transmission. */
  processQueue(vring: Vring, budget: number, attachment: NetAttachment): number {
    const pair = this.pairs[vring.index >> 1] as QueuePair;
    if ((vring.index & 1) === 1) {
      // A driver may send by a pair that it does not receive with.
      const queue = pair.attached ? pair.index : 0;
      return pair.transmitter.run(vring, budget, attachment.format.headerBytes, queue, this.#engineWithLink);
    }
    vring.noteEnough();
    if (this.tap?.isOpen !== true || !(pair.attached || this.#beginToUse(pair, vring, attachment))) return 0;
    return pair.receiver.run(vring, budget, attachment.format, this.#engine);
  }

  /** A driver that brings the first buffers to a pair begins to use it. Returns whether it does. */
  #beginToUse(pair: QueuePair, vring: Vring, attachment: NetAttachment): boolean {
    if (!pair.usable || pair.index >= attachment.activePairs) return false;
    if (vring.offers(1)) this.#attach(pair);
    else vring.noteShort();
    return pair.attached;
  }

  poll(): number {
    this.#engine.poll();
    let packets = 0;
    for (let i = 0; i < this.pairs.length; i += 1) packets += (this.pairs[i] as QueuePair).finish();
    return packets;
  }

  /** Packets of the TAP wake the pump when a ring has buffers for them; else the driver does, when it brings some. */
  arm(): void {
    for (const pair of this.pairs) pair.arm();
  }

  /** The rings of an attachment came into service or left it: the TAP follows what its driver negotiated. */
  ringChanged(attachment: NetAttachment, vring: Vring): void {
    const pair = this.pairs[vring.index >> 1];
    if (vring.started) this.adopt(attachment);
    else this.updateFilter();
    if (pair === undefined) return;
    if ((vring.index & 1) === 0) pair.receiveRing = vring.started && vring.enabled ? vring : undefined;
    if (!vring.enabled || !vring.started) this.#detach([pair]);
  }

  /** Makes the TAP speak as this attachment's driver wants it to. */
  adopt(attachment: NetAttachment): void {
    // What waits in the TAP was for another driver, or for one that takes more.
    let stale = this.#owner !== attachment;
    this.#owner = attachment;
    attachment.updateFormat();
    this.limitPairs(attachment.activePairs);
    this.updateFilter();
    stale = this.#port?.configure(attachment.offloads, attachment.format.headerBytes) === true || stale;
    if (!stale) return;
    for (const pair of this.pairs) pair.receiver.reset();
    this.#port?.purge();
  }

  /** Whether `attachment` is the one that the TAP is set up for. */
  isOwner(attachment: NetAttachment): boolean {
    return this.#owner === attachment;
  }

  /** Puts the filter of the driver onto the TAP. */
  updateFilter(): void {
    this.#port?.setFilter(this.#owner?.filterProgram);
  }

  /** Puts the TAP's queues behind the pairs. Only the first is in use until a driver uses others. */
  #takeQueues(fds: readonly number[]): void {
    fds.forEach((fd, i) => {
      const pair = this.pairs[i] as QueuePair;
      pair.setQueue(fd);
      pair.attached = true;
    });
    this.#port?.renew();
    this.#detach(this.pairs);
  }

  /** The driver uses this pair: the TAP may put packets there. */
  #attach(pair: QueuePair): void {
    if (pair.fd === undefined || this.#port === undefined) return;
    pair.attached = this.#port.setAttached([pair.fd], true);
    // Not again and again for every packet.
    pair.usable = pair.attached;
  }

  /** The driver does not use these pairs: packets go to others. The first one keeps the carrier up. */
  #detach(pairs: readonly QueuePair[]): void {
    const fds: number[] = [];
    for (const pair of pairs) {
      if (pair.index === 0 || !pair.attached || pair.fd === undefined) continue;
      pair.attached = false;
      fds.push(pair.fd);
    }
    if (fds.length > 0) this.#port?.setAttached(fds, false);
  }

  /** The driver uses the first `count` pairs from now on. */
  limitPairs(count: number): void {
    this.#detach(this.pairs.slice(count));
  }

  /** A call of the kernel failed, and a packet may be lost. */
  #onError(pair: QueuePair, errno: number): void {
    this.counters.noteError(errno);
    // It may fail again at once, and must not keep us busy.
    pair.rest();
    // Deleted, or down: the link's state tells what is to be done, but not in the middle of a pass.
    if ((errno !== EBADFD && errno !== EIO) || this.#checkIsDue) return;
    this.#checkIsDue = true;
    setImmediate(() => {
      this.#checkIsDue = false;
      this.tap?.check();
    });
  }

  #onLinkChange(): void {
    if (this.#owner !== undefined) this.#owner.updateFormat();
    this.onConfigChange();
    this.onCompletion();
  }

  #onQueuesChange(tap: Tap): void {
    for (const pair of this.pairs) pair.setQueue(undefined);
    if (!tap.isOpen) return;
    this.#engine.replaceQueues(tap.fds);
    this.#takeQueues(tap.fds);
    this.onCompletion();
  }

  /** The status field: VIRTIO_NET_S_ bits. */
  get status(): number {
    return this.tap === undefined || this.tap.running ? VIRTIO_NET_S_LINK_UP : 0;
  }

  /** Bytes that may come in one frame: the interface's MTU, which may change. */
  get mtu(): number {
    return this.tap?.mtu ?? this.profile.mtu;
  }

  readConfig(status: number): Uint8Array {
    return encodeNetConfig(this.profile, status);
  }

  /** SEND_RARP: the guest runs here now; switches learn it from a packet of its address. */
  announce(address: Uint8Array): void {
    const result = this.#port?.send(rarpAnnouncement(address)) ?? 0;
    if (result < 0) this.counters.noteError(-result);
  }

  shutDown(): void {}

  reload(): void {
    this.tap?.reload();
  }

  close(): void {
    this.#log.info(this.counters.summary(), 'packets since the start');
    for (const pair of this.pairs) pair.setQueue(undefined);
    this.#engine.close();
    this.tap?.close();
  }
}
