/**
 * The driver's side of a network device on a raw front end: buffers posted to receive rings in any shape, packets put
 * together from what comes back, packets sent from memory cut in any way. Ring 2n receives, ring 2n + 1 transmits.
 */

import { NET_FEATURE, type NetHeader, netHeader, readNetHeader } from './net-wire.ts';
import { type FrontendOptions, RawFrontend } from './raw-frontend.ts';
import type { RawRing } from './raw-ring.ts';
import { type RawDescriptor, type RawVirtqueue, type UsedEntry, WRITE } from './raw-virtqueue.ts';
import { FEATURE, hasBit } from './wire.ts';

export interface NetDriverOptions extends FrontendOptions {
  /** Pairs of rings; default 1. */
  readonly pairs?: number;
}

/** A piece of a receive buffer: an offset in the memory and a length in bytes. */
export interface Piece {
  readonly at: number;
  readonly length: number;
}

/** What the device put into a ring for one packet. */
export interface ReceivedPacket {
  readonly header: NetHeader;
  readonly frame: Uint8Array;
  readonly used: readonly UsedEntry[];
}

/** Memory of the packets: offsets from dataStart on. */
const RAM_BYTES = 16 << 20;

export class NetDriver {
  readonly frontend: RawFrontend;
  readonly #buffers = new Map<string, readonly Piece[]>();
  #next: number;

  /** A driver on rings that are started, or will be. */
  constructor(frontend: RawFrontend) {
    this.frontend = frontend;
    this.#next = frontend.dataStart;
  }

  static optionsOf(options: NetDriverOptions): FrontendOptions {
    return { ramBytes: RAM_BYTES, queues: 2 * (options.pairs ?? 1), ...options };
  }

  /** Connects and brings every ring up. */
  static async start(socket: string, options: NetDriverOptions = {}): Promise<NetDriver> {
    return new NetDriver(await RawFrontend.start(socket, NetDriver.optionsOf(options)));
  }

  /** Connects and does nothing else. */
  static connect(socket: string, options: NetDriverOptions = {}): NetDriver {
    return new NetDriver(RawFrontend.connect(socket, NetDriver.optionsOf(options)));
  }

  /** The same memory, rings and buffers on a new connection. */
  reconnect(socket: string): NetDriver {
    const driver = new NetDriver(this.frontend.reconnect(socket));
    for (const [key, pieces] of this.#buffers) driver.#buffers.set(key, pieces);
    driver.#next = this.#next;
    return driver;
  }

  /** The receive ring of a pair, which is split. */
  rx(pair = 0): RawRing {
    return this.frontend.ring(2 * pair);
  }

  /** The transmit ring of a pair, which is split. */
  tx(pair = 0): RawRing {
    return this.frontend.ring(2 * pair + 1);
  }

  #receiving(pair: number): RawVirtqueue {
    return this.frontend.queue(2 * pair);
  }

  get mergeable(): boolean {
    return hasBit(this.frontend.features, NET_FEATURE.MRG_RXBUF);
  }

  /** 10 for a legacy driver without mergeable buffers. */
  get headerBytes(): 10 | 12 {
    return this.mergeable || hasBit(this.frontend.features, FEATURE.VERSION_1) ? 12 : 10;
  }

  /** Takes fresh memory. Returns its offset. */
  allocate(length: number, align = 64): number {
    const at = Math.ceil(this.#next / align) * align;
    if (at + length > this.frontend.ram.length) throw new Error('the memory of the driver is used up');
    this.#next = at + length;
    return at;
  }

  /** Gives all memory back: nothing may be posted. */
  forget(): void {
    this.#next = this.frontend.dataStart;
    this.#buffers.clear();
  }

  /** Lays a receive buffer of these pieces out, from descriptor `head` on. It is not yet available. */
  layBuffer(head: number, pieces: readonly Piece[], pair = 0): void {
    const { ram } = this.frontend;
    this.#receiving(pair).setChain(
      head,
      pieces.map(({ at, length }) => ({ address: ram.guest(at), length, flags: WRITE })),
    );
    this.#buffers.set(`${pair}/${head}`, pieces);
  }

