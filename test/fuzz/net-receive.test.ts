/**
 * A driver offers buffers of any shape, packets of any size come, reads find nothing when they like, the ring is stopped,
 * disabled, and its daemon killed in the middle of a pass; and plain lists say what the driver must see: each packet once,
 * whole and in order, or counted as dropped; each buffer once, in order, with the right length.
 */

import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import type { RingAttachment } from '../../backends/core/device.ts';
import type { Logger } from '../../backends/core/logging.ts';
import { Vring, type VringHost } from '../../backends/core/vring.ts';
import { Counters } from '../../backends/net/counters.ts';
import type { Engine } from '../../backends/net/engines/engine.ts';
import { Packet, RECEIVE } from '../../backends/net/packet.ts';
import { Receiver } from '../../backends/net/receive.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { checked, libc } from '../../protocol/sys/libc.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { createMemfd, truncate } from '../support/frontend/descriptors.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { netHeader, readNetHeader, testFrame } from '../support/frontend/net-wire.ts';
import { INDIRECT, NEXT, RawRing, WRITE } from '../support/frontend/raw-ring.ts';

const SIZE = 16;
const LOT = 32;
const HEADER = 12;
const MAX_BYTES = HEADER + 65_558;
const EAGAIN = 11;
const EIO = 5;
/** Memory of one buffer, and of its indirect table. */
const AREA = 0x1_0000;
const TABLE = 0x1000;

const ram = new GuestRam(SIZE * (AREA + TABLE) + 0x1_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
const wire = createMemfd(MAX_BYTES);
const scratch = allocatePinned(MAX_BYTES);
afterAll(() => {
  memory.clear();
  ram.close();
  wire.close();
});

const silent = (): void => undefined;
const log = { info: silent, warn: silent, error: silent } as unknown as Logger;

const host: VringHost = {
  memory,
  iotlb: undefined,
  dirtyLog: undefined,
  awaitsLog: false,
  ringFeatures: { packed: false, indirect: true, eventIdx: true, inOrder: false },
  log,
  attachment: {
    ringTraits: () => ({ offersBuffers: true, runsDisabled: false }),
    ringChanged: silent,
  } as unknown as RingAttachment,
  wake: silent,
  memoryFaulted: false,
  onMemoryFault: silent,
  requestTranslations: () => 0,
};

interface Shape {
  /** Lengths of its pieces in bytes. */
  readonly pieces: readonly number[];
  readonly kind: 'good' | 'readable' | 'unmapped' | 'loop' | 'empty table';
}

type Operation =
  | { readonly what: 'offer'; readonly shapes: readonly Shape[] }
  | { readonly what: 'arrive'; readonly lengths: readonly number[] }
  /** `reads`: how each read of the pass ends, if there is a packet; the others as they can. */
  | { readonly what: 'pass'; readonly reads: readonly number[] }
  | { readonly what: 'settle' | 'restart' | 'disable' | 'enable' }
  /** In the middle of a pass, after so many of its steps. */
  | { readonly what: 'kill'; readonly steps: number };

const shape: fc.Arbitrary<Shape> = fc.record({
  pieces: fc.oneof(
    { weight: 4, arbitrary: fc.constantFrom([1526], [2048], [12, 1514], [600], [4096]) },
    { weight: 4, arbitrary: fc.array(fc.nat(3000), { minLength: 1, maxLength: 6 }) },
    { weight: 2, arbitrary: fc.array(fc.nat(12), { minLength: 1, maxLength: 5 }) },
    { weight: 1, arbitrary: fc.constantFrom(1, 40, 64, 65, 130, 250).map((count) => Array<number>(count).fill(7)) },
  ),
  kind: fc.oneof(
    { weight: 12, arbitrary: fc.constant('good' as const) },
    { weight: 1, arbitrary: fc.constantFrom('readable' as const, 'unmapped' as const, 'loop' as const) },
    { weight: 1, arbitrary: fc.constant('empty table' as const) },
  ),
});

const length = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 18, max: 1514 }) },
  { weight: 2, arbitrary: fc.integer({ min: 1515, max: 20_000 }) },
  { weight: 1, arbitrary: fc.constantFrom(60, 1514, 2036, 2037, 65_558) },
);

