/**
 * The socket device of one guest: it joins rings and connections. `processQueue` takes packets, `poll` looks at the host's
 * sockets and fills buffers. Source: VIRTIO 1.3, 5.10 Socket Device.
 */

import { Epoll } from '../../protocol/sys/epoll.ts';
import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { VHOST_USER_PROTOCOL_F_DEVICE_STATE } from '../../protocol/vhost-user/features.ts';
import { featureMask } from '../../protocol/virtio/reserved-features.ts';
import {
  VIRTIO_VSOCK_EVENT_BYTES,
  VIRTIO_VSOCK_EVENT_QUEUE,
  VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
  VIRTIO_VSOCK_QUEUES,
  VIRTIO_VSOCK_RX_QUEUE,
  VIRTIO_VSOCK_TX_QUEUE,
} from '../../protocol/virtio/vsock.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { DataPath, Device } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import type { Vring } from '../core/vring.ts';
import { VsockAttachment } from './attachment.ts';
import { VSOCK_FEATURES } from './config-space.ts';
import { Counters } from './counters.ts';
import { Deadlines } from './deadlines.ts';
import { HostSide } from './host-side.ts';
import { type Limits, TRANSMIT_LOT } from './limits.ts';
import { Muxer } from './muxer.ts';
import { Receiver } from './receive.ts';
import type { Switchboard } from './switchboard.ts';
import { Transmitter } from './transmit.ts';

/** A guest, as its options describe it. */
export interface GuestProfile {
  readonly guestCid: number;
  /** Path of the socket for the host's programs. */
  readonly udsPath: string;
  /** Names of the groups whose guests may be connected to each other. */
  readonly groups: ReadonlySet<string>;
}

const EVENT = new Uint8Array(new Uint32Array([VIRTIO_VSOCK_EVENT_TRANSPORT_RESET]).buffer);
/** Buffers of the event queue that are given back unused in one pass, because they are none. */
const MAX_REFUSED_EVENTS = 64;

export class VsockDevice implements Device<VsockAttachment>, DataPath<VsockAttachment> {
  readonly type = 'vsock';
  readonly maxQueues = VIRTIO_VSOCK_QUEUES;
  readonly features = VSOCK_FEATURES;
  readonly protocolFeatures = featureMask(VHOST_USER_PROTOCOL_F_DEVICE_STATE);
  onConfigChange: () => void = () => undefined;

  readonly budget = TRANSMIT_LOT;
  readonly mustPoll = false;
  readonly isFull = false;
  onCompletion: () => void = () => undefined;

  readonly guestCid: number;
  readonly counters = new Counters();
  readonly #log: Logger;
  readonly #switchboard: Switchboard;
  readonly #epoll = new Epoll();
  readonly #watch: Watch;
  readonly #muxer: Muxer;
  readonly #hostSide: HostSide;
  readonly #receiver: Receiver;
  readonly #transmitter: Transmitter;
  #receiveRing: Vring | undefined;
  #transmitRing: Vring | undefined;
  #eventRing: Vring | undefined;
  /** The driver has connections that we do not know, or a CID of another host: it is to be told. */
  #resetIsDue = false;
  /** Whose rings are in service, or were last. */
  #owner: VsockAttachment | undefined;

