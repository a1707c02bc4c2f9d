/**
 * A virtio-net driver in user space: takes a connected front end, negotiates the network device, runs its queue pairs in
 * shared memory of its own. `send` and a receiver that is called for each packet, for tools; or the queues themselves for
 * those who poll them (then nobody else uses them). Packets are Ethernet frames without checksum of the frame.
 * Source: VIRTIO 1.3, 5.1 Network Device.
 */

import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_MAX_PACKET_BYTES,
} from '../../protocol/virtio/net.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import type { DriverQueue } from './driver-queue.ts';
import type { NetConfig } from './net-config.ts';
import { NetControlQueue } from './net-control-queue.ts';
import { NetReceiveQueue } from './net-receive-queue.ts';
import { type NetDriverOptions, planNet, readNetConfig, wantedFeatures } from './net-setup.ts';
import { NetTransmitQueue } from './net-transmit-queue.ts';
import { ringFeaturesOf } from './ring-features.ts';
import { NOTHING_USED, RING_FAULT } from './virtqueue.ts';

/** Packets that are handed over before the event loop has its turn. */
const MAX_BATCH = 256;

/** Who gets the packets that arrive. */
export interface NetReceiver {
  /** One packet; the memory is used again for the next one. */
  onPacket(packet: Uint8Array): void;
  /** The device has nothing more for now, or the event loop gets its turn. */
  onPause?(): void;
  /** Nothing will arrive any more. */
  onFailure(error: Error): void;
}

/** Who polls the queues instead of the driver. */
export interface NetPoller {
  /** A queue may have something: it was armed, or the back end came back. */
  onWake(): void;
  /** Nothing will be received or sent any more. */
  onFailure(error: Error): void;
}

export class NetDriver {
  readonly frontend: VhostUserFrontend;
  readonly memory: SharedMemory;
  /** One of each for every pair, in order. */
  readonly receiveQueues: readonly NetReceiveQueue[];
  readonly transmitQueues: readonly NetTransmitQueue[];
  /** Undefined where it is not used. */
  readonly controlQueue: NetControlQueue | undefined;
  readonly features: bigint;
  /** Bytes of the largest frame without a VLAN tag that may be sent unsegmented. */
  readonly maxFrameBytes: number;
  /** Called when the configuration was read again; the link may have gone down. */
  onConfig: (config: NetConfig) => void = () => undefined;
  readonly #timeoutMs: number;
  readonly #queues: readonly DriverQueue[];
  readonly #watches: Watch[] = [];
  readonly #packet = Buffer.alloc(VIRTIO_NET_MAX_PACKET_BYTES);
  #config: NetConfig;
  #commands: Promise<void> = Promise.resolve();
  #receiver: NetReceiver | undefined;
  #isPaused = false;
  #poller: NetPoller | undefined;
  #failure: Error | undefined;

