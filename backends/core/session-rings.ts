/**
 * The rings as one front end described them, and the messages about them. What serves them hears of a ring when it is
 * started. Source: vhost-user, Front-end message types, Ring states.
 */

import type { SharedExtent } from '../../protocol/sys/mapping.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import type { VringAddress } from '../../protocol/vhost-user/payloads.ts';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { isSplitQueueSize } from '../../protocol/virtqueue/split-queue.ts';
import type { RingAddresses } from '../../protocol/virtqueue/virtqueue.ts';
import type { Dispatcher } from './dispatcher.ts';
import { Refused } from './refused.ts';
import type { RingLease } from './ring-lease.ts';
import type { InBand, RingDescription, SignalTarget } from './ring-server.ts';
import type { RingServers } from './ring-servers.ts';

/** Bit 0 of the flags of SET_VRING_ADDR: writes to the used ring are logged. */
const VHOST_VRING_F_LOG = 1;

/** What a session knows that its rings need. */
export interface RingContext {
  readonly lease: RingLease;
  readonly servers: RingServers;
  readonly isPacked: boolean;
  /** Writes are logged: the guest is being migrated. */
  readonly isLogging: boolean;
  /** It goes on elsewhere. */
  handOver(): void;
  /** Notifications are messages. */
  readonly isInBand: boolean;
  /** The ring's part of the in-flight region; undefined when there is none. */
  inflightOf(index: number, size: number): SharedExtent | undefined;
}

/** One ring as it was described. */
class RingRecord {
  size = 0;
  base = 0;
  addresses: RingAddresses | undefined;
  usedLog: number | undefined;
  started = false;
  /** What SET_VRING_CALL and SET_VRING_ERR were about. */
  readonly told = new Set<InBand>();
}

export class SessionRings {
  readonly #context: RingContext;
  readonly #rings: readonly RingRecord[];

  constructor(context: RingContext, count: number) {
    this.#context = context;
    this.#rings = Array.from({ length: count }, () => new RingRecord());
  }

  get count(): number {
    return this.#rings.length;
  }

  get anyStarted(): boolean {
    return this.#rings.some((ring) => ring.started);
  }

