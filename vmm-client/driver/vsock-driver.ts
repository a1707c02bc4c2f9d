/**
 * A virtio-vsock driver in user space: takes a connected front end, negotiates the socket device, runs its queues in
 * shared memory of its own. `connect` and `listen` with promises, for tools; or connections with handlers, for those who
 * move much. When the back end dies, or the device says that its transport was reset, open connections end with an error
 * and the driver goes on. Source: VIRTIO 1.3, 5.10 Socket Device.
 */

import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VIRTIO_VSOCK_EVENT_QUEUE,
  VIRTIO_VSOCK_HOST_CID,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
} from '../../protocol/virtio/vsock.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import type { DriverQueue } from './driver-queue.ts';
import { RING_FAULT } from './virtqueue.ts';
import type { VsockConnection, VsockHandler } from './vsock-connection.ts';
import { VsockError } from './vsock-error.ts';
import { TRANSPORT_RESET, VsockEventQueue } from './vsock-event-queue.ts';
import { VsockListener } from './vsock-listener.ts';
import { type VsockAcceptor, VsockMultiplexer } from './vsock-multiplexer.ts';
import { VsockReceiveQueue } from './vsock-receive-queue.ts';
import { hasSocketType, planVsock, readGuestCid, type VsockDriverOptions, wantedVsockFeatures } from './vsock-setup.ts';
import { VsockSocket } from './vsock-socket.ts';
import { VsockTransmitQueue } from './vsock-transmit-queue.ts';

/** Packets that are taken before what was sent meanwhile goes to the device. */
const MAX_BATCH = 16;
/** How long the queues are polled before the event loop has its turn. */
const SLICE_MS = 2;

export type VsockType = 'stream' | 'seqpacket';

export interface VsockTarget {
  /** Default: the host, 2. */
  readonly cid?: number;
  /** Default stream. */
  readonly type?: VsockType;
}

export class VsockDriver {
  readonly frontend: VhostUserFrontend;
  readonly memory: SharedMemory;
  readonly features: bigint;
  readonly #options: VsockDriverOptions;
  readonly #multiplexer: VsockMultiplexer;
  readonly #events: VsockEventQueue;
  /** Receive, transmit, events. */
  readonly queues: readonly DriverQueue[];
  readonly #listeners = new Set<VsockListener>();
  readonly #watches: Watch[] = [];
  #failure: Error | undefined;
  #isScheduled = false;
  #lastWork = 0;
  /** Kept once the CID of a back end that came back is known. */
  #ready: Promise<void> = Promise.resolve();
  /** How often the driver went to sleep, for statistics. */
  sleeps = 0;

