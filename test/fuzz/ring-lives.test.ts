/**
 * The lives of two rings on one server, under everything a front end may do to them: drivers of either layout, in order or
 * not, with every kind of notification; rings stopped and started where they stood, disabled, reset; memory that is added,
 * cut in two and removed; connections that end, and daemons that are killed and leave their in-flight region behind. A
 * model that keeps plain lists says what is taken next, what came back and that nobody sleeps over work.
 *
 * A failure says its seed; RINGSIDE_TEST_SEED begins with it.
 */

import { afterAll, describe, it } from 'vitest';
import type { Logger } from '../../backends/core/logging.ts';
import type { Pump } from '../../backends/core/pump.ts';
import { LocalRingServer } from '../../backends/core/ring-server.ts';
import type { Vring } from '../../backends/core/vring.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { SharedMapping } from '../../protocol/sys/mapping.ts';
import { inflightQueueBytes } from '../../protocol/vhost-user/inflight-layout.ts';
import { ChainDriver } from '../support/frontend/chain-driver.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { RawPackedRing } from '../support/frontend/raw-packed-ring.ts';
import { RawRing } from '../support/frontend/raw-ring.ts';
import { INDIRECT, type RawDescriptor, type Suppression, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { Random, testSeed } from '../support/random.ts';
import { Killed, MemoryDevice, patternByte, type Taken } from './memory-device.ts';

/** Runs per kind, and steps of each: with sixteen kinds, a million. */
const RUNS = 25;
const STEPS = 2500;
const TRACE = 40;
const LANES = 2;

// The memory: rings, indirect tables and buffers up to the middle; more buffers in the second half, and in another file.
const RINGS_AT = [0x1000, 0x2000];
const TABLES_AT = 0x4000;
const ZONES_AT = 0x6000;
const HALF = 0x8000;
const END = 0xa000;
const ZONE_BYTES = 512;
const TABLE_BYTES = 256;
const MAX_PIECES = 6;

const ram = new GuestRam(END);
const extra = new GuestRam(0x2000, 0x9000_0000, 0x7c00_0000_0000);
const inflightFile = createMemfd(0x1_0000);
const inflightMemory = new SharedMapping(inflightFile.fd, 0, 0x1_0000);
afterAll(() => {
  ram.close();
  extra.close();
  inflightMemory.retire();
  inflightFile.close();
});

const LOW = { guestAddress: ram.guest(0), userAddress: ram.user(0), size: HALF, mmapOffset: 0 };
const HIGH = { guestAddress: ram.guest(HALF), userAddress: ram.user(HALF), size: END - HALF, mmapOffset: HALF };
const WHOLE = { ...LOW, size: END };
const EXTRA = { guestAddress: extra.guest(0), userAddress: extra.user(0), size: extra.length, mmapOffset: 0 };
/** What a front end shares at one time. The last two are without the rings. */
const TABLES = [[WHOLE], [LOW, HIGH], [WHOLE, EXTRA], [LOW, HIGH, EXTRA], [LOW], [LOW, EXTRA], [EXTRA], [HIGH]];

const silent = (): void => undefined;
const log = { info: silent, warn: silent, error: silent } as unknown as Logger;

interface Kind {
  readonly packed: boolean;
  readonly inOrder: boolean;
  readonly suppression: Suppression;
  readonly offersBuffers: boolean;
}

interface Request {
  readonly number: number;
  readonly id: number;
  readonly zones: readonly number[];
  readonly table: number;
  readonly writable: readonly [number, number][];
  readonly ranges: readonly [number, number][];
  isDone: boolean;
  /** It could not be read: its memory was not shared. */
  isFault: boolean;
}

/** One ring: its driver, and what the model knows of it. */
class Lane {
  readonly index: number;
  readonly driver: ChainDriver;
  /** Zones and tables of this lane that no request uses. */
  readonly zones: number[];
  readonly tables: number[];
  base: number;
  isStarted = false;
  isEnabled = false;
  // Requests from their offer to their return.
  available: Request[] = [];
  resubmits: Request[] = [];
  inFlight: Request[] = [];
  staged: Request[] = [];
  shown: Request[] = [];
  /** The driver waits for a call; calls since. */
  isWaiting = false;
  calls = 0;

  constructor(index: number, driver: ChainDriver, zones: number) {
    this.index = index;
    this.driver = driver;
    const own = (_: unknown, i: number): number => LANES * i + index;
    this.zones = Array.from({ length: zones / LANES }, own);
    this.tables = Array.from({ length: 16 }, own);
    this.base = driver.ring.initialBase;
  }

  get ring() {
    return this.driver.ring;
  }

  forget(): void {
    for (const request of [...this.available, ...this.resubmits, ...this.inFlight, ...this.staged, ...this.shown]) {
      this.free(request);
    }
    this.available = [];
    this.resubmits = [];
    this.inFlight = [];
    this.staged = [];
    this.shown = [];
    this.isWaiting = false;
  }

  free(request: Request): void {
    this.zones.push(...request.zones);
    this.tables.push(request.table);
  }
}

const LOW_ZONES = (HALF - ZONES_AT) / ZONE_BYTES;
const ZONES = (END - ZONES_AT) / ZONE_BYTES + extra.length / ZONE_BYTES;

/** Guest address of a zone. The zone before the middle reaches over it when `over`. */
const zoneAt = (zone: number): number => {
  const inRam = (END - ZONES_AT) / ZONE_BYTES;
  return zone < inRam ? ram.guest(ZONES_AT + zone * ZONE_BYTES) : extra.guest((zone - inRam) * ZONE_BYTES);
};

const hostBytes = (guest: number, length: number): Uint8Array => {
  const { bytes, guestAddress } = guest >= extra.guestAddress ? extra : ram;
  return bytes.subarray(guest - guestAddress, guest - guestAddress + length);
};

class Run {
  readonly #kind: Kind;
  readonly #random: Random;
  readonly #size: number;
  readonly #lanes: Lane[];
  readonly #trace: string[] = [];
  #memory = new GuestMemory();
  #table = TABLES[0] as (typeof TABLES)[number];
  #device!: MemoryDevice;
  #server!: LocalRingServer;
  #vrings: Vring[] = [];
  #number = 0;
  #isAsleep = false;
  /** Requests may not be given back to the ring after one was pushed. */
  #mayGiveBack = 0;

  constructor(kind: Kind, seed: number) {
    const random = new Random(seed);
    this.#kind = kind;
    this.#random = random;
    this.#size = kind.packed ? random.pick([3, 5, 8, 13, 16]) : random.pick([4, 8, 16]);
    ram.bytes.fill(0);
    this.#lanes = RINGS_AT.map((at, index) => {
      const ring = new (kind.packed ? RawPackedRing : RawRing)(ram, index, this.#size, at);
      ring.suppression = kind.suppression;
      return new Lane(index, new ChainDriver(ring, random, kind.inOrder), ZONES);
    });
  }

  /** @throws Error - with the operations before */
  async go(): Promise<void> {
    try {
      this.#clearInflight();
      await this.#open();
      for (let i = 0; i < STEPS; i += 1) await this.#step();
      await this.#close();
    } catch (error) {
      const rings = this.#lanes.map(({ ring }) => ring.describe()).join('\n');
      const { message, stack } = error as Error;
      throw new Error(`${message}\n${rings}\nlast: ${this.#trace.slice(-TRACE).join('; ')}\n${stack}`);
    } finally {
      for (const { ring } of this.#lanes) ring.close();
      this.#memory.clear();
    }
  }

  #note(text: string): void {
    this.#trace.push(text);
    if (this.#trace.length > 4 * TRACE) this.#trace.splice(0, 3 * TRACE);
  }

  #check(what: string, actual: unknown, expected: unknown): void {
    if (String(actual) !== String(expected)) throw new Error(`${what}: ${actual}, should be ${expected}`);
  }

  async #step(): Promise<void> {
    const random = this.#random;
    const dice = random.below(100);
    const lane = random.pick(this.#lanes);
    if (dice < 28) this.#offer(lane);
    else if (dice < 50) this.#pass();
    else if (dice < 66) this.#finishSome();
    else if (dice < 74) this.#flush(random.oneIn(2));
    else if (dice < 86) this.#harvest(lane);
    else if (dice < 91) this.#wait(lane);
    else if (dice < 96) this.#sleep();
    else if (random.oneIn(3)) await this.#control(lane);
  }

  #control(lane: Lane): Promise<void> {
    const dice = this.#random.below(9);
    if (dice < 2) return this.#restart(lane);
    if (dice < 3) return this.#toggle(lane);
    if (dice < 6) return this.#changeMemory();
    if (dice < 7) return this.#reset();
    return dice < 8 ? this.#reconnect() : this.#kill();
  }

  // The driver.

  #offer(lane: Lane): void {
    const { driver, zones, tables } = lane;
    const chains: RawDescriptor[][] = [];
    const drafts: Omit<Request, 'id'>[] = [];
    let { room } = driver;
    for (let count = this.#random.between(1, 3); count > 0 && zones.length > 1 && tables.length > 0; count -= 1) {
      const isIndirect = this.#random.oneIn(3);
      if (room < 1) break;
      const { chain, draft } = this.#request(lane, isIndirect ? MAX_PIECES : Math.min(room, MAX_PIECES));
      if (isIndirect) driver.ring.setChain(0, chain, TABLES_AT + draft.table * TABLE_BYTES);
      const address = ram.guest(TABLES_AT + draft.table * TABLE_BYTES);
      chains.push(isIndirect ? [{ address, length: 16 * chain.length, flags: INDIRECT }] : chain);
      room -= isIndirect ? 1 : chain.length;
      drafts.push(draft);
    }
    if (chains.length === 0) return;
    const ids = driver.offer(chains);
    lane.available.push(...drafts.map((draft, i) => ({ ...draft, id: ids[i] as number })));
    this.#note(`ring ${lane.index} offers ${drafts.map(({ number }) => number)}`);
    const wanted = lane.ring.kickIsWanted();
    const vring = this.#vrings[lane.index] as Vring;
    if (wanted) this.#wake();
    else if (this.#isAsleep && vring.runnable && !this.#kind.offersBuffers) {
      throw new Error(`ring ${lane.index} sleeps, and the driver is not to kick`);
    }
  }

  /** A number and a pattern to read, and room for a pattern to write, in up to `most` pieces. */
  #request(lane: Lane, most: number): { chain: RawDescriptor[]; draft: Omit<Request, 'id'> } {
    const random = this.#random;
    this.#number += 1;
    const number = this.#number;
    const readable = zoneAt(this.#zone(lane));
    const readableZone = this.#lastZone;
    const pieces = random.between(1, most);
    const writes = pieces > 1 ? random.between(0, pieces - 1) : 0;
    const brought = this.#cut(readable, pieces - writes, 4);
    const all = brought.reduce((sum, [, length]) => sum + length, 0);
    const bytes = hostBytes(readable, all);
    for (let i = 0; i < all; i += 1) bytes[i] = i < 4 ? (number >>> (8 * i)) & 0xff : patternByte(number, i);
    const zones = [readableZone];
    let wanted: [number, number][] = [];
    if (writes > 0) {
      const writable = zoneAt(this.#zone(lane));
      zones.push(this.#lastZone);
      hostBytes(writable, ZONE_BYTES).fill(0xee);
      wanted = this.#cut(writable, writes, 1);
    }
    const chain = [
      ...brought.map(([address, length]) => ({ address, length })),
      ...wanted.map(([address, length]) => ({ address, length, flags: WRITE })),
    ];
    const table = lane.tables.shift() as number;
    return {
      chain,
      draft: { number, zones, table, writable: wanted, ranges: [...brought, ...wanted], isDone: false, isFault: false },
    };
  }

  #lastZone = 0;

  #zone(lane: Lane): number {
    this.#lastZone = lane.zones.splice(this.#random.below(lane.zones.length), 1)[0] as number;
    return this.#lastZone;
  }

  /** A few neighbouring pieces, the first of at least `least` bytes. */
  #cut(start: number, count: number, least: number): [number, number][] {
    let at = start;
    return Array.from({ length: count }, (_, i) => {
      const length = this.#random.between(i === 0 ? least : 1, 24);
      at += length;
      return [at - length, length];
    });
  }

  #harvest(lane: Lane): void {
    const used = lane.driver.harvest();
    this.#note(`ring ${lane.index} returned ${lane.shown.map(({ number }) => number)}`);
    this.#check(
      'returned',
      used.map(({ id, length }) => `${id}/${length}`),
      lane.shown.map((one) => `${one.id}/${one.isFault ? 0 : one.writable.reduce((sum, [, n]) => sum + n, 0)}`),
    );
    for (const request of lane.shown) this.#checkData(request);
    for (const request of lane.shown) lane.free(request);
    lane.shown = [];
    if (this.#kind.suppression !== 'none' && this.#random.oneIn(2)) {
      lane.ring.refuseCalls();
      if (this.#kind.suppression === 'flags' || this.#kind.packed) lane.isWaiting = false;
    }
  }

  #checkData({ number, writable, isFault }: Request): void {
    let done = 0;
    for (const [guest, length] of writable) {
      const bytes = hostBytes(guest, length);
      for (let i = 0; i < length; i += 1) {
        const expected = isFault ? 0xee : patternByte(number + 1, done + i);
        if (bytes[i] !== expected)
          throw new Error(`request ${number}: byte ${done + i} is ${bytes[i]}, not ${expected}`);
      }
      done += length;
    }
  }

  /** The driver goes to sleep until it is called, if there is nothing for it. */
  #wait(lane: Lane): void {
    lane.ring.askForCall();
    lane.isWaiting = lane.ring.waiting === 0;
    lane.calls = 0;
    this.#note(`ring ${lane.index} waits`);
  }

  // The device.

  #wake(): void {
    if (!this.#isAsleep) return;
    this.#isAsleep = false;
    for (const vring of this.#vrings) vring.disableKicks();
  }

  #pass(): void {
    if (this.#isAsleep) return;
    for (const vring of this.#vrings) {
      if (vring.runnable) this.#device.processQueue(vring, this.#random.between(1, 8));
    }
    // What was not taken from a ring of requests has to be there no more.
    if (this.#random.oneIn(4)) this.#flush(true);
  }

  #onTake({ vring, number }: Taken): void {
    const lane = this.#lanes[vring.index] as Lane;
    const next = lane.resubmits.shift() ?? (lane.isEnabled ? lane.available.shift() : undefined);
    if (next === undefined) throw new Error(`ring ${vring.index}: request ${number} was taken, there is none to take`);
    this.#note(`ring ${vring.index} takes ${number}`);
    next.isFault = next.ranges.some(([guest, length]) => !this.#isShared(guest, length));
    this.#check(`ring ${vring.index} takes`, number, next.isFault ? -1 : next.number);
    lane.inFlight.push(next);
    this.#mayGiveBack += 1;
  }

  #isShared(guest: number, length: number): boolean {
    for (let at = guest; at < guest + length; ) {
      const region = this.#table.find(({ guestAddress, size }) => at >= guestAddress && at < guestAddress + size);
      if (region === undefined) return false;
      at = region.guestAddress + region.size;
    }
    return true;
  }

  readonly #sharedBytes = (guest: number, length: number): Uint8Array => {
    if (!this.#isShared(guest, length)) throw new Error(`0x${guest.toString(16)} is accessed and not shared`);
    return hostBytes(guest, length);
  };

  #finishSome(): void {
    const { taken } = this.#device;
    if (this.#kind.offersBuffers && this.#mayGiveBack > 0 && this.#random.oneIn(2)) this.#giveBack();
    for (let count = this.#random.below(4); count > 0 && taken.length > 0; count -= 1) {
      this.#finish(this.#random.pick(taken));
    }
  }

  #finish(request: Taken): void {
    const lane = this.#lanes[request.vring.index] as Lane;
    const one = this.#inFlight(lane, request);
    this.#note(`ring ${lane.index} finishes ${one.number}`);
    one.isDone = true;
    this.#mayGiveBack = 0;
    this.#device.finish(request);
    const done = (this.#kind.inOrder ? lane.inFlight[0]?.isDone : true) ? this.#ready(lane, one) : [];
    lane.inFlight = lane.inFlight.filter((other) => !done.includes(other));
    lane.staged.push(...done);
  }

  /** What goes back now that `one` is done: itself, or in order all that waited for it. */
  #ready(lane: Lane, one: Request): Request[] {
    if (!this.#kind.inOrder) return [one];
    const stop = lane.inFlight.findIndex(({ isDone }) => !isDone);
    return lane.inFlight.slice(0, stop < 0 ? lane.inFlight.length : stop);
  }

  #inFlight(lane: Lane, { number, head }: Taken): Request {
    const heads = this.#heads.get(lane.index)?.get(head);
    const one = lane.inFlight.find((request) => (number < 0 ? request === heads : request.number === number));
    if (one === undefined) throw new Error(`ring ${lane.index}: request ${number} is not in flight`);
    return one;
  }

  /** Requests by ring and token, for those whose number could not be read. */
  readonly #heads = new Map<number, Map<number, Request>>();

  /** Buffers that are not needed go back to their ring, the last one first. */
  #giveBack(): void {
    for (let count = this.#random.between(1, this.#mayGiveBack); count > 0; count -= 1) {
      const last = this.#device.taken.at(-1);
      if (last === undefined) return;
      const lane = this.#lanes[last.vring.index] as Lane;
      const one = this.#inFlight(lane, last);
      if (lane.inFlight.at(-1) !== one) return;
      this.#note(`ring ${lane.index} gets ${one.number} back`);
      lane.inFlight.pop();
      const wasResubmit = lane.available[0] === undefined || lane.resubmits.length > 0 || this.#isOld(lane, one);
      if (wasResubmit && this.#isOld(lane, one)) lane.resubmits.unshift(one);
      else lane.available.unshift(one);
      this.#mayGiveBack -= 1;
      this.#device.giveBack(last);
    }
  }

  /** Numbers up to which requests were fetched by an earlier daemon, by ring. */
  readonly #oldest = [0, 0];

  #isOld(lane: Lane, { number }: Request): boolean {
    return number <= (this.#oldest[lane.index] as number);
  }

  #flush(mayHold: boolean): void {
    this.#note('flush');
    this.#mayGiveBack = 0;
    for (const vring of this.#vrings) vring.flush(mayHold);
    for (const lane of this.#lanes) {
      lane.shown.push(...lane.staged.splice(0));
      if (!mayHold) this.#expectCalled(lane);
      if (this.#ringIsThere) this.#check(`ring ${lane.index} shows`, lane.ring.waiting, lane.shown.length);
    }
  }

  get #ringIsThere(): boolean {
    return true;
  }

  #expectCalled(lane: Lane): void {
    if (!lane.isWaiting || lane.ring.waiting === 0) return;
    if (lane.calls === 0) throw new Error(`ring ${lane.index}: the driver sleeps, and was not called`);
    lane.isWaiting = false;
  }

  /** Everything was looked at: nothing may be left when the device sleeps. */
  #sleep(): void {
    if (this.#isAsleep) return;
    this.#flush(true);
    let more = false;
    for (const vring of this.#vrings) more = vring.enableKicks() || more;
    if (more) {
      for (const vring of this.#vrings) vring.disableKicks();
      return;
    }
    this.#note('sleeps');
    this.#isAsleep = true;
    for (const vring of this.#vrings) vring.tell();
    for (const lane of this.#lanes) {
      const vring = this.#vrings[lane.index] as Vring;
      this.#expectCalled(lane);
      if (vring.runnable && !this.#kind.offersBuffers && lane.isEnabled && lane.available.length > 0) {
        throw new Error(`ring ${lane.index}: the device sleeps over ${lane.available.length} requests`);
      }
    }
  }

  // The front end.

  /** Waits for a request to the server, while the device goes on. */
  async #settle(request: Promise<unknown>): Promise<void> {
    let isOver = false;
    const over = request.finally(() => {
      isOver = true;
    });
    for (let turns = 0; !isOver; turns += 1) {
      if (turns > 10_000) throw new Error('the server does not answer');
      for (const vring of this.#vrings) if (vring.runnable) this.#device.processQueue(vring, 4);
      if (this.#device.taken.length > 0) this.#finish(this.#random.pick(this.#device.taken));
      this.#flush(this.#random.oneIn(2));
      if (turns % 8 === 7) await new Promise((resolve) => setImmediate(resolve));
      else await undefined;
    }
    await over;
  }

  #clearInflight(): void {
    new Uint8Array(inflightMemory.view(0, inflightMemory.length)).fill(0);
  }

  async #open(): Promise<void> {
    const { packed, inOrder, suppression, offersBuffers } = this.#kind;
    this.#device = new MemoryDevice(this.#sharedBytes, offersBuffers);
    this.#device.onTake = (request) => {
      this.#onTake(request);
      const lane = this.#lanes[request.vring.index] as Lane;
      const heads = this.#heads.get(lane.index) ?? new Map<number, Request>();
      this.#heads.set(lane.index, heads.set(request.head, lane.inFlight.at(-1) as Request));
    };
    const vrings: Vring[] = [];
    const pump = {
      add: (vring: Vring) => {
        vrings[vring.index] = vring;
      },
      remove: silent,
      wake: () => this.#wake(),
    } as unknown as Pump;
    const events = {
      onMemoryFault: silent,
      onMissing: silent,
      onSignal: (index: number) => {
        (this.#lanes[index] as Lane).calls += 1;
      },
    };
    this.#isAsleep = false;
    const server = new LocalRingServer(pump, this.#device, LANES, events, log);
    this.#server = server;
    await server.setFeatures({ packed, inOrder, indirect: true, eventIdx: suppression === 'event', translated: false });
    await this.#share(this.#table.includes(LOW) || this.#table.includes(WHOLE) ? this.#table : [WHOLE, EXTRA]);
    this.#vrings = vrings;
    for (const lane of this.#lanes) {
      await server.setSignal(lane.index, 'call', 'in-band');
      await this.#start(lane);
      await this.#enable(lane, !this.#random.oneIn(10));
    }
  }

  async #start(lane: Lane): Promise<void> {
    const { descriptor, available, used } = lane.ring.addresses();
    const { size } = lane.ring;
    const bytes = inflightQueueBytes(16, this.#kind.packed);
    const { address, faultSlot } = inflightMemory.share();
    await this.#server.start(
      lane.index,
      {
        size,
        base: lane.base,
        addresses: { descriptor: Number(descriptor), available: Number(available), used: Number(used) },
        usedLog: undefined,
        inflight: {
          address: address + lane.index * bytes,
          length: inflightQueueBytes(size, this.#kind.packed),
          faultSlot,
        },
      },
      undefined,
      false,
    );
    lane.isStarted = true;
    this.#wake();
  }

  async #enable(lane: Lane, isEnabled: boolean): Promise<void> {
    await this.#server.enable(lane.index, isEnabled);
    lane.isEnabled = isEnabled;
  }

  async #toggle(lane: Lane): Promise<void> {
    this.#note(`ring ${lane.index} enabled: ${!lane.isEnabled}`);
    await this.#enable(lane, !lane.isEnabled);
  }

  async #share(table: (typeof TABLES)[number]): Promise<void> {
    this.#memory.clear();
    for (const region of table) this.#memory.add(region, region === EXTRA ? extra.fd : ram.fd);
    this.#table = table;
    await this.#server.setMemory(this.#memory.share());
  }

  async #changeMemory(): Promise<void> {
    const table = this.#random.pick(TABLES);
    this.#note(`memory ${table.map(({ guestAddress, size }) => `${guestAddress.toString(16)}+${size.toString(16)}`)}`);
    await this.#settle(this.#server.displaceAll());
    this.#check('requests in flight without memory', this.#device.taken.length, 0);
    this.#forgetResubmits();
    await this.#server.setMemory([]);
    await this.#share(table);
    await this.#server.placeAll();
    this.#wake();
  }

  /** Buffers that nobody filled went back to the ring when it was drained. */
  #forgetResubmits(): void {
    for (const lane of this.#lanes) this.#forgetResubmitsOf(lane);
  }

  #forgetResubmitsOf(lane: Lane): void {
    lane.available.unshift(...lane.resubmits.splice(0));
    this.#oldest[lane.index] = 0;
  }

  async #stop(lane: Lane): Promise<void> {
    const stopped = this.#server.stop(lane.index);
    await this.#settle(stopped);
    this.#forgetResubmitsOf(lane);
    lane.isStarted = false;
    lane.base = await stopped;
    this.#check(`base of ring ${lane.index}`, lane.base, lane.ring.drainedBase);
  }

  async #restart(lane: Lane): Promise<void> {
    this.#note(`ring ${lane.index} restarts`);
    await this.#stop(lane);
    await this.#returnToMemory();
    await this.#start(lane);
  }

  /** A ring can be started only where it is. */
  async #returnToMemory(): Promise<void> {
    if (this.#table.includes(LOW) || this.#table.includes(WHOLE)) return;
    await this.#settle(this.#server.displaceAll());
    this.#forgetResubmits();
    await this.#share([WHOLE]);
    await this.#server.placeAll();
  }

  /** The driver resets the device and forgets what it offered. */
  async #reset(): Promise<void> {
    this.#note('reset');
    for (const lane of this.#lanes) await this.#stop(lane);
    await this.#returnToMemory();
    this.#clearInflight();
    for (const lane of this.#lanes) {
      lane.forget();
      ram.bytes.fill(0, RINGS_AT[lane.index], (RINGS_AT[lane.index] as number) + 0x1000);
      lane.driver.reset(lane.ring.initialBase);
      lane.ring.seen = 0;
      lane.base = lane.ring.initialBase;
      await this.#start(lane);
    }
  }

  /** The front end goes away in order, and comes again. */
  async #reconnect(): Promise<void> {
    this.#note('reconnects');
    await this.#close();
    this.#clearInflight();
    await this.#open();
  }

  async #close(): Promise<void> {
    for (const lane of this.#lanes) await this.#stop(lane);
    await this.#settle(this.#server.close());
  }

  /** The daemon dies, perhaps while it takes requests; the next one finds the in-flight region. */
  async #kill(): Promise<void> {
    if (this.#random.oneIn(2)) this.#dieInAPass();
    this.#note('killed');
    for (const lane of this.#lanes) {
      const lost = [...lane.inFlight, ...lane.staged].sort((a, b) => a.number - b.number);
      lane.resubmits.unshift(...lost);
      this.#oldest[lane.index] = lane.resubmits.at(-1)?.number ?? 0;
      lane.inFlight = [];
      lane.staged = [];
      for (const request of lost) request.isDone = false;
      // What a front end says as the base of a ring that it did not stop counts for nothing.
      lane.base = this.#random.oneIn(2) ? lane.ring.initialBase : lane.ring.drainedBase;
    }
    await this.#open();
  }

  #dieInAPass(): void {
    this.#device.fuse = this.#random.between(1, 6);
    this.#wake();
    try {
      for (let i = 0; i < 4; i += 1) {
        this.#pass();
        this.#finishSome();
      }
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
    }
  }
}

const SUPPRESSIONS: Suppression[] = ['none', 'flags', 'event'];

describe.each([false, true])(`the lives of rings (packed %s; seed ${testSeed})`, (packed) => {
  it.each(
    [false, true].flatMap((inOrder) =>
      [false, true].flatMap((offersBuffers) =>
        SUPPRESSIONS.map((suppression) => ({ inOrder, offersBuffers, suppression })),
      ),
    ),
  )('in order $inOrder, of buffers $offersBuffers, told: $suppression', async (kind) => {
    for (let run = 0; run < RUNS; run += 1) {
      const seed = testSeed + run;
      try {
        await new Run({ packed, ...kind }, seed).go();
      } catch (error) {
        throw new Error(`RINGSIDE_TEST_SEED=${seed}: ${(error as Error).message}`);
      }
    }
  });
});
