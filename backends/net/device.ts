/**
 * The network device: it joins rings and TAP. Rings come in pairs, each with a queue of the TAP; `processQueue` submits
 * packets, `poll` hands them to the kernel and finishes them. One per daemon; each front end has an attachment with what
 * it negotiated. Source: VIRTIO 1.3, 5.1 Network Device.
 */

import { EBADFD, EINVAL, EIO, ENOSYS, EPERM, SysError } from '../../protocol/sys/errors.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { readPacket, setOffloads, setQueueAttached, setVnetHeaderBytes, writePacket } from '../../protocol/sys/tap.ts';
import { VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_RARP } from '../../protocol/vhost-user/features.ts';
import { VIRTIO_NET_HDR_BYTES, VIRTIO_NET_S_LINK_UP } from '../../protocol/virtio/net.ts';
import { featureMask } from '../../protocol/virtio/reserved-features.ts';
import type { Device } from '../core/device.ts';
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
import { TapFilter } from './tap-filter.ts';

/** Packets that were queued for an earlier driver and are thrown away, at most. */
const MAX_PURGED = 65_536;
const PURGE_BYTES = 128 * 1024;

export class NetDevice implements Device {
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
  /** What the TAP gives us now: TUN_F_ bits, and the length of its header. */
  #offloads = 0;
  #headerBytes = VIRTIO_NET_HDR_BYTES;
  #owner: NetAttachment | undefined;
  readonly #filter: TapFilter;
  readonly #scratch = allocatePinned(PURGE_BYTES);
  readonly #scratchIovec = allocatePinned(16);