const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      what: fc.constant('offer' as const),
      shapes: fc.array(shape, { minLength: 1, maxLength: SIZE }),
    }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      what: fc.constant('arrive' as const),
      lengths: fc.array(length, { minLength: 1, maxLength: 12 }),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      what: fc.constant('pass' as const),
      reads: fc.array(fc.constantFrom(0, 0, 0, EAGAIN, EIO), { maxLength: 12 }),
    }),
  },
  { weight: 3, arbitrary: fc.constant({ what: 'settle' as const }) },
  { weight: 1, arbitrary: fc.constant({ what: 'restart' as const }) },
  { weight: 1, arbitrary: fc.constant({ what: 'disable' as const }) },
  { weight: 2, arbitrary: fc.constant({ what: 'enable' as const }) },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('kill' as const), steps: fc.nat(3) }) },
);

/** A TAP that has the packets it was given, and finds some only at the second look. */
class FakeTap implements Engine {
  readonly name = 'fake';
  readonly mustPoll = false;
  readonly waiting: Uint8Array[] = [];
  /** How the next reads end: 0 well, if there is a packet. */
  readonly script: number[] = [];
  readonly #submitted: Packet[] = [];
  complete: () => void = () => undefined;
  /** Packets that were read. */
  taken = 0;

  submit(packet: Packet): void {
    this.#submitted.push(packet);
  }

  poll(): void {
    for (const packet of this.#submitted.splice(0)) {
      packet.result = this.#read(packet, this.script.shift() ?? 0);
      this.complete();
    }
  }

  #read(packet: Packet, errno: number): number {
    if (errno !== 0) return -errno;
    const bytes = this.waiting.shift();
    if (bytes === undefined) return -EAGAIN;
    this.taken += 1;
    // As the kernel reads: into the buffers one after the other, as much as fits.
    scratch.bytes.set(bytes);
    truncate(wire, bytes.length);
    checked(libc.pwrite(wire.fd, scratch.address, bytes.length, 0), 'pwrite');
    return checked(libc.preadv2(wire.fd, packet.iovecAddress, packet.buffers, 0, 0), 'preadv2');
  }

  /** What a killed daemon had asked for. */
  forget(): void {
    this.#submitted.length = 0;
  }

  replaceQueues(): void {}

  close(): void {}
}

const capacityOf = ({ pieces }: Shape): number => pieces.reduce((sum, piece) => sum + piece, 0);

class World {
  readonly mergeable: boolean;
  readonly tap = new FakeTap();
  readonly driver: RawRing;
  readonly inflight = new ArrayBuffer(4096);
  readonly packets = Array.from({ length: LOT }, (_, id) => new Packet(id, RECEIVE, 0));
  counters = new Counters(log);
  receiver: Receiver;
  vring: Vring;
  readonly start: number;
  /** All buffers that were ever offered, in order, and how many of them came back. */
  readonly offered: { head: number; shape: Shape }[] = [];
  used = 0;
  readonly free = new Set(Array.from({ length: SIZE }, (_, i) => i));
  /** All packets that ever arrived, and how many of them are accounted for. */
  readonly arrived: Uint8Array[] = [];
  settled = 0;
  delivered = 0;
  dropped = 0;
  killed = false;
  /** Packets, by number, that a killed daemon had read and not delivered. */
  readonly lost = new Set<number>();

  constructor(mergeable: boolean, start: number) {
    this.mergeable = mergeable;
    this.start = start;
    ram.bytes.fill(0, 0, 0x1_0000);
    this.driver = new RawRing(ram, 0, SIZE, 0x1000);
    this.driver.setAvailIndex(start);
    ram.view.setUint16(this.driver.used + 2, start, true);
    this.receiver = new Receiver(this.packets, this.counters, silent);
    this.vring = this.#createVring(start);
    this.#wireUp();
  }

