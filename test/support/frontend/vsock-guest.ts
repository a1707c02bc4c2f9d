/**
 * The guest's side of a socket device: three queues over a raw front end. It sends whatever packet it is told to, keeps the
 * receive queue full unless told otherwise, and sorts what comes by the guest's port.
 */

import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import { takeEvent } from './descriptors.ts';
import { DEADLINE_MS } from './raw-connection.ts';
import { type FrontendOptions, RawFrontend } from './raw-frontend.ts';
import type { RawRing } from './raw-ring.ts';
import { NEXT, type RawVirtqueue, type UsedEntry, WRITE } from './raw-virtqueue.ts';
import {
  decodePacket,
  encodeHeader,
  F_NO_IMPLIED_STREAM,
  F_SEQPACKET,
  F_STREAM,
  OP,
  STREAM,
  type VsockPacket,
} from './vsock-wire.ts';
import { FEATURE, hasBit } from './wire.ts';

export interface VsockGuestOptions {
  readonly cid?: number;
  /** Receive buffers, and bytes of each. */
  readonly buffers?: number;
  readonly bufferBytes?: number;
  readonly frontend?: FrontendOptions;
}

/** What a packet has that its sender does not say. */
export type PacketFields = Partial<Omit<VsockPacket, 'payload'>>;

const TX_SLOTS = 16;
const TX_SLOT_BYTES = 44 + 0x1_0000;
const RX = 0;
const TX = 1;
const EVENT = 2;

const EMPTY = new Uint8Array(0);

export class VsockGuest {
  readonly frontend: RawFrontend;
  readonly cid: number;
  readonly bufferBytes: number;
  readonly #buffers: number;
  readonly #rxStart: number;
  readonly #txStart: number;
  #txNext = 0;
  readonly #watch: Watch;
  /** Receive chains that came back without a packet. */
  readonly returned: number[] = [];
  #closed = false;
  /** Buffers are given to the device again when they were read. */
  refills = true;
  /** What came and nobody took. */
  readonly inbox: VsockPacket[] = [];
  #lastSend: Promise<void> = Promise.resolve();
  readonly #waiters = new Set<() => void>();

  private constructor(frontend: RawFrontend, options: VsockGuestOptions) {
    this.frontend = frontend;
    this.cid = options.cid ?? 3;
    this.#buffers = options.buffers ?? 64;
    this.bufferBytes = options.bufferBytes ?? 4096;
    this.#txStart = frontend.dataStart;
    this.#rxStart = this.#txStart + TX_SLOTS * TX_SLOT_BYTES;
    this.#watch = watchReadable(this.#receiving.call.fd, () => this.#takeUsed());
  }

  static frontendOptions(options: VsockGuestOptions): FrontendOptions {
    const ramBytes = 0x20_0000 + TX_SLOTS * TX_SLOT_BYTES + (options.buffers ?? 64) * (options.bufferBytes ?? 4096);
    return {
      queues: 3,
      queueSize: 128,
      ramBytes: (ramBytes + 4095) & ~4095,
      features: [F_STREAM, F_SEQPACKET, F_NO_IMPLIED_STREAM, FEATURE.EVENT_IDX],
      ...options.frontend,
    };
  }

  /** Connects, brings the rings up and fills the receive queue. */
  static async start(socket: string, options: VsockGuestOptions = {}): Promise<VsockGuest> {
    const frontend = await RawFrontend.start(socket, VsockGuest.frontendOptions(options));
    return VsockGuest.on(frontend, options);
  }

  /** On a front end whose rings are up. */
  static on(frontend: RawFrontend, options: VsockGuestOptions = {}): VsockGuest {
    const guest = new VsockGuest(frontend, options);
    guest.fillReceiveQueue();
    return guest;
  }

  /** The receive queue, which is split. */
  get rx(): RawRing {
    return this.frontend.ring(RX);
  }

  /** The transmit queue, which is split. */
  get tx(): RawRing {
    return this.frontend.ring(TX);
  }