  /** Takes over the TAP. @throws SysError - io_uring failed in a way that is not "not to be had" */
  constructor(tap: Tap | undefined, profile: NetProfile, log: Logger) {
    this.tap = tap;
    this.profile = profile;
    this.#log = log;
    this.#filter = new TapFilter(log);
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
      pair.receiver.onError = (errno) => this.#onReceiveError(errno);
      pair.onReadable = () => this.onCompletion();
      return pair;
    });
    this.#engine = this.#createEngine(packets);
    if (tap === undefined) return;
    this.#takeQueues(tap);
    this.#configureQueues(tap);
    tap.onChange = () => this.#onLinkChange();
    tap.onReopen = () => this.#onReopen(tap);
  }

  #createEngine(packets: readonly Packet[]): Engine {
    const complete = (packet: Packet): void => (this.pairs[packet.pair] as QueuePair).complete(packet);
    if (this.tap === undefined) return new NullEngine(complete);
    try {
      return new UringEngine(this.tap.fds, packets, complete);
    } catch (error) {
      if (!(error instanceof SysError) || ![ENOSYS, EPERM, EINVAL].includes(error.errno)) throw error;
      this.#log.warn(`io_uring is not to be had (${error.code}): one system call a packet, which is slower`);
      return new SyscallEngine(this.tap.fds, complete);
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

  /** Whether packets can pass now. */
  get #engineWithLink(): Engine | undefined {
    return this.tap === undefined || this.tap.running ? this.#engine : undefined;
  }

  /** Takes chains of a transmit or receive ring. Returns how many were given back or submitted for transmission. */
  processQueue(vring: Vring, budget: number, attachment: NetAttachment): number {
    const pair = this.pairs[vring.index >> 1] as QueuePair;
    const mayUse = pair.attached || (pair.usable && vring.enabled && pair.index < attachment.activePairs);
    if (!pair.attached && mayUse && vring.backlog > 0) this.#use(pair);
    if ((vring.index & 1) === 1) {
      // A driver may send by a pair that it does not receive with.
      const queue = pair.attached ? pair.index : 0;
      return pair.transmitter.run(vring, budget, attachment.format.headerBytes, queue, this.#engineWithLink);
    }
    // A driver that brings the first buffers to a pair begins to use it.
    vring.short = mayUse && !pair.attached && vring.backlog === 0;
    if (this.tap?.isOpen !== true || !pair.attached) return 0;
    return pair.receiver.run(vring, budget, attachment.format, this.#engine);
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
    if (vring.started) this.use(attachment);
    else this.updateFilter();
    if (pair === undefined) return;
    if ((vring.index & 1) === 0) pair.receiveRing = vring.started && vring.enabled ? vring : undefined;
    if (!vring.enabled || !vring.started) this.#unuse([pair]);
  }

  /** Makes the TAP speak as this attachment's driver wants it to. */
  use(attachment: NetAttachment): void {
    this.#owner = attachment;
    attachment.updateFormat();
    this.limitPairs(attachment.activePairs);
    this.updateFilter();
    const { offloads } = attachment;
    const { headerBytes } = attachment.format;
    if (offloads === this.#offloads && headerBytes === this.#headerBytes) return;
    const lacks = (this.#offloads & ~offloads) !== 0 || headerBytes !== this.#headerBytes;
    this.#offloads = offloads;
    this.#headerBytes = headerBytes;
    for (const pair of this.pairs) pair.receiver.reset();
    if (this.tap === undefined || !this.#configureQueues(this.tap)) return;
    // What waits in the TAP was meant for a driver that takes more.
    if (lacks) for (const fd of this.tap.fds) this.#purge(fd);
  }

  /** Whether `attachment` is the one that the TAP is set up for. */
  isOwner(attachment: NetAttachment): boolean {
    return this.#owner === attachment;
  }

  /** Puts the filter of the driver onto the TAP. */
  updateFilter(): void {
    this.#setFilter(this.#owner?.filterProgram);
  }

  #setFilter(program: Uint8Array | undefined): void {
    const fd = this.tap?.fds[0];
    if (fd !== undefined) this.#attempt(() => this.#filter.set(fd, program));
  }

  /** False when there is no TAP. */
  #configureQueues(tap: Tap): boolean {
    const { fds } = tap;
    if (fds.length === 0) return false;
    return this.#attempt(() => {
      for (const fd of fds) setVnetHeaderBytes(fd, this.#headerBytes);
      if (setOffloads(fds[0] as number, this.#offloads)) return;
      this.#log.warn(`${tap.name} does not take the offloads 0x${this.#offloads.toString(16)}`);
    });
  }

  /** Does something to the TAP, which may be deleted under our hands. False when that failed. */
  #attempt(act: () => void): boolean {
    try {
      act();
      return true;
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (error.errno === EBADFD) this.tap?.check();
      else this.#log.error(error.message);
      return false;
    }
  }

  #purge(fd: number): void {
    this.#scratchIovec.setU64(0, this.#scratch.address);
    this.#scratchIovec.setU64(8, PURGE_BYTES);
    for (let i = 0; i < MAX_PURGED && readPacket(fd, this.#scratchIovec.address, 1) >= 0; i += 1);
  }

  /** Puts the TAP's queues behind the pairs. Only the first is in use until a driver uses others. */
  #takeQueues(tap: Tap): void {
    tap.fds.forEach((fd, i) => {
      const pair = this.pairs[i] as QueuePair;
      pair.setQueue(fd);
      pair.attached = true;
    });
    this.#filter.forget();
    this.#unuse(this.pairs);
    this.updateFilter();
  }

  /** The driver uses this pair: the TAP may put packets there. */
  #use(pair: QueuePair): void {
    const { fd } = pair;
    if (fd === undefined) return;
    this.#setFilter(undefined);
    pair.attached = this.#attempt(() => setQueueAttached(fd, true));
    // Not again and again for every packet.
    pair.usable = pair.attached;
    this.updateFilter();
  }

  /** The driver does not use these pairs: packets go to others. The first one keeps the carrier up. */
  #unuse(pairs: readonly QueuePair[]): void {
    const used = pairs.filter((pair) => pair.index > 0 && pair.attached && pair.fd !== undefined);
    if (used.length === 0) return;
    this.#setFilter(undefined);
    for (const pair of used) {
      const { fd } = pair;
      pair.attached = false;
      if (fd !== undefined) this.#attempt(() => setQueueAttached(fd, false));
    }
    this.updateFilter();
  }

  /** The driver uses the first `count` pairs from now on. */
  limitPairs(count: number): void {
    this.#unuse(this.pairs.slice(count));
  }

  #onReceiveError(errno: number): void {
    // Deleted, or down: the link's state tells what is to be done.
    if (errno === EBADFD || errno === EIO) this.tap?.check();
    else this.counters.noteError(errno);
  }

  #onLinkChange(): void {
    if (this.#owner !== undefined) this.#owner.updateFormat();
    this.onConfigChange();
    this.onCompletion();
  }

  #onReopen(tap: Tap): void {
    for (const pair of this.pairs) pair.setQueue(undefined);
    if (!tap.isOpen) return;
    this.#engine.replaceQueues(tap.fds);
    this.#takeQueues(tap);
    this.#configureQueues(tap);
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
    const fd = this.tap?.fds[0];
    if (fd === undefined) return;
    const frame = rarpAnnouncement(address);
    const header = this.#headerBytes;
    this.#scratch.bytes.fill(0, 0, header);
    this.#scratch.bytes.set(frame, header);
    this.#scratchIovec.setU64(0, this.#scratch.address);
    this.#scratchIovec.setU64(8, header + frame.length);
    const result = writePacket(fd, this.#scratchIovec.address, 1);
    if (result < 0) this.counters.noteError(-result);
  }

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
