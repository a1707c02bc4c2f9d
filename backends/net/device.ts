/**
 * The network device as a front end sees it, and the TAP: link, filter, offloads, queues in use. One per daemon; each front
 * end has an attachment with what it negotiated. Packets are moved by data paths (`data-path.ts`), one a thread, which read
 * what they need to know in memory that they share with this (`state.ts`) and ask for changes (`main-thread.ts`). Source:
 * VIRTIO 1.3, 5.1 Network Device.
 */

import {
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RARP,
} from '../../protocol/vhost-user/features.ts';
import { VIRTIO_NET_S_LINK_UP } from '../../protocol/virtio/net.ts';
import { featureMask } from '../../protocol/virtio/reserved-features.ts';
import type { DataPathWorker, Device } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import { NetAttachment } from './attachment.ts';
import { encodeNetConfig, type NetProfile, netFeatures } from './config-space.ts';
import type { ControlCommand } from './control.ts';
import { Counters, type Counts, sumCounts } from './counters.ts';
import { NetDataPath, type NetDataPathOptions, type NetWorkerData } from './data-path.ts';
import type { MainThread } from './main-thread.ts';
import { PathThreads } from './path-threads.ts';
import { rarpAnnouncement } from './rarp.ts';
import { NetTapState } from './state.ts';
import type { Tap } from './tap.ts';
import { TapPort } from './tap-port.ts';

export class NetDevice implements Device<SharedArrayBuffer>, MainThread {
  readonly type = 'net';
  readonly maxQueues: number;
  readonly features: bigint;
  readonly protocolFeatures = featureMask(
    VHOST_USER_PROTOCOL_F_MTU,
    VHOST_USER_PROTOCOL_F_RARP,
    VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  );
  onConfigChange: () => void = () => undefined;

  readonly profile: NetProfile;
  /** Undefined with --null. */
  readonly #tap: Tap | undefined;
  readonly #state: NetTapState;
  readonly #options: NetDataPathOptions;
  readonly #log: Logger;
  readonly #counters: Counters;
  /** What data paths counted that have ended. */
  readonly #counts: Counts[] = [];
  readonly #port: TapPort | undefined;
  readonly #threads: PathThreads;
  /** The data path of this thread, when there are no others. */
  #path: NetDataPath | undefined;
  readonly #attachments = new Map<number, NetAttachment>();
  #lastAttachment = 0;
  /** The attachment whose driver the TAP is set up for. */
  #owner: NetAttachment | undefined;

