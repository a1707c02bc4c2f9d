/**
 * One connection of a front end: what it negotiated, and who handles what it asks for. Messages are handled strictly one
 * after the other, in any order that makes sense; a request that needs requests in flight to finish waits for them and
 * holds up only its own connection. Source: vhost-user, Communication, Feature negotiation.
 */

import { IOTLB_PAGE_BYTES, IOTLB_READ, IOTLB_WRITE } from '../../protocol/memory/iotlb.ts';
import type { SharedExtent } from '../../protocol/sys/mapping.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { socketRole, type UnixStream } from '../../protocol/sys/unix-socket.ts';
import { Endpoint } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../../protocol/vhost-user/features.ts';
import { BACKEND, FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { IOTLB_TYPE_MISS } from '../../protocol/vhost-user/payloads.ts';
import {
  featureMask,
  hasFeature,
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
} from '../../protocol/virtio/reserved-features.ts';
import { BackendChannel } from './backend-channel.ts';
import type { Attachment, Device } from './device.ts';
import { Dispatcher, isRefusal } from './dispatcher.ts';
import type { Logger } from './logging.ts';
import { offeredFeatures, offeredProtocolFeatures } from './offered.ts';
import { Refused } from './refused.ts';
import type { RingLease } from './ring-lease.ts';
import type { InBand, RingEvents } from './ring-server.ts';
import type { RingServers } from './ring-servers.ts';
import { type DeviceContext, SessionDevice } from './session-device.ts';
import { type InflightContext, SessionInflight } from './session-inflight.ts';
import { type MemoryContext, SessionMemory } from './session-memory.ts';
import { type RingContext, SessionRings } from './session-rings.ts';

const LOGGING = featureMask(VHOST_F_LOG_ALL);
/** Protocol features without which notifications cannot be messages. */
const IN_BAND_NEEDS = featureMask(VHOST_USER_PROTOCOL_F_BACKEND_REQ, VHOST_USER_PROTOCOL_F_REPLY_ACK);

/** Refused requests of one connection that are logged. */
const MAX_LOGGED_REFUSALS = 20;

/** What all connections of a daemon share. */
export interface SessionContext {
  readonly device: Device;
  readonly lease: RingLease;
  /** The front end may have an IOMMU before the device. */
  readonly iommu: boolean;
  /** It may send notifications as messages. */
  readonly inBand: boolean;
  /** Pages of guest memory may come late: nobody else is kept waiting by that. */
  readonly pageFaults: boolean;
  /** Makes servers for the rings of a front end. */
  openServers(attachment: Attachment, events: RingEvents, log: Logger): RingServers;
}

export class Session implements RingContext, MemoryContext, InflightContext, DeviceContext, RingEvents {
  readonly attachment: Attachment;
  readonly log: Logger;
  readonly lease: RingLease;
  readonly servers: RingServers;
  /** Protocol features that are offered. */
  readonly offered: bigint;
  readonly socket: number;

  readonly #endpoint: Endpoint;
  readonly #dispatcher = new Dispatcher();
  readonly #rings: SessionRings;
  readonly #memory: SessionMemory;
  readonly #inflight: SessionInflight;
  readonly #device: SessionDevice;
  readonly #handOver: () => void;
  #features = 0n;
  #protocolFeatures = 0n;
  #channel: BackendChannel | undefined;
  #memoryFault = false;
  /** The front end is to be told that the configuration space changed. */
  #configChanged = false;
  /** Ends with what was begun last. */
  #turn: Promise<unknown> = Promise.resolve();
  #refusals = 0;

  constructor(context: SessionContext, stream: UnixStream, log: Logger) {
    const { device } = context;
    this.socket = stream.fd;
    this.#endpoint = new Endpoint(stream);
    this.log = log;
    this.lease = context.lease;
    this.offered = offeredProtocolFeatures(device, context.pageFaults, context.inBand);
    this.#handOver = () => device.handOver?.();
    this.attachment = device.attach();
    this.servers = context.openServers(this.attachment, this, log);
    this.#rings = new SessionRings(this, device.maxQueues);
    this.#memory = new SessionMemory(this);
    this.#inflight = new SessionInflight(this);
    this.#device = new SessionDevice(this);
    this.#registerNegotiation(device, offeredFeatures(device, context.iommu));
    this.#memory.register(this.#dispatcher);
    this.#inflight.register(this.#dispatcher);
    this.#rings.register(this.#dispatcher);
    this.#device.register(this.#dispatcher);
  }

  get ringCount(): number {
    return this.#rings.count;
  }

  get anyStarted(): boolean {
    return this.#rings.anyStarted;
  }

  get isPacked(): boolean {
    return hasFeature(this.#features, VIRTIO_F_RING_PACKED);
  }

  get isLogging(): boolean {
    return hasFeature(this.#features, VHOST_F_LOG_ALL);
  }

  get isInBand(): boolean {
    return hasFeature(this.#protocolFeatures, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
  }

  get hasPageFaults(): boolean {
    return hasFeature(this.#protocolFeatures, VHOST_USER_PROTOCOL_F_PAGEFAULT);
  }

  inflightOf(index: number, size: number): SharedExtent | undefined {
    return this.#inflight.of(index, size);
  }

  resetRings(): Promise<void> {
    return this.#rings.reset();
  }

  handOver(): void {
    this.#handOver();
  }

  saveState(): void {
    this.#inflight.saveState();
  }

  /** The front end truncated a file that it shares with us: its connection ends. */
  onMemoryFault(): void {
    if (this.#memoryFault) return;
    this.#memoryFault = true;
    void this.servers.all((server) => server.breakAll());
    this.log.error('pages of the shared memory were taken away by the front end: closing its connection');
    this.close();
  }

  onMissing(iova: number, writable: boolean): void {
    const miss = {
      iova: BigInt(iova),
      size: BigInt(IOTLB_PAGE_BYTES),
      userAddress: 0n,
      permission: writable ? IOTLB_WRITE : IOTLB_READ,
      type: IOTLB_TYPE_MISS,
    };
    const answer = (done: boolean): void => {
      if (done) return;
      void this.#inTurn(() => this.servers.all((server) => server.translate({ kind: 'deny', iova, writable })));
    };
    // Without an answer, a page that is not mapped is waited for.
    this.#channel?.send(BACKEND.IOTLB_MSG, miss, this.#dispatcher.acknowledges ? answer : undefined);
  }

  onSignal(index: number, kind: InBand): void {
    this.#channel?.send(kind === 'call' ? BACKEND.VRING_CALL : BACKEND.VRING_ERR, { index, num: 0 });
  }

  /** Serves the connection until its end, then lets go of everything it brought. */
  async run(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#endpoint.next();
        if (message === undefined) break;
        if (this.#memory.isAcknowledgement(message)) {
          await this.#inTurn(() => this.#memory.acknowledge());
          continue;
        }
        const refusal = await this.#inTurn(() => this.#dispatcher.handle(message, this.#endpoint));
        if (refusal !== undefined) this.#noteRefusal(refusal);
        if (this.#inflight.faulted) this.onMemoryFault();
        if (this.#configChanged && this.anyStarted) this.notifyConfigChange();
      }
      this.log.info('front end disconnected');
    } catch (error) {
      if (!(error instanceof ProtocolError) && !isRefusal(error)) throw error;
      this.log.error(`closing the connection: ${error.message}`);
    } finally {
      this.#endpoint.close();
      this.#rings.leave();
      // What was begun before may wait for a page.
      await this.#memory.abandon();
      await this.#inTurn(() => this.#release());
    }
  }

  /**
   * Does something when what was begun before is done. An answer on the back end's channel waits too: it may bring a ring
   * back to its memory, which the message before takes away.
   */
  #inTurn<T>(task: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(task);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** A front end may ask for the impossible as often as it likes, but not fill the log with it. */
  #noteRefusal({ message }: Error): void {
    this.#refusals += 1;
    if (this.#refusals > MAX_LOGGED_REFUSALS) return;
    this.log.warn(this.#refusals < MAX_LOGGED_REFUSALS ? message : `${message}; further refusals are not logged`);
  }

  /** Ends the connection from our side; `run` then drains and returns. */
  close(): void {
    this.#endpoint.close();
    void this.#memory.abandon();
  }

  /**
   * Tells the front end that the configuration space changed, if it wants to know: as long as all rings are stopped the
   * device is suspended and sends nothing, so it waits for one to be started.
   */
  notifyConfigChange(): void {
    if (!hasFeature(this.#protocolFeatures, VHOST_USER_PROTOCOL_F_CONFIG)) return;
    this.#configChanged = !this.anyStarted;
    if (this.anyStarted) this.#channel?.send(BACKEND.CONFIG_CHANGE_MSG, undefined);
  }

  async #release(): Promise<void> {
    await this.servers.all((server) => server.close());
    this.#memory.close();
    this.#inflight.close();
    this.#device.close();
    this.#channel?.close();
    this.attachment.close?.();
    this.#rings.release();
  }

  #registerNegotiation(device: Device, offered: bigint): void {
    const d = this.#dispatcher;
    d.on(FRONTEND.SET_OWNER, () => undefined);
    d.on(FRONTEND.RESET_OWNER, () => this.#rings.reset());
    d.on(FRONTEND.GET_FEATURES, () => offered);
    d.on(FRONTEND.SET_FEATURES, async (accepted) => {
      const unknown = accepted & ~offered;
      if (unknown !== 0n) throw new Refused(`features 0x${unknown.toString(16)} were not offered`);
      await this.#setFeatures(accepted);
    });
    d.on(FRONTEND.GET_PROTOCOL_FEATURES, () => this.offered);
    d.on(FRONTEND.SET_PROTOCOL_FEATURES, (accepted) => this.#setProtocolFeatures(accepted));
    d.on(FRONTEND.GET_QUEUE_NUM, () => BigInt(device.maxQueues));
    d.on(FRONTEND.SET_BACKEND_REQ_FD, async (_, [fd]) => {
      if (socketRole((fd as OwnedFd).fd) !== 'connected') throw new Refused('the descriptor is not a connected socket');
      this.#channel?.close();
      this.#channel = new BackendChannel(new OwnedFd((fd as OwnedFd).take()), this.log);
      // By the one before, if there was one, no answer comes any more.
      await this.servers.all((server) => server.translate({ kind: 'ask again' }));
    });
  }

  async #setFeatures(accepted: bigint): Promise<void> {
    const changed = accepted ^ this.#features;
    // Repeating them is fine (QEMU does it for each pair of queues); a device in service keeps its state.
    if ((changed & ~LOGGING) !== 0n && this.anyStarted) {
      throw new Refused('a ring is started, and other features were negotiated for it');
    }
    if (this.anyStarted && hasFeature(changed & accepted, VHOST_F_LOG_ALL)) this.#memory.checkLog();
    this.#features = accepted;
    if ((changed & LOGGING) !== 0n) await this.#memory.applyLog();
    if (!this.anyStarted) await this.#applyFeatures();
    if (!hasFeature(accepted, VHOST_USER_F_PROTOCOL_FEATURES)) await this.#rings.enableAll();
  }

  async #applyFeatures(): Promise<void> {
    const features = this.#features;
    const ringFeatures = {
      packed: this.isPacked,
      indirect: hasFeature(features, VIRTIO_F_INDIRECT_DESC),
      eventIdx: hasFeature(features, VIRTIO_F_EVENT_IDX),
      inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
      translated: hasFeature(features, VIRTIO_F_ACCESS_PLATFORM),
    };
    this.attachment.setFeatures(features);
    await this.servers.all((server) => server.setFeatures(ringFeatures));
  }

  #setProtocolFeatures(accepted: bigint): void {
    const unknown = accepted & ~this.offered;
    if (unknown !== 0n) throw new Refused(`protocol features 0x${unknown.toString(16)} were not offered`);
    const inBand = hasFeature(accepted, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    if (inBand && (accepted & IN_BAND_NEEDS) !== IN_BAND_NEEDS) {
      throw new ProtocolError('INBAND_NOTIFICATIONS was accepted without BACKEND_REQ and REPLY_ACK');
    }
    this.#protocolFeatures = accepted;
    this.#dispatcher.acknowledges = hasFeature(accepted, VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }
}