  private constructor(
    frontend: VhostUserFrontend,
    memory: SharedMemory,
    receiveQueues: NetReceiveQueue[],
    transmitQueues: NetTransmitQueue[],
    control: NetControlQueue | undefined,
    config: NetConfig,
    maxFrameBytes: number,
    timeoutMs: number,
  ) {
    this.frontend = frontend;
    this.memory = memory;
    this.receiveQueues = receiveQueues;
    this.transmitQueues = transmitQueues;
    this.features = frontend.features;
    this.maxFrameBytes = maxFrameBytes;
    this.controlQueue = control;
    this.#timeoutMs = timeoutMs;
    this.#config = config;
    this.#queues = [...receiveQueues, ...transmitQueues, ...(control === undefined ? [] : [control])].map(
      ({ queue }) => queue,
    );
    for (const [i, queue] of this.#queues.entries()) {
      const receiving = receiveQueues[i];
      const onCall = receiving !== undefined ? () => this.#serve(receiving) : () => undefined;
      this.#watches.push(
        watchReadable(queue.callFd, () => {
          queue.drainCall();
          if (queue === control?.queue) this.#pollControl();
          else if (this.#poller !== undefined) this.#poller.onWake();
          else onCall();
        }),
        watchReadable(queue.errorFd, () =>
          this.fail(new PeerError(`the back end declared queue ${queue.index} broken`)),
        ),
      );
    }
    // Sent packets are taken back when room is needed.
    for (const { queue } of transmitQueues) queue.disarm();
    frontend.on('lost', (error) => this.fail(error));
    frontend.on('configChange', () => void this.#reloadConfig());
    frontend.on('reconnect', () => void this.#onReconnect());
  }

  /**
   * Negotiates the network device of `frontend`, which it owns from now on, and starts its queues.
   * @throws PeerError - the device lacks what is needed, or the back end refuses
   * @throws RangeError - a size that does not work
   */
  static async open(frontend: VhostUserFrontend, options: NetDriverOptions = {}): Promise<NetDriver> {
    const config = await readNetConfig(frontend);
    const { queueCount } = frontend.capabilities;
    const features = await frontend.acceptFeatures(wantedFeatures(config, queueCount, options));
    const plan = planNet(config, features, queueCount, options);
    const memory = frontend.createMemory(plan.memoryBytes);
    const receiveQueues = plan.receive.map((queue) => new NetReceiveQueue(memory, queue));
    const transmitQueues = plan.transmit.map((queue) => new NetTransmitQueue(memory, queue));
    const control =
      plan.control === undefined ? undefined : new NetControlQueue(memory, plan.control, ringFeaturesOf(features));
    const driver = new NetDriver(
      frontend,
      memory,
      receiveQueues,
      transmitQueues,
      control,
      config,
      plan.maxFrameBytes,
      options.timeoutMs ?? 10_000,
    );
    try {
      await frontend.setMemory([memory]);
      if (options.trackInflight === true) {
        const rings = Math.max(...driver.#queues.map(({ index }) => index)) + 1;
        await frontend.trackInflight(rings, Math.max(plan.queueSize, control?.queue.ring.size ?? 0));
      }
      await frontend.startVrings(driver.#queues);
      if (control !== undefined) await driver.#setPairs();
      return driver;
    } catch (error) {
      await driver.close().catch(() => undefined);
      throw error;
    }
  }

  /** The configuration as last read; links go up and down. */
  get config(): NetConfig {
    return this.#config;
  }

  /** Why nothing works any more, once that is so. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Hands what arrives to `receiver` from now on. */
  listen(receiver: NetReceiver): void {
    this.#receiver = receiver;
    if (this.#failure !== undefined) receiver.onFailure(this.#failure);
    for (const queue of this.receiveQueues) this.#serve(queue);
  }

  /** Leaves what arrives with the device until `resume`; the device drops what it has no buffers for. */
  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    for (const queue of this.receiveQueues) this.#serve(queue);
  }

  /**
   * Sends a packet. Returns false when it does not fit into the queue now.
   * @throws RangeError - it is longer than packets may be (our mistake)
   */
  send(packet: Uint8Array, pair = 0): boolean {
    if (this.#failure !== undefined) throw this.#failure;
    const transmit = this.transmitQueues[pair];
    if (transmit === undefined) throw new RangeError(`no queue pair ${pair}`);
    if (transmit.reap(transmit.queue.ring.size) === RING_FAULT) {
      this.#breakRing(transmit.queue, transmit.fault);
      return false;
    }
    const slot = transmit.peekSlot();
    if (slot === -1) return false;
    if (packet.length > transmit.maxPacketBytes) {
      throw new RangeError(`a packet of ${packet.length} bytes, the most is ${transmit.maxPacketBytes}`);
    }
    transmit.setHeader(slot, 0, 0, 0, 0, 0, 0);
    this.memory.bytes.set(packet, transmit.packetOffset(slot));
    transmit.push(packet.length);
    transmit.queue.flush();
    return true;
  }

  /**
   * Sends a command to the device by the control queue, after those before it. `what` is for people.
   * @throws PeerError - there is none, the device refused, or it did not answer in time, which ends everything
   */
  async command(what: string, commandClass: number, command: number, data: Uint8Array): Promise<void> {
    const control = this.controlQueue;
    if (control === undefined) throw new PeerError(`${what}: the control queue is not in use`);
    const sent = this.#commands.then(() => {
      if (this.#failure !== undefined) throw this.#failure;
      const timer = setTimeout(
        () => this.fail(new PeerError(`${what}: the device did not answer within ${this.#timeoutMs} ms`)),
        this.#timeoutMs,
      );
      const done = control.run(what, commandClass, command, data);
      this.#pollControl();
      return done.finally(() => clearTimeout(timer));
    });
    this.#commands = sent.catch(() => undefined);
    return sent;
  }

  /** Gives the queues to a caller that polls by itself. From then on nothing is sent or received here. */
  takeQueues(poller: NetPoller): void {
    this.#poller = poller;
    if (this.#failure !== undefined) poller.onFailure(this.#failure);
  }

  /** Ends everything with `error`, once. */
  fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.controlQueue?.fail(error);
    this.#receiver?.onFailure(error);
    this.#poller?.onFailure(error);
    for (const watch of this.#watches.splice(0)) watch.close();
  }

  /** Stops the queues, ends the connection and frees the memory. Idempotent. */
  async close(): Promise<void> {
    // Rings of a back end that is away need no stopping.
    const isSound = this.#failure === undefined && !this.frontend.isReconnecting;
    // Before anything is awaited: nobody is to be called any more.
    this.#receiver = undefined;
    this.#poller = undefined;
    const stopped = isSound
      ? await Promise.allSettled(this.#queues.map(({ index }) => this.frontend.stopVring(index)))
      : [];
    this.fail(new PeerError('the driver was closed'));
    this.frontend.close();
    for (const queue of this.#queues) queue.close();
    this.memory.close();
    const refused = stopped.find((result) => result.status === 'rejected');
    if (refused !== undefined) throw refused.reason;
  }

  /** Hands over what has arrived in one queue. */
  #serve(receive: NetReceiveQueue): void {
    const receiver = this.#receiver;
    if (receiver === undefined || this.#isPaused) return;
    let isEmpty = false;
    for (let count = 0; count < MAX_BATCH && this.#failure === undefined && !this.#isPaused; count++) {
      const length = receive.receive();
      if (length === NOTHING_USED) {
        isEmpty = true;
        break;
      }
      if (length === RING_FAULT) {
        this.#breakRing(receive.queue, receive.fault);
        return;
      }
      const copied = receive.copyTo(this.#packet);
      receive.release();
      receiver.onPacket(this.#packet.subarray(0, copied));
    }
    if (this.#failure !== undefined) return;
    receive.queue.flush();
    receiver.onPause?.();
    if (this.#isPaused || (isEmpty && receive.queue.arm())) return;
    setImmediate(() => {
      if (this.#failure === undefined) this.#serve(receive);
    });
  }

  #pollControl(): void {
    const control = this.controlQueue;
    if (control === undefined) return;
    do {
      const fault = control.poll();
      if (fault === undefined) continue;
      this.#breakRing(control.queue, fault);
      return;
    } while (!control.queue.arm());
  }

  #breakRing(queue: DriverQueue, fault: string): void {
    this.fail(new PeerError(`queue ${queue.index}: ${fault}`));
  }

  /** Several pairs are in use from this command on. */
  async #setPairs(): Promise<void> {
    const pairs = this.receiveQueues.length;
    if (pairs === 1) return;
    const data = Uint8Array.of(pairs & 0xff, pairs >> 8);
    await this.command(`setting ${pairs} queue pairs`, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, data);
  }

  async #onReconnect(): Promise<void> {
    // Buffers that were given back meanwhile.
    for (const { queue } of this.receiveQueues) queue.flush();
    await this.#reloadConfig();
    try {
      // The new back end knows of one pair.
      if (this.controlQueue !== undefined) await this.#setPairs();
    } catch (error) {
      this.fail(error as Error);
    }
    if (this.#failure !== undefined) return;
    this.#poller?.onWake();
    for (const queue of this.receiveQueues) this.#serve(queue);
  }

  async #reloadConfig(): Promise<void> {
    try {
      this.#config = await readNetConfig(this.frontend);
      this.onConfig(this.#config);
    } catch (error) {
      this.fail(error as Error);
    }
  }
}