  /** Takes over the TAP. @param threads that rings are spread over */
  constructor(tap: Tap | undefined, profile: NetProfile, threads: number, log: Logger) {
    this.#tap = tap;
    this.profile = profile;
    this.#log = log;
    this.#port = tap === undefined ? undefined : new TapPort(tap, log);
    this.maxQueues = 2 * profile.pairs + (profile.controlQueue ? 1 : 0);
    this.features = netFeatures(profile);
    this.#counters = new Counters(log);
    this.#threads = new PathThreads(this, threads);
    this.#state = new NetTapState(profile.pairs);
    this.#options = {
      pairs: profile.pairs,
      threads,
      hasTap: tap !== undefined,
      controlQueue: profile.controlQueue,
      tap: this.#state.shared,
    };
    this.#updateLink();
    if (tap === undefined) return;
    this.#state.fds = tap.fds;
    this.#takeQueues(tap);
    tap.onChange = () => this.#onLinkChange();
    tap.onQueuesGone = (close) => this.#onQueuesGone(close);
    tap.onQueuesBack = () => this.#onQueuesBack(tap);
  }

  attach(): NetAttachment {
    this.#lastAttachment += 1;
    const attachment = new NetAttachment(this, this.#lastAttachment);
    this.#attachments.set(this.#lastAttachment, attachment);
    return attachment;
  }

  /** The front end of an attachment is gone. */
  detach(id: number): void {
    this.#attachments.delete(id);
  }

  openDataPath(): NetDataPath {
    this.#path = new NetDataPath(this.#options, () => this, this.#log);
    return this.#path;
  }

  /** Asked for once, by whoever starts the threads. */
  get worker(): DataPathWorker {
    const data = { options: this.#options, link: this.#threads.open() } satisfies NetWorkerData;
    return { module: new URL('./data-path.js', import.meta.url).href, data, laneOf: (ring) => ring >> 1 };
  }

  /** The rings of an attachment came into service or left it: the TAP follows what its driver negotiated. */
  ringChanged(driver: number, ring: number, started: boolean, enabled: boolean): void {
    const attachment = this.#attachments.get(driver);
    if (attachment === undefined || attachment.noteRing(ring, started, enabled)) return;
    if (started) this.adopt(attachment);
    else this.#updateFilter();
    if (!enabled || !started) this.#detach([ring >> 1]);
  }

  /** Makes the TAP speak as this attachment's driver wants it to. */
  adopt(attachment: NetAttachment): void {
    // What waits in the TAP was for another driver, or for one that takes more.
    let stale = this.#owner !== attachment;
    this.#owner = attachment;
    attachment.updateFormat();
    this.#limitPairs(attachment.activePairs);
    this.#updateFilter();
    stale = this.#port?.configure(attachment.offloads, attachment.headerBytes) === true || stale;
    if (!stale) return;
    this.#state.noteStale();
    this.#port?.purge();
  }

  /** The attachment's driver negotiated anew. If the TAP is set up for it, that follows. */
  follow(attachment: NetAttachment): void {
    this.#threads.quietly(() => {
      if (this.#owner === attachment) this.adopt(attachment);
    });
  }

  /** The same for what it says on the control queue: other threads are quiet by now. */
  followCommand(attachment: NetAttachment): void {
    if (this.#owner === attachment) this.adopt(attachment);
  }

  perform(driver: number, command: ControlCommand): boolean {
    return this.#attachments.get(driver)?.perform(command) === true;
  }

  applyFilter(driver: number): void {
    const attachment = this.#attachments.get(driver);
    attachment?.compileFilter();
    if (this.#owner === attachment) this.#updateFilter();
  }

  #updateFilter(): void {
    this.#port?.setFilter(this.#owner?.filterProgram);
  }

  /** Puts the TAP's queues behind the pairs. Only the first is in use until a driver uses others. */
  #takeQueues(tap: Tap): void {
    const all = tap.fds.map((_, pair) => pair);
    for (const pair of all) this.#state.setAttached(pair, true);
    this.#port?.renew();
    this.#detach(all);
    this.#state.isOpen = true;
    this.#updateLink();
  }

  attachPair(pair: number): boolean {
    const fd = this.#state.isOpen ? this.#tap?.fds[pair] : undefined;
    const attached = fd !== undefined && this.#port?.setAttached([fd], true) === true;
    this.#state.setAttached(pair, attached);
    return attached;
  }

  /** The driver does not use these pairs: packets go to others. The first one keeps the carrier up. */
  #detach(pairs: readonly number[]): void {
    const fds: number[] = [];
    for (const pair of pairs) {
      const fd = this.#tap?.fds[pair];
      if (pair === 0 || fd === undefined || !this.#state.isAttached(pair)) continue;
      this.#state.setAttached(pair, false);
      fds.push(fd);
    }
    if (fds.length > 0) this.#port?.setAttached(fds, false);
  }

  /** The driver uses the first `count` pairs from now on. */
  #limitPairs(count: number): void {
    this.#detach(Array.from({ length: this.profile.pairs - count }, (_, i) => count + i));
  }

  tapFailed(): void {
    this.#tap?.check();
  }

  #onLinkChange(): void {
    this.#updateLink();
    if (this.#owner !== undefined) this.#owner.updateFormat();
    this.onConfigChange();
    this.#wake();
  }

  /** What is sent while the queues are not in place would be lost as well, with an error. */
  #updateLink(): void {
    this.#state.link = this.#tap === undefined || (this.#tap.running && this.#state.isOpen);
  }

  #wake(): void {
    this.#path?.wake();
    this.#threads.wake();
  }

  #onQueuesGone(close: () => void): void {
    this.#state.isOpen = false;
    this.#updateLink();
    this.#changeQueues([], close);
  }

  #onQueuesBack(tap: Tap): void {
    this.#changeQueues(tap.fds, () => {
      // It may be gone again.
      if (!tap.isOpen) return;
      this.#takeQueues(tap);
      // Only now can packets pass.
      this.#onLinkChange();
    });
  }

  #changeQueues(fds: readonly number[], done: () => void): void {
    this.#state.fds = fds;
    this.#path?.takeQueues();
    this.#threads.changeQueues(done);
  }

  /** The status field: VIRTIO_NET_S_ bits. */
  get status(): number {
    return this.#state.link ? VIRTIO_NET_S_LINK_UP : 0;
  }

  /** Bytes that may come in one frame: the interface's MTU, which may change. */
  get mtu(): number {
    return this.#tap?.mtu ?? this.profile.mtu;
  }

  readConfig(status: number): Uint8Array {
    return encodeNetConfig(this.profile, status);
  }

  /** SEND_RARP: the guest runs here now; switches learn it from a packet of its address. */
  announce(address: Uint8Array): void {
    const result = this.#port?.send(rarpAnnouncement(address)) ?? 0;
    if (result < 0) this.#counters.noteError(-result);
  }

  leave(counts: Counts): void {
    this.#counts.push(counts);
  }

  reload(): void {
    this.#tap?.reload();
  }

  close(): void {
    this.#log.info(sumCounts([...this.#counts, this.#counters.summary()]), 'packets since the start');
    this.#threads.close();
    this.#tap?.close();
  }
}