  /** Takes its place on the host. @throws SysError - another process listens on its sockets */
  constructor(profile: GuestProfile, limits: Limits, switchboard: Switchboard, log: Logger) {
    this.guestCid = profile.guestCid;
    this.#log = log;
    this.#switchboard = switchboard;
    const deadlines = new Deadlines();
    this.#hostSide = new HostSide(profile.udsPath, this.#epoll, deadlines, log);
    this.#muxer = new Muxer(profile.guestCid, limits, {
      epoll: this.#epoll,
      deadlines,
      counters: this.counters,
      dialer: switchboard,
    });
    this.#muxer.onWork = () => this.onCompletion();
    this.#receiver = new Receiver(this.#muxer);
    this.#transmitter = new Transmitter(this.#muxer);
    this.#hostSide.listen(this.#muxer);
    switchboard.add(this.#muxer, profile.groups, this.#hostSide);
    this.#watch = watchReadable(this.#epoll.fd, () => this.onCompletion());
  }

  attach(): VsockAttachment {
    return new VsockAttachment(this);
  }

  /** The connections of a guest are one state, which one thread keeps. */
  openDataPath(): this {
    return this;
  }

  serve(attachment: VsockAttachment): VsockAttachment {
    return attachment;
  }

  ringChanged(attachment: VsockAttachment, vring: Vring): void {
    const ring = vring.started ? vring : undefined;
    if (vring.index === VIRTIO_VSOCK_RX_QUEUE) this.#receiveRing = ring;
    else if (vring.index === VIRTIO_VSOCK_TX_QUEUE) this.#transmitRing = ring;
    else if (vring.index === VIRTIO_VSOCK_EVENT_QUEUE) this.#eventRing = ring;
    const inService = this.#receiveRing !== undefined && this.#transmitRing !== undefined;
    if (inService === this.#muxer.inService) return;
    if (!inService) {
      this.#resetIsDue = false;
      this.#muxer.stop();
      return;
    }
    this.#owner = attachment;
    const hasPast = this.#receiveRing?.hasPast === true || this.#transmitRing?.hasPast === true;
    this.#resetIsDue = hasPast || attachment.hasMoved;
    this.#muxer.start(attachment.features);
    this.onCompletion();
  }

  /** @param cid what the driver believes its CID to be */
  noteMove(cid: number): void {
    this.#log.info({ cid }, `the guest comes from another host, where its CID was ${cid}`);
  }

  /** Takes packets of the guest. Returns how many. */
  transmit(vring: Vring, budget: number): number {
    return this.#transmitter.run(vring, budget);
  }

  poll(): number {
    let work = this.#epoll.dispatch();
    const ring = this.#receiveRing;
    if (ring?.runnable === true) work += this.#receiver.run(ring);
    if (this.#resetIsDue && this.#eventRing?.runnable === true) work += this.#sendReset(this.#eventRing);
    const held = this.#transmitRing;
    if (held?.held === true && !this.#muxer.isCongested) {
      held.held = false;
      work += 1;
    }
    return work;
  }

  /** 5.10.6.7.1: the driver ends its connections and reads its CID again. */
  #sendReset(vring: Vring): number {
    const { chain, host } = vring;
    vring.noteEnough();
    for (let taken = 1; taken <= MAX_REFUSED_EVENTS; taken += 1) {
      if (!vring.pop()) {
        vring.noteShort();
        return taken - 1;
      }
      const isBuffer = chain.fault === NO_FAULT && chain.writableBytes >= VIRTIO_VSOCK_EVENT_BYTES;
      const first = chain.readableSegments;
      if (isBuffer && (chain.length[first] as number) >= VIRTIO_VSOCK_EVENT_BYTES) {
        host.memory.copyIn(chain.guest[first] as number, EVENT);
        vring.push(chain.head, VIRTIO_VSOCK_EVENT_BYTES);
        this.#resetIsDue = false;
        (this.#owner as VsockAttachment).hasMoved = false;
        this.#log.info('told the driver that its connections are gone');
        return taken;
      }
      if (chain.fault !== NO_FAULT) vring.noteChainFault(chain.fault);
      vring.push(chain.head, 0);
    }
    return MAX_REFUSED_EVENTS;
  }

  /** The sockets of the host wake the pump by themselves. */
  arm(): void {}

  shutDown(): void {}

  reload(): void {}

  close(): void {
    this.#log.info(this.counters.summary(), 'packets since the start');
    this.#switchboard.remove(this.#muxer);
    this.#hostSide.close();
    this.#muxer.close();
    this.#watch.close();
    this.#epoll.close();
  }
}