  #ring(index: number): RingRecord {
    const ring = this.#rings[index];
    if (ring === undefined) throw new Refused(`vring ${index} out of range, the device has ${this.#rings.length}`);
    return ring;
  }

  register(d: Dispatcher): void {
    d.on(FRONTEND.SET_VRING_NUM, ({ index, num }) => this.#setSize(index, num));
    d.on(FRONTEND.SET_VRING_ADDR, (request) => this.#setAddresses(request));
    d.on(FRONTEND.SET_VRING_BASE, ({ index, num }) => {
      const ring = this.#ring(index);
      if (ring.started) throw new Refused(`vring ${index}: the base of a started ring cannot change`);
      if (num > 0xffff && !this.#context.isPacked) {
        throw new Refused(`vring ${index}: base ${num}, at most 65535 is possible`);
      }
      ring.base = num;
    });
    d.on(FRONTEND.GET_VRING_BASE, async ({ index }) => {
      const num = await this.#stop(index);
      if (!this.anyStarted) this.#leaveService();
      return { index, num };
    });
    d.on(FRONTEND.SET_VRING_KICK, ({ index, noFd }, fds) => this.#kick(index, noFd, fds));
    d.on(FRONTEND.SET_VRING_CALL, ({ index, noFd }, fds) => this.#setSignal(index, 'call', noFd, fds));
    d.on(FRONTEND.SET_VRING_ERR, ({ index, noFd }, fds) => this.#setSignal(index, 'error', noFd, fds));
    d.on(FRONTEND.SET_VRING_ENABLE, async ({ index, num }) => {
      this.#ring(index);
      if (num > 1) throw new Refused(`vring ${index}: enable ${num}, 0 or 1 is possible`);
      await this.#context.servers.of(index).enable(index, num === 1);
    });
    d.on(FRONTEND.VRING_KICK, async ({ index }) => {
      const ring = this.#ring(index);
      if (!this.#context.isInBand) throw new Refused('in-band notifications were not negotiated');
      if (ring.started) await this.#context.servers.of(index).kick(index);
      else await this.#start(index, undefined, false);
    });
  }

  #setSize(index: number, size: number): void {
    const ring = this.#ring(index);
    // A packed ring may have any size, but whether it is packed may be said later.
    if (size === 0 || size > VIRTQ_MAX_SIZE) throw new Refused(`vring ${index}: size ${size}, 1 to 32768 are possible`);
    if (!this.#context.isPacked && !isSplitQueueSize(size)) {
      throw new Refused(`vring ${index}: size ${size}, a power of two up to 32768 is possible`);
    }
    if (ring.started) throw new Refused(`vring ${index}: the size of a started ring cannot change`);
    ring.size = size;
  }

  async #setAddresses({ index, flags, descriptor, used, available, log }: VringAddress): Promise<void> {
    const ring = this.#ring(index);
    const addresses = { descriptor, used, available };
    const usedLog = (flags & VHOST_VRING_F_LOG) === 0 ? undefined : Number(log);
    ring.addresses = addresses;
    ring.usedLog = usedLog;
    if (ring.started) await this.#context.servers.of(index).relocate(index, addresses, usedLog);
  }

  async #kick(index: number, noFd: boolean, fds: readonly OwnedFd[]): Promise<void> {
    const ring = this.#ring(index);
    checkFd(noFd, fds);
    const polled = noFd && !this.#context.isInBand;
    if (ring.started) await this.#context.servers.of(index).setKick(index, fds[0]?.take(), polled);
    else await this.#start(index, fds[0], polled);
  }

  async #start(index: number, kick: OwnedFd | undefined, polled: boolean): Promise<void> {
    const ring = this.#ring(index);
    const { lease, servers } = this.#context;
    await lease.acquire(this);
    try {
      if (this.#context.isInBand) await this.#signalInBand(index, ring);
      await servers.of(index).start(index, this.#describe(index, ring), kick?.take(), polled);
      ring.started = true;
    } finally {
      if (!this.anyStarted) lease.giveUp(this);
    }
  }

  #describe(index: number, { size, base, addresses, usedLog }: RingRecord): RingDescription {
    return { size, base, addresses, usedLog, inflight: this.#context.inflightOf(index, size) };
  }

  async #stop(index: number): Promise<number> {
    const ring = this.#ring(index);
    if (!ring.started) return ring.base;
    ring.base = await this.#context.servers.of(index).stop(index);
    ring.started = false;
    return ring.base;
  }

  async #setSignal(index: number, kind: InBand, noFd: boolean, fds: readonly OwnedFd[]): Promise<void> {
    this.#ring(index).told.add(kind);
    checkFd(noFd, fds);
    const target: SignalTarget = fds[0]?.take() ?? (this.#context.isInBand ? 'in-band' : undefined);
    await this.#context.servers.of(index).setSignal(index, kind, target);
  }

  /** In band nobody needs to say how: User-mode Linux sends neither SET_VRING_CALL nor SET_VRING_ERR. */
  async #signalInBand(index: number, { told }: RingRecord): Promise<void> {
    for (const kind of ['call', 'error'] as const) {
      if (!told.has(kind)) await this.#context.servers.of(index).setSignal(index, kind, 'in-band');
    }
  }

  /** SET_FEATURES without PROTOCOL_FEATURES: every ring is enabled. */
  async enableAll(): Promise<void> {
    for (let i = 0; i < this.#rings.length; i += 1) await this.#context.servers.of(i).enable(i, true);
  }

  /**
   * No ring is started, or the last one was stopped: others may run rings, and on another host where the guest is being
   * migrated. Its driver may not have used the device yet.
   */
  #leaveService(): void {
    const { isLogging, lease } = this.#context;
    if (isLogging && lease.isFreeFor(this)) this.#context.handOver();
    lease.release(this);
  }

  /**
   * RESET_OWNER, RESET_DEVICE, a status of 0, which QEMU says at the end of a migration, too, before GET_VRING_BASE: stops
   * and disables every ring.
   */
  async reset(): Promise<void> {
    for (let i = 0; i < this.#rings.length; i += 1) {
      await this.#stop(i);
      await this.#context.servers.of(i).enable(i, false);
    }
    this.#leaveService();
  }

  /** The connection is closed; what is in flight is being finished. */
  leave(): void {
    this.#context.lease.leave(this);
  }

  /** Everything is finished. */
  release(): void {
    for (const ring of this.#rings) ring.started = false;
    this.#context.lease.end(this);
  }
}

function checkFd(noFd: boolean, fds: readonly OwnedFd[]): void {
  if (noFd === (fds.length === 0)) return;
  throw new ProtocolError(`vring fd message: bit 8 says ${noFd ? 'no' : 'a'} descriptor, the message disagrees`);
}
