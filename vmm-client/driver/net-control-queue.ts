/**
 * The control queue of a network device: one command at a time, as a promise. Source: VIRTIO 1.3, 5.1.6.5 Control
 * Virtqueue.
 *
 *     descriptor 1 (readable): class u8, command u8, data ...      descriptor 2 (writable): ack u8
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { VIRTIO_NET_OK } from '../../protocol/virtio/net.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { DriverQueue } from './driver-queue.ts';
import { RING_FAULT, type RingFeatures } from './virtqueue.ts';

/** Entries: one command needs two. */
const SHAPE = { size: 64, maxChain: 2, indirect: false };
const COMMAND_BYTES = 4096;
const UNWRITTEN = 0xff;

interface Waiting {
  readonly what: string;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class NetControlQueue {
  readonly queue: DriverQueue;
  readonly #memory: SharedMemory;
  readonly #command: number;
  readonly #ack: number;
  #waiting: Waiting | undefined;

  /** Allocates ring and command in `memory`, which outlives the queue. @throws RangeError - memory */
  constructor(memory: SharedMemory, index: number, ring: RingFeatures) {
    this.#memory = memory;
    this.queue = new DriverQueue(memory, index, { ...ring, ...SHAPE }, () => this.poll());
    this.#command = memory.allocate(COMMAND_BYTES);
    this.#ack = memory.allocate(1);
  }

  /** Bytes of shared memory that the queue takes, alignment included. */
  static memoryBytes(): number {
    return DriverQueue.memoryBytes(SHAPE) + COMMAND_BYTES + 256;
  }

  /**
   * Sends a command, `what` for people. One at a time: the caller waits for the one before.
   * @throws PeerError - the device refused it
   */
  run(what: string, commandClass: number, command: number, data: Uint8Array): Promise<void> {
    if (this.#waiting !== undefined) throw new Error(`${what}: another control command is under way`);
    const { bytes, guestAddress } = this.#memory;
    bytes[this.#command] = commandClass;
    bytes[this.#command + 1] = command;
    bytes.set(data, this.#command + 2);
    bytes[this.#ack] = UNWRITTEN;
    const { ring } = this.queue;
    ring.startChain();
    ring.addBuffer(guestAddress + this.#command, 2 + data.length, false);
    ring.addBuffer(guestAddress + this.#ack, 1, true);
    ring.pushChain(0);
    const done = new Promise<void>((resolve, reject) => {
      this.#waiting = { what, resolve, reject };
    });
    this.queue.arm();
    this.queue.flush();
    return done;
  }

  /** Takes the answer, if there is one. Returns what the device did wrong to the ring, if it did. */
  poll(): string | undefined {
    const { ring } = this.queue;
    const token = ring.reap();
    if (token === RING_FAULT) return ring.fault;
    const waiting = this.#waiting;
    if (token < 0 || waiting === undefined) return undefined;
    this.#waiting = undefined;
    const ack = this.#memory.bytes[this.#ack]!;
    if (ack === VIRTIO_NET_OK) waiting.resolve();
    else if (ack === UNWRITTEN) waiting.reject(new PeerError(`${waiting.what}: the device answered nothing`));
    else waiting.reject(new PeerError(`${waiting.what}: the device refused it (ack ${ack})`));
    return undefined;
  }

  /** Rejects what waits. */
  fail(error: Error): void {
    this.#waiting?.reject(error);
    this.#waiting = undefined;
  }
}