  #createVring(base: number): Vring {
    const vring = new Vring(0, host);
    const { table, avail, used } = this.driver;
    const addresses = { descriptor: ram.user(table), available: ram.user(avail), used: ram.user(used) };
    vring.start({ size: SIZE, base, addresses, usedLog: undefined, inflight: this.inflight });
    vring.enabled = true;
    return vring;
  }

  #wireUp(): void {
    this.tap.complete = () => this.receiver.complete();
  }

  offer(shapes: readonly Shape[]): void {
    this.look();
    for (const one of shapes) {
      const [head] = this.free;
      if (head === undefined) return;
      this.free.delete(head);
      this.#lay(head, one);
      this.offered.push({ head, shape: one });
      this.driver.publish(head);
    }
  }

  #lay(head: number, { pieces, kind }: Shape): void {
    const area = 0x1_0000 + head * AREA;
    const table = 0x1_0000 + SIZE * AREA + head * TABLE;
    const base = kind === 'unmapped' ? 2 ** 40 : ram.guest(area);
    let at = 0;
    const chain = pieces.map((piece) => {
      const descriptor = { address: base + at, length: piece, flags: kind === 'readable' ? 0 : WRITE };
      at += piece;
      return descriptor;
    });
    ram.bytes.fill(0xee, area, area + at);
    this.driver.setChain(0, chain, table);
    if (kind === 'loop')
      this.driver.setDescriptor(0, { ...chain[0], address: base, length: 1, flags: WRITE | NEXT }, table);
    const bytes = kind === 'empty table' ? 0 : 16 * chain.length;
    this.driver.setDescriptor(head, { address: ram.guest(table), length: bytes, flags: INDIRECT });
  }

  arrive(lengths: readonly number[]): void {
    for (const bytes of lengths) {
      const header = netHeader({ csumStart: this.arrived.length & 0xffff, numBuffers: 0x5555 });
      const packet = new Uint8Array(
        Buffer.concat([header, testFrame(this.arrived.length, Math.max(14, bytes)).subarray(0, bytes)]),
      );
      this.arrived.push(packet);
      this.tap.waiting.push(packet);
    }
  }

  /** One pass of the pump, of which only the first `steps` steps are done. Returns how much was done. */
  pass(steps = 4): number {
    if (!this.vring.runnable) return 0;
    const format = { headerBytes: HEADER, mergeable: this.mergeable, maxBytes: MAX_BYTES };
    let work = 0;
    if (steps > 0) work += this.receiver.run(this.vring, LOT, format, this.tap);
    if (steps > 1) this.tap.poll();
    if (steps > 2) work += this.receiver.finish();
    if (steps > 3) this.vring.flush(false);
    return work;
  }

  /** Passes until nothing is done any more: either there is no packet, or the driver is asked for buffers. */
  settle(): void {
    this.tap.script.length = 0;
    for (let i = 0; this.pass() > 0; i += 1) if (i > 2000) throw new Error('passes without end');
    this.look();
    if (this.vring.runnable && !this.vring.short) expect(this.tap.waiting).toHaveLength(0);
    expect(this.vring.inFlight).toBe(0);
  }

  kill(steps: number): void {
    this.pass(steps);
    this.look();
    // What was read is what came first; it is gone unless the driver has it.
    const read = this.arrived.length - this.tap.waiting.length;
    for (let i = this.settled; i < read; i += 1) this.lost.add(i);
    this.killed = true;
    this.tap.forget();
    this.counters = new Counters(log);
    this.receiver = new Receiver(this.packets, this.counters, silent);
    this.#wireUp();
    this.vring = this.#createVring(0);
  }

  async restart(): Promise<void> {
    const base = await this.vring.stop();
    this.look();
    expect(base).toBe((this.start + this.used) & 0xffff);
    this.vring = this.#createVring(base);
  }

  /** Takes what is in the used ring, and holds it against what was offered and what arrived. */
  look(): void {
    const published = (this.driver.usedIndex - this.start) & 0xffff;
    while (this.used < published) this.#lookAtOne(published);
  }

  #next(): { shape: Shape; length: number; content: Uint8Array } {
    const entry = this.driver.usedEntry(this.start + this.used);
    const buffer = this.offered[this.used];
    if (buffer === undefined) throw new Error(`buffer ${entry.id} came back, but none is offered`);
    expect(entry.id).toBe(buffer.head);
    this.used += 1;
    this.free.add(buffer.head);
    const area = 0x1_0000 + buffer.head * AREA;
    expect(entry.length).toBeLessThanOrEqual(capacityOf(buffer.shape));
    return { shape: buffer.shape, length: entry.length, content: ram.bytes.slice(area, area + entry.length) };
  }

  #isGood(one: Shape): boolean {
    return one.kind === 'good' && capacityOf(one) >= HEADER;
  }

  #lookAtOne(published: number): void {
    const at = this.used;
    const first = this.#next();
    if (!this.#isGood(first.shape)) {
      expect(first.length).toBe(0);
      return;
    }
    if (first.length === 0) {
      this.#expectInTheWay(at);
      return;
    }
    const { numBuffers, csumStart } = readNetHeader(first.content);
    expect(numBuffers).toBeGreaterThan(0);
    if (!this.mergeable) expect(numBuffers).toBe(1);
    const parts = [first];
    while (parts.length < numBuffers) {
      // All buffers of a packet are published at once.
      expect(this.used).toBeLessThan(published);
      parts.push(this.#next());
    }
    for (const part of parts) expect(this.#isGood(part.shape)).toBe(true);
    for (const part of parts.slice(0, -1)) expect(part.length).toBe(capacityOf(part.shape));
    const bytes = new Uint8Array(Buffer.concat(parts.map((part) => part.content)));
    this.#account(bytes, csumStart, at);
  }

  /** The packet must be the next one, or those before it must have been too large for what was offered, or lost. */
  #account(bytes: Uint8Array, number: number, at: number): void {
    for (; this.settled < number; this.settled += 1) {
      if (this.lost.has(this.settled)) continue;
      this.#expectTooLarge(this.arrived[this.settled] as Uint8Array, at);
      this.dropped += 1;
    }
    expect(this.settled).toBe(number);
    const expected = new Uint8Array(this.arrived[number] as Uint8Array);
    // num_buffers is written by the device.
    expected.set(bytes.subarray(10, 12), 10);
    if (Buffer.compare(bytes, expected) !== 0) throw new Error(`packet ${number} is not what arrived`);
    this.settled += 1;
    this.delivered += 1;
  }

  /** Buffer `at` came back empty: a packet did not fit into it and those up to one that is useless. */
  #expectInTheWay(at: number): void {
    expect(this.mergeable).toBe(true);
    let i = at;
    while (i < this.offered.length && this.#isGood((this.offered[i] as { shape: Shape }).shape)) i += 1;
    expect(i).toBeLessThan(Math.min(this.offered.length, at + SIZE));
  }

  /** A packet that was dropped when buffer `at` was the next one: all that the ring, or we, can hold is too little. */
  #expectTooLarge(packet: Uint8Array, at: number): void {
    let room = 0;
    let pieces = 0;
    for (let i = at; i < at + (this.mergeable ? SIZE : 1) && pieces < 1024; i += 1) {
      const buffer = this.offered[i];
      if (buffer === undefined) throw new Error('a packet was dropped, but a buffer could still come');
      if (!this.#isGood(buffer.shape)) throw new Error('a packet was dropped before a useless buffer');
      room += capacityOf(buffer.shape);
      pieces += buffer.shape.pieces.length;
    }
    if (pieces < 1024) expect(packet.length).toBeGreaterThan(room);
  }

  /** Everybody gets what is his: odd buffers are used up, then the last packet comes. */
  async finish(): Promise<void> {
    this.vring.enabled = true;
    const roomy: Shape = { pieces: [this.mergeable ? 5000 : AREA], kind: 'good' };
    for (let i = 0; this.settled < this.arrived.length || i === 0; i += 1) {
      if (i > 300) throw new Error(`packet ${this.settled} of ${this.arrived.length} does not come`);
      this.offer(Array<Shape>(SIZE).fill(roomy));
      this.settle();
      if (this.tap.waiting.length > 0) continue;
      // The header alone: the least buffer that is one can hold it.
      this.arrive([0]);
      this.settle();
    }
    expect(this.delivered + this.dropped + this.lost.size).toBe(this.arrived.length);
    if (!this.killed) expect(this.dropped).toBe(this.counters.oversized);
    await this.restart();
    expect(this.vring.inFlight).toBe(0);
  }
}

const run = async (world: World, op: Operation): Promise<void> => {
  switch (op.what) {
    case 'offer':
      return world.offer(op.shapes);
    case 'arrive':
      return world.arrive(op.lengths);
    case 'pass':
      world.tap.script.push(...op.reads);
      world.pass();
      return world.look();
    case 'settle':
      return world.settle();
    case 'restart':
      return world.restart();
    case 'disable':
      world.vring.enabled = false;
      return;
    case 'enable':
      world.vring.enabled = true;
      return;
    case 'kill':
      return world.kill(op.steps);
  }
};

describe.each([
  ['mergeable', true],
  ['single', false],
])('a receive ring of %s buffers', (_, mergeable) => {
  it('delivers what arrives, once and in order, whatever is done to it', async () => {
    const property = fc.asyncProperty(
      fc.constantFrom(0, 0x7ffe, 0xfff0),
      fc.array(operation, { minLength: 10, maxLength: 60 }),
      async (start, operations) => {
        const world = new World(mergeable, start);
        try {
          for (const op of operations) await run(world, op);
          await world.finish();
        } finally {
          world.driver.close();
        }
      },
    );

    await fc.assert(property, { numRuns: 600 });
  });
});
