/**
 * A driver sends packets in chains of any shape, with headers that lie, on a ring that is disabled at times and over a
 * link that is down at times; and plain lists say what must be written to the TAP, in what order, and what comes back.
 */

import fc from 'fast-check';
import { afterAll, expect, it } from 'vitest';
import type { RingAttachment } from '../../backends/core/device.ts';
import type { Logger } from '../../backends/core/logging.ts';
import { Vring, type VringHost } from '../../backends/core/vring.ts';
import { Counters } from '../../backends/net/counters.ts';
import type { Engine } from '../../backends/net/engines/engine.ts';
import { Packet, TRANSMIT } from '../../backends/net/packet.ts';
import { Transmitter } from '../../backends/net/transmit.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { checked, libc } from '../../protocol/sys/libc.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { createMemfd, truncate } from '../support/frontend/descriptors.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { netHeader, testFrame } from '../support/frontend/net-wire.ts';
import { INDIRECT, NEXT, RawRing, WRITE } from '../support/frontend/raw-ring.ts';

const SIZE = 16;
const LOT = 8;
const HEADER = 12;
const LARGEST = HEADER + 65_558;
const EINVAL = 22;
/** Memory of one packet, and of its indirect table. */
const AREA = 0x1_4000;
const TABLE = 0x4000;

const ram = new GuestRam(SIZE * (AREA + TABLE) + 0x1_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
const wire = createMemfd(LARGEST);
const scratch = allocatePinned(AREA);
const iovec = allocatePinned(16);
iovec.setU64(0, scratch.address);
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
    ringTraits: () => ({ offersBuffers: false, runsDisabled: true }),
    ringChanged: silent,
  } as unknown as RingAttachment,
  wake: silent,
  memoryFaulted: false,
  onMemoryFault: silent,
  requestTranslations: () => 0,
};

interface Shape {
  readonly bytes: number;
  /** Where the packet is cut, as parts of its length. */
  readonly cuts: readonly number[];
  readonly hdrLen: number;
  readonly kind: 'good' | 'writable' | 'unmapped' | 'loop';
}

type Operation =
  | { readonly what: 'send'; readonly shapes: readonly Shape[] }
  /** `results`: which writes the kernel refuses. */
  | { readonly what: 'pass'; readonly refused: readonly boolean[] }
  | { readonly what: 'enable'; readonly on: boolean }
  | { readonly what: 'link'; readonly on: boolean };

const shape: fc.Arbitrary<Shape> = fc.record({
  bytes: fc.oneof(
    { weight: 6, arbitrary: fc.integer({ min: 26, max: 1526 }) },
    { weight: 1, arbitrary: fc.nat(30) },
    { weight: 2, arbitrary: fc.integer({ min: 1527, max: LARGEST + 10 }) },
  ),
  cuts: fc.oneof(
    fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 5 }),
    fc.array(fc.double({ min: 0, max: 0.02, noNaN: true }), { maxLength: 12 }),
    fc.integer({ min: 60, max: 200 }).map((count) => Array.from({ length: count }, (_, i) => i / count)),
  ),
  hdrLen: fc.oneof(fc.constant(0), fc.constantFrom(1, 13, 14, 54, 0xffff), fc.nat(0xffff)),
  kind: fc.oneof(
    { weight: 10, arbitrary: fc.constant('good' as const) },
    { weight: 1, arbitrary: fc.constantFrom('writable' as const, 'unmapped' as const, 'loop' as const) },
  ),
});

const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      what: fc.constant('send' as const),
      shapes: fc.array(shape, { minLength: 1, maxLength: SIZE }),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      what: fc.constant('pass' as const),
      refused: fc.array(fc.boolean(), { maxLength: LOT }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ what: fc.constantFrom('enable' as const, 'link' as const), on: fc.boolean() }) },
);

/** Reads what is written, as the kernel does, and refuses what it is told to. */
class FakeTap implements Engine {
  readonly name = 'fake';
  readonly mustPoll = false;
  readonly written: Buffer[] = [];
  readonly refuse: boolean[] = [];
  refused = 0;
  readonly #submitted: Packet[] = [];
  complete: (packet: Packet) => void = () => undefined;

  submit(packet: Packet): void {
    this.#submitted.push(packet);
  }

  poll(): void {
    for (const packet of this.#submitted.splice(0)) {
      truncate(wire, 0);
      packet.result = checked(libc.pwritev2(wire.fd, packet.iovecAddress, packet.buffers, 0, 0), 'pwritev2');
      expect(packet.result).toBe(packet.bytes);
      this.written.push(this.#readBack(packet.result));
      if (this.refuse.shift() === true) {
        packet.result = -EINVAL;
        this.refused += 1;
      }
      this.complete(packet);
    }
  }

  #readBack(length: number): Buffer {
    iovec.setU64(8, length);
    checked(libc.preadv2(wire.fd, iovec.address, 1, 0, 0), 'preadv2');
    return Buffer.from(scratch.bytes.slice(0, length));
  }

  replaceQueues(): void {}

  close(): void {}
}

class World {
  readonly tap = new FakeTap();
  readonly counters = new Counters(log);
  readonly transmitter: Transmitter;
  readonly driver: RawRing;
  readonly vring = new Vring(1, host);
  hasLink = true;
  readonly free = new Set(Array.from({ length: SIZE }, (_, i) => i));
  readonly offered: { head: number; shape: Shape; packet: Buffer }[] = [];
  /** Heads that came back, and what had to be written by then. */
  used = 0;
  readonly expected: Buffer[] = [];
  taken = 0;
  readonly counts = { malformed: 0, discarded: 0, faults: 0 };