  get #receiving(): RawVirtqueue {
    return this.frontend.queue(RX);
  }

  get #sending(): RawVirtqueue {
    return this.frontend.queue(TX);
  }

  get event(): RawRing {
    return this.frontend.ring(EVENT);
  }

  fillReceiveQueue(): void {
    for (let i = 0; i < this.#buffers; i += 1) this.#giveBuffer(i);
    this.#receiving.signal();
  }

  #bufferAt(i: number): number {
    return this.#rxStart + i * this.bufferBytes;
  }

  #giveBuffer(i: number): void {
    const { ram } = this.frontend;
    this.#receiving.setDescriptor(i, { address: ram.guest(this.#bufferAt(i)), length: this.bufferBytes, flags: WRITE });
    this.#receiving.publish(i);
  }

  /** Gives one buffer of the queue's own, however it is made. */
  giveChain(head: number): void {
    this.#receiving.publish(head);
    this.#receiving.signal();
  }

  #takeUsed(): void {
    const rx = this.#receiving;
    takeEvent(rx.call);
    // What came before the device knew that a call is wanted is not called for.
    do {
      for (const used of rx.harvest()) this.#take(used);
      rx.askForCall();
    } while (rx.waiting > 0);
    for (const wake of [...this.#waiters]) wake();
  }

  #take({ id, length }: UsedEntry): void {
    if (length > 0) {
      const at = this.#bufferAt(id);
      this.inbox.push(decodePacket(this.frontend.ram.bytes.slice(at, at + length)));
    } else this.returned.push(id);
    if (!this.refills || id >= this.#buffers) return;
    this.#giveBuffer(id);
    this.#receiving.signal();
  }

  /** The next packet that `matches`, taken out of the inbox. @throws Error - deadline */
  async receive(
    matches: (packet: VsockPacket) => boolean = () => true,
    deadlineMs = DEADLINE_MS,
  ): Promise<VsockPacket> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      const at = this.inbox.findIndex(matches);
      if (at >= 0) return this.inbox.splice(at, 1)[0] as VsockPacket;
      const left = end - performance.now();
      if (left <= 0) throw new Error(`no such packet in ${deadlineMs} ms; there are ${describe(this.inbox)}`);
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          clearTimeout(timer);
          this.#waiters.delete(wake);
          resolve();
        };
        const timer = setTimeout(wake, left);
        this.#waiters.add(wake);
      });
    }
  }

  /** The next packet for a port of the guest. */
  receiveAt(port: number, op?: number): Promise<VsockPacket> {
    return this.receive((packet) => packet.dstPort === port && (op === undefined || packet.op === op));
  }

  /** A packet with defaults: from this guest to the host, stream, a buffer of 256 KiB. */
  packet(fields: PacketFields, payload: Uint8Array = EMPTY): Uint8Array {
    const header = encodeHeader({
      srcCid: this.cid,
      dstCid: 2,
      srcPort: 1000,
      dstPort: 2000,
      len: payload.length,
      type: STREAM,
      op: OP.RW,
      flags: 0,
      bufAlloc: 0x4_0000,
      fwdCnt: 0,
      ...fields,
    });
    const bytes = new Uint8Array(44 + payload.length);
    bytes.set(header);
    bytes.set(payload, 44);
    return bytes;
  }

  /** Sends a packet and waits until its chain is back. `cuts` are lengths of the buffers before the last. */
  send(fields: PacketFields, payload: Uint8Array = EMPTY, cuts: readonly number[] = []): Promise<void> {
    const sent = this.#lastSend.then(async () => {
      this.queue(this.packet(fields, payload), cuts);
      this.#sending.signal();
      await this.#sending.take(1);
    });
    // One after the other, whoever sends; a failure is the sender's.
    this.#lastSend = sent.catch(() => undefined);
    return sent;
  }

  /** Makes bytes available on the transmit queue, without a kick. Up to 16 at once. */
  queue(bytes: Uint8Array, cuts: readonly number[] = []): void {
    const slot = this.#txNext;
    this.#txNext = (slot + 1) % TX_SLOTS;
    const start = this.#txStart + slot * TX_SLOT_BYTES;
    if (bytes.length > TX_SLOT_BYTES) throw new Error(`a packet of ${bytes.length} bytes, ${TX_SLOT_BYTES} fit`);
    this.frontend.ram.bytes.set(bytes, start);
    const perSlot = Math.floor(this.#sending.size / TX_SLOTS);
    if (cuts.length + 1 > perSlot) throw new Error(`${cuts.length + 1} buffers, ${perSlot} fit`);
    let at = start;
    const lengths = [...cuts, bytes.length - cuts.reduce((sum, cut) => sum + cut, 0)];
    lengths.forEach((length, i) => {
      const more = i + 1 < lengths.length;
      const index = slot * perSlot + i;
      this.#sending.setDescriptor(index, {
        address: this.frontend.ram.guest(at),
        length,
        flags: more ? NEXT : 0,
        next: more ? index + 1 : 0,
      });
      at += length;
    });
    this.#sending.publish(slot * perSlot);
  }

  /** Whether a feature of the device was accepted. */
  has(feature: number): boolean {
    return hasBit(this.frontend.features, feature);
  }

  /** Takes no more packets from the receive queue: the test looks there itself. */
  pause(): void {
    this.#watch.pause();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.close();
    this.frontend.close();
  }
}

const describe = (packets: readonly VsockPacket[]): string =>
  packets.length === 0 ? 'none' : packets.map((p) => `op ${p.op} ${p.srcPort}->${p.dstPort} (${p.len})`).join(', ');