  /** Allocates a receive buffer in pieces of these lengths and makes it available, without a kick. */
  offer(head: number, lengths: readonly number[], pair = 0): void {
    const pieces = lengths.map((length) => ({ at: this.allocate(length, 1), length }));
    for (const { at, length } of pieces) this.frontend.ram.bytes.fill(0xee, at, at + length);
    this.layBuffer(head, pieces, pair);
    this.#receiving(pair).publish(head);
  }

  /** Offers `count` receive buffers of one piece each, at heads 0, 1, ..., and kicks. */
  post(count: number, length: number, pair = 0): void {
    for (let head = 0; head < count; head += 1) this.offer(head, [length], pair);
    this.#receiving(pair).signal();
  }

  /** What lies in the first bytes of a receive buffer. */
  contentOf(head: number, length: number, pair = 0): Uint8Array {
    const pieces = this.#buffers.get(`${pair}/${head}`);
    if (pieces === undefined) throw new Error(`head ${head} of pair ${pair} is no buffer`);
    const content = new Uint8Array(length);
    let have = 0;
    for (const { at, length: room } of pieces) {
      const step = Math.min(room, length - have);
      content.set(this.frontend.ram.bytes.subarray(at, at + step), have);
      have += step;
    }
    if (have < length) throw new Error(`used length ${length} of a buffer of ${have} bytes`);
    return content;
  }

  /** Bytes that a receive buffer holds. */
  capacityOf(head: number, pair = 0): number {
    return (this.#buffers.get(`${pair}/${head}`) ?? []).reduce((sum, { length }) => sum + length, 0);
  }

  /** The next packet of a receive ring, of as many buffers as its header says. @throws Error - deadline */
  async receive(pair = 0, deadlineMs?: number): Promise<ReceivedPacket> {
    const ring = this.#receiving(pair);
    const [first] = (await ring.take(1, deadlineMs)) as [UsedEntry];
    const parts = [this.contentOf(first.id, first.length, pair)];
    const header = readNetHeader((parts[0] as Uint8Array).subarray(0, this.headerBytes));
    const rest = this.mergeable ? await ring.take(header.numBuffers - 1, deadlineMs) : [];
    for (const { id, length } of rest) parts.push(this.contentOf(id, length, pair));
    const bytes = new Uint8Array(Buffer.concat(parts));
    return { header, frame: bytes.subarray(this.headerBytes), used: [first, ...rest] };
  }

  /** Offers the buffers of a packet again, in their order, and kicks. */
  repost(packet: ReceivedPacket, pair = 0): void {
    const ring = this.#receiving(pair);
    ring.publish(...packet.used.map(({ id }) => id));
    ring.signal();
  }

  /** Puts bytes into memory and gives the descriptors of them, cut into pieces of these lengths and the rest. */
  place(bytes: Uint8Array, cuts: readonly number[] = []): RawDescriptor[] {
    const { ram } = this.frontend;
    const start = this.allocate(bytes.length);
    ram.bytes.set(bytes, start);
    const chain: RawDescriptor[] = [];
    let at = 0;
    for (const length of cuts) {
      chain.push({ address: ram.guest(start + at), length });
      at += length;
    }
    if (at < bytes.length || chain.length === 0)
      chain.push({ address: ram.guest(start + at), length: bytes.length - at });
    return chain;
  }

  /** Sends a packet, header and frame as they are, in pieces of these lengths and the rest; waits until it is used. */
  async send(header: Uint8Array, frame: Uint8Array, cuts: readonly number[] = [], pair = 0): Promise<UsedEntry> {
    const ring = this.frontend.queue(2 * pair + 1);
    ring.setChain(0, this.place(new Uint8Array(Buffer.concat([header, frame])), cuts));
    const [used] = await ring.run(0);
    return used as UsedEntry;
  }

  /** Sends a frame with an empty header. */
  sendFrame(frame: Uint8Array, pair = 0): Promise<UsedEntry> {
    return this.send(netHeader({}, this.headerBytes), frame, [], pair);
  }

  close(): void {
    this.frontend.close();
  }
}