  constructor() {
    ram.bytes.fill(0, 0, 0x1_0000);
    this.driver = new RawRing(ram, 1, SIZE, 0x1000);
    const packets = Array.from({ length: LOT }, (_, id) => new Packet(id, TRANSMIT, 0));
    this.transmitter = new Transmitter(packets, this.counters, silent);
    this.tap.complete = (packet) => this.transmitter.complete(packet);
    const { table, avail, used } = this.driver;
    const addresses = { descriptor: ram.user(table), available: ram.user(avail), used: ram.user(used) };
    this.vring.start({ size: SIZE, base: 0, addresses, usedLog: undefined, inflight: undefined });
    this.vring.enabled = true;
  }

  send(shapes: readonly Shape[]): void {
    for (const one of shapes) {
      const [head] = this.free;
      if (head === undefined) return;
      this.free.delete(head);
      const frame = testFrame(this.offered.length, Math.max(18, one.bytes));
      const packet = Buffer.concat([netHeader({ hdrLen: one.hdrLen }), frame]).subarray(0, one.bytes);
      this.#lay(head, one, packet);
      this.offered.push({ head, shape: one, packet });
      this.driver.publish(head);
    }
  }

  #lay(head: number, { cuts, kind }: Shape, packet: Buffer): void {
    const area = 0x1_0000 + head * AREA;
    const table = 0x1_0000 + SIZE * AREA + head * TABLE;
    ram.bytes.set(packet, area);
    const ends = [...cuts.map((part) => Math.floor(part * packet.length)), packet.length].sort((a, b) => a - b);
    const base = kind === 'unmapped' ? 2 ** 40 : ram.guest(area);
    let at = 0;
    const chain = ends.map((end) => {
      const piece = { address: base + at, length: end - at, flags: kind === 'writable' ? WRITE : 0 };
      at = end;
      return piece;
    });
    this.driver.setChain(0, chain, table);
    if (kind === 'loop') this.driver.setDescriptor(0, { address: base, length: 1, flags: NEXT }, table);
    this.driver.setDescriptor(head, { address: ram.guest(table), length: 16 * chain.length, flags: INDIRECT });
  }

  pass(): number {
    const before = this.taken;
    this.taken += this.transmitter.run(this.vring, LOT, HEADER, 0, this.hasLink ? this.tap : undefined);
    for (let i = before; i < this.taken; i += 1) this.#expect(i);
    this.tap.poll();
    this.vring.flush(false);
    this.#look();
    return this.taken - before;
  }

  /** What had to become of packet `i`, which was taken now. */
  #expect(i: number): void {
    const { shape: one, packet } = this.offered[i] as World['offered'][number];
    const isFault = one.kind === 'loop' || (one.kind === 'unmapped' && packet.length > 0);
    const readable = one.kind === 'writable' ? 0 : packet.length;
    if (isFault) this.counts.faults += 1;
    else if (!this.hasLink || !this.vring.enabled) this.counts.discarded += 1;
    else if (readable < HEADER + 14 || readable > LARGEST) this.counts.malformed += 1;
    else {
      const written = Buffer.from(packet);
      const isGood = one.hdrLen === 0 || (one.hdrLen >= 14 && one.hdrLen <= packet.length - HEADER);
      if (!isGood) written.writeUInt16LE(0, 2);
      this.expected.push(written);
    }
  }

  #look(): void {
    expect(this.driver.usedIndex).toBe(this.taken & 0xffff);
    const heads = new Set<number>();
    for (; this.used < this.taken; this.used += 1) {
      const { id, length } = this.driver.usedEntry(this.used);
      expect(length).toBe(0);
      heads.add(id);
      this.free.add(id);
    }
    expect(this.tap.written).toHaveLength(this.expected.length);
    for (const [i, written] of this.tap.written.entries()) {
      if (Buffer.compare(written, this.expected[i] as Buffer) !== 0)
        throw new Error(`packet ${i} is not what was sent`);
    }
  }

  finish(): void {
    for (let i = 0; this.vring.offers(1); i += 1) {
      if (i > 100) throw new Error('the ring is not emptied');
      this.pass();
    }
    expect(this.vring.inFlight).toBe(0);
    expect(this.used).toBe(this.offered.length);
    const { malformed, discarded, transmitted } = this.counters;
    expect({ malformed, discarded, faults: this.vring.chainFaults }).toEqual(this.counts);
    expect(transmitted).toBe(this.expected.length - this.tap.refused);
  }
}

const run = (world: World, op: Operation): void => {
  if (op.what === 'send') world.send(op.shapes);
  else if (op.what === 'enable') world.vring.enabled = op.on;
  else if (op.what === 'link') world.hasLink = op.on;
  else {
    world.tap.refuse.splice(0, Number.POSITIVE_INFINITY, ...op.refused);
    world.pass();
  }
};

it('a transmit ring writes what is sent, once and in order, and gives every chain back', () => {
  const property = fc.property(fc.array(operation, { minLength: 5, maxLength: 40 }), (operations) => {
    const world = new World();
    try {
      for (const op of operations) run(world, op);
      world.finish();
    } finally {
      world.driver.close();
    }
  });

  fc.assert(property, { numRuns: 300 });
});