  private constructor(
    frontend: VhostUserFrontend,
    memory: SharedMemory,
    multiplexer: VsockMultiplexer,
    receive: VsockReceiveQueue,
    events: VsockEventQueue,
    options: VsockDriverOptions,
  ) {
    this.frontend = frontend;
    this.memory = memory;
    this.features = frontend.features;
    this.#options = options;
    this.#multiplexer = multiplexer;
    this.#events = events;
    this.queues = [receive.queue, multiplexer.transmit.queue, events.queue];
    multiplexer.onBlocked = () => this.#schedule();
    for (const queue of this.queues) {
      this.#watches.push(
        watchReadable(queue.callFd, () => {
          queue.drainCall();
          if (queue === events.queue) this.#takeEvents();
          else this.#wake();
        }),
        watchReadable(queue.errorFd, () =>
          this.fail(new PeerError(`the back end declared queue ${queue.index} broken`)),
        ),
      );
    }
    frontend.on('lost', (error) => this.fail(error));
    frontend.on('disconnect', (error) => this.#onDisconnect(error));
    frontend.on('reconnect', () => this.#onReconnect());
    frontend.on('configChange', () => this.#reloadCid());
  }

  /**
   * Negotiates the socket device of `frontend`, which it owns from now on, and starts its queues.
   * @throws PeerError - the device lacks what is needed, or the back end refuses
   * @throws RangeError - a size that does not work, or a CID that no guest can have
   */
  static async open(frontend: VhostUserFrontend, options: VsockDriverOptions = {}): Promise<VsockDriver> {
    const cid = await readGuestCid(frontend, options);
    const features = await frontend.acceptFeatures(wantedVsockFeatures(options));
    const plan = planVsock(features, frontend.capabilities.queueCount, options);
    const memory = frontend.createMemory(plan.memoryBytes);
    const receive = new VsockReceiveQueue(memory, plan.receive);
    const transmit = new VsockTransmitQueue(memory, plan.transmit);
    const events = new VsockEventQueue(memory, VIRTIO_VSOCK_EVENT_QUEUE, plan.ring);
    const multiplexer = new VsockMultiplexer(memory, receive, transmit, cid, plan);
    const driver = new VsockDriver(frontend, memory, multiplexer, receive, events, options);
    try {
      await frontend.setMemory([memory]);
      await frontend.startVrings(driver.queues);
      driver.#takeEvents();
      driver.#wake();
      return driver;
    } catch (error) {
      await driver.close().catch(() => undefined);
      throw error;
    }
  }

  /** The guest's CID, as last read. */
  get cid(): number {
    return this.#multiplexer.cid;
  }

  /** Why nothing works any more, once that is so. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Connections that are not closed. */
  get connectionCount(): number {
    return this.#multiplexer.connectionCount;
  }

  /** Kicks sent, for statistics. */
  get kicks(): number {
    return this.queues.reduce((sum, queue) => sum + queue.kicks, 0);
  }

  /**
   * Connects to a port of the host, or of another guest. Waits for a back end that is away.
   * @throws VsockError - ECONNREFUSED, ETIMEDOUT
   * @throws PeerError - the device has no sockets of that type, or is gone
   */
  async connect(port: number, target: VsockTarget = {}): Promise<VsockSocket> {
    await this.#ready;
    const socket = new VsockSocket();
    return socket.attach(this.dial(port, target, socket)).opened();
  }

  /**
   * Like `connect`, with a handler instead of promises.
   * @throws PeerError - the device has no sockets of that type, or is away or gone
   */
  dial(port: number, target: VsockTarget, handler: VsockHandler): VsockConnection {
    this.#checkUsable();
    const type = this.#typeOf(target.type ?? 'stream');
    return this.#multiplexer.connect(target.cid ?? VIRTIO_VSOCK_HOST_CID, port, type, handler);
  }

  /**
   * Listens at a port of the guest. At most `backlog` connections wait to be accepted, others are refused.
   * @throws VsockError - EADDRINUSE
   * @throws PeerError - the device has no sockets of that type, or is gone
   */
  listen(port: number, type: VsockType = 'stream', backlog = 128): VsockListener {
    const listener = new VsockListener(backlog, () => {
      this.#multiplexer.endListening(port);
      this.#listeners.delete(listener);
    });
    this.serve(port, type, (connection) => listener.offer(connection));
    this.#listeners.add(listener);
    return listener;
  }

  /** Like `listen`, with handlers instead of promises, until the driver is closed. */
  serve(port: number, type: VsockType, accept: VsockAcceptor): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#multiplexer.listen(port, this.#typeOf(type), accept);
  }

  /** Ends everything with `error`, once. */
  fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    for (const watch of this.#watches.splice(0)) watch.close();
    this.#multiplexer.abandon(error);
    for (const listener of [...this.#listeners]) listener.fail(error);
  }

  /** Ends open connections with an error, stops the queues, ends the connection and frees the memory. Idempotent. */
  async close(): Promise<void> {
    // Rings of a back end that is away need no stopping.
    const isSound = this.#failure === undefined && !this.frontend.isReconnecting;
    this.fail(new PeerError('the driver was closed'));
    const stopped = isSound
      ? await Promise.allSettled(this.queues.map(({ index }) => this.frontend.stopVring(index)))
      : [];
    this.frontend.close();
    for (const queue of this.queues) queue.close();
    this.memory.close();
    const refused = stopped.find((result) => result.status === 'rejected');
    if (refused !== undefined) throw refused.reason;
  }

  #checkUsable(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.frontend.isReconnecting) throw new PeerError('the back end is away');
  }

  #typeOf(type: VsockType): number {
    const number = type === 'seqpacket' ? VIRTIO_VSOCK_TYPE_SEQPACKET : VIRTIO_VSOCK_TYPE_STREAM;
    if (!hasSocketType(this.features, number)) throw new PeerError(`the device does not offer ${type.toUpperCase()}`);
    return number;
  }

  #wake(): void {
    this.#lastWork = performance.now();
    if (!this.#isScheduled) this.#run();
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      this.#run();
    });
  }

  /** Polls until there has been nothing to do for a while, and then asks for signals. */
  #run(): void {
    const { pollMs = 0 } = this.#options;
    const started = performance.now();
    let now = started;
    do {
      if (this.#failure !== undefined || this.frontend.isReconnecting) return;
      const work = this.#multiplexer.poll(MAX_BATCH);
      if (work === RING_FAULT) {
        this.fail(new PeerError(this.#multiplexer.fault));
        return;
      }
      now = performance.now();
      if (work > 0) {
        this.#lastWork = now;
      } else if (now - this.#lastWork >= pollMs) {
        if (this.#multiplexer.arm()) {
          this.sleeps += 1;
          return;
        }
        this.#lastWork = now;
      }
    } while (now - started < SLICE_MS);
    this.#multiplexer.disarm();
    this.#schedule();
  }

  #takeEvents(): void {
    const { queue } = this.#events;
    do {
      const found = this.#events.poll();
      if (found === RING_FAULT) this.fail(new PeerError(`queue ${queue.index}: ${this.#events.fault}`));
      if (this.#failure !== undefined) return;
      if (found !== TRANSPORT_RESET) continue;
      this.#multiplexer.abandon(new VsockError('ENETRESET', 'the device was reset, and its connections with it'));
      this.#reloadCid();
    } while (!queue.arm());
  }

  #onDisconnect(error: Error): void {
    // What the back end said before it went is heard.
    if (this.#failure === undefined) while (this.#multiplexer.poll(MAX_BATCH) > 0);
    this.#multiplexer.abandon(new VsockError('ENETRESET', `the back end went away: ${error.message}`));
    this.#ready = new Promise((resolve) => {
      const end = () => {
        this.frontend.off('reconnect', end);
        this.frontend.off('lost', end);
        resolve();
      };
      this.frontend.once('reconnect', end);
      this.frontend.once('lost', end);
    });
  }

  #onReconnect(): void {
    this.#reloadCid();
    // Buffers that were given back meanwhile.
    for (const queue of this.queues) queue.flush();
    this.#takeEvents();
    this.#wake();
  }

  #reloadCid(): void {
    const before = this.#ready;
    this.#ready = Promise.all([before, readGuestCid(this.frontend, this.#options)]).then(
      ([, cid]) => {
        this.#multiplexer.cid = cid;
      },
      (error) => this.fail(error),
    );
  }
}
