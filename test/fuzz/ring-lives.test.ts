/**
 * The lives of two rings on one server, under everything a front end may do to them: drivers of either layout, in order or
 * not, with every kind of notification; rings stopped and started where they stood, disabled, reset; memory that is added,
 * cut in two and removed; connections that end, and daemons that are killed and leave their in-flight region behind. A
 * model that keeps plain lists says what is taken next, what came back, and that nobody sleeps over work.
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
import { createMemfd } from '../support/frontend/descriptors.ts';
import { RawPackedRing } from '../support/frontend/raw-packed-ring.ts';
import { RawRing } from '../support/frontend/raw-ring.ts';
import type { Suppression } from '../support/frontend/raw-virtqueue.ts';
import { Random, testSeed } from '../support/random.ts';
import { Lane, type Request } from './lives-lane.ts';
import {
  EVERYTHING,
  EXTRA,
  extra,
  hasRings,
  hostBytes,
  isShared,
  LANES,
  RINGS_AT,
  ram,
  SHARED_TABLES,
  type SharedTable,
} from './lives-memory.ts';
import { Killed, MemoryDevice, type Taken } from './memory-device.ts';

/** Runs of each kind, and steps of each: with 24 kinds, a million. */
const RUNS = 20;
const STEPS = 2100;
const TRACE = 40;

const inflightFile = createMemfd(0x1000);
const inflightMemory = new SharedMapping(inflightFile.fd, 0, 0x1000);
afterAll(() => {
  ram.close();
  extra.close();
  inflightMemory.retire();
  inflightFile.close();
});

const silent = (): void => undefined;
const log = { info: silent, warn: silent, error: silent } as unknown as Logger;

interface Kind {
  readonly packed: boolean;
  readonly inOrder: boolean;
  readonly suppression: Suppression;
  readonly offersBuffers: boolean;
}

class Run {
  readonly #kind: Kind;
  readonly #random: Random;
  readonly #lanes: readonly Lane[];
  readonly #memory = new GuestMemory();
  readonly #trace: string[] = [];
  #table = EVERYTHING;
  #device = new MemoryDevice(hostBytes, false);
  #server!: LocalRingServer;
  readonly #vrings: Vring[] = [];
  readonly #requests = new Map<Taken, Request>();
  #lastNumber = 0;
  #isAsleep = false;

  constructor(kind: Kind, seed: number) {
    const random = new Random(seed);
    this.#kind = kind;
    this.#random = random;
    ram.bytes.fill(0);
    const size = kind.packed ? random.pick([3, 5, 8, 13, 16]) : random.pick([4, 8, 16]);
    this.#lanes = RINGS_AT.map((at, index) => {
      const ring = new (kind.packed ? RawPackedRing : RawRing)(ram, index, size, at);
      ring.suppression = kind.suppression;
      return new Lane(index, ring, random, kind.inOrder);
    });
  }

  /** @throws Error - with the steps before */
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

  async #step(): Promise<void> {
    const dice = this.#random.below(100);
    const lane = this.#random.pick(this.#lanes);
    if (dice < 28) this.#offer(lane);
    else if (dice < 50) this.#pass();
    else if (dice < 66) this.#finishSome();
    else if (dice < 74) this.#flush(this.#random.oneIn(2));
    else if (dice < 86) this.#harvest(lane);
    else if (dice < 91) this.#wait(lane);
    else if (dice < 96) this.#sleep();
    else if (this.#random.oneIn(3)) await this.#control(lane);
  }

  #control(lane: Lane): Promise<void> {
    const dice = this.#random.below(9);
    if (dice < 2) return this.#restart(lane);
    if (dice < 3) return this.#enable(lane, !lane.isEnabled);
    if (dice < 6) return this.#changeMemory();
    if (dice < 7) return this.#reset();
    return dice < 8 ? this.#reconnect() : this.#kill();
  }

  // The driver.

  #offer(lane: Lane): void {
    const numbers = lane.offer(this.#lastNumber + 1);
    if (numbers.length === 0) return;
    this.#lastNumber += numbers.length;
    this.#note(`ring ${lane.index} offers ${numbers}`);
    if (lane.ring.kickIsWanted()) this.#wake();
    else if (this.#isAsleep && this.#mustServe(lane)) {
      throw new Error(`ring ${lane.index} sleeps, and the driver is not to kick`);
    }
  }

  #harvest(lane: Lane): void {
    this.#note(`ring ${lane.index} returned ${lane.harvest()}`);
    if (this.#random.oneIn(2)) return;
    lane.ring.refuseCalls();
    lane.isWaiting = false;
  }

  /** The driver goes to sleep until it is called, if there is nothing for it. */
  #wait(lane: Lane): void {
    this.#note(`ring ${lane.index} waits`);
    lane.ring.askForCall();
    lane.isWaiting = lane.ring.waiting === 0;
    lane.calls = 0;
  }

  // The device.

  /** Whether the device has to take what is in the ring: buffers it takes when it likes. */
  #mustServe(lane: Lane): boolean {
    return lane.isEnabled && hasRings(this.#table) && !this.#kind.offersBuffers;
  }

  #wake(): void {
    if (!this.#isAsleep) return;
    this.#isAsleep = false;
    for (const vring of this.#vrings) vring.disableKicks();
  }

  /** Takes some of each ring. Returns how many. */
  #pass(): number {
    let count = 0;
    for (const vring of this.#isAsleep ? [] : this.#vrings) {
      if (vring.runnable) count += this.#device.processQueue(vring, this.#random.between(1, 8));
    }
    return count;
  }

  readonly #onTake = (taken: Taken): void => {
    const { number, wrongByte } = taken;
    const lane = this.#lanes[taken.vring.index] as Lane;
    const next = lane.take(this.#table);
    this.#note(`ring ${lane.index} takes ${number}`);
    const expected = next?.isFault === true ? -1 : next?.number;
    if (number !== expected) throw new Error(`ring ${lane.index} takes ${number}, should take ${expected}`);
    if (wrongByte >= 0) throw new Error(`request ${number} has a wrong byte ${wrongByte}`);
    this.#requests.set(taken, next as Request);
  };

  readonly #sharedBytes = (guest: number, length: number): Uint8Array => {
    if (!isShared(this.#table, guest, length)) throw new Error(`0x${guest.toString(16)} is accessed and not shared`);
    return hostBytes(guest, length);
  };

  #finishSome(): void {
    const { taken } = this.#device;
    for (let count = this.#random.below(4); count > 0 && taken.length > 0; count -= 1) this.#finish();
    if (this.#kind.offersBuffers && this.#random.oneIn(2)) this.#giveBack();
  }

  /** Requests end in any order, buffers are filled in the order of their ring. */
  #finish(): void {
    const { taken } = this.#device;
    const any = this.#random.pick(taken);
    const one = this.#kind.offersBuffers ? (taken.find(({ vring }) => vring === any.vring) as Taken) : any;
    const lane = this.#lanes[one.vring.index] as Lane;
    this.#note(`ring ${lane.index} finishes ${this.#requests.get(one)?.number}`);
    lane.finish(this.#requests.get(one) as Request, this.#kind.inOrder);
    this.#requests.delete(one);
    this.#device.finish(one);
  }

  /** Buffers that are not needed go back to their ring, the last one first. */
  #giveBack(): void {
    const { taken } = this.#device;
    for (let count = this.#random.between(1, 4); count > 0 && taken.length > 0; count -= 1) {
      const last = taken.at(-1) as Taken;
      const request = this.#requests.get(last) as Request;
      this.#note(`ring ${last.vring.index} gets ${request.number} back`);
      (this.#lanes[last.vring.index] as Lane).giveBack(request);
      this.#requests.delete(last);
      this.#device.giveBack(last);
    }
  }

  #flush(mayHold: boolean): void {
    this.#note('flush');
    for (const vring of this.#vrings) vring.flush(mayHold);
    for (const lane of this.#lanes) {
      lane.shown.push(...lane.staged.splice(0));
      const { waiting } = lane.ring;
      if (waiting !== lane.shown.length) {
        throw new Error(`ring ${lane.index} shows ${waiting} used entries, ${lane.shown.length} are ready`);
      }
      if (!mayHold) this.#expectCalled(lane);
    }
  }

  #expectCalled(lane: Lane): void {
    if (!lane.isWaiting || lane.ring.waiting === 0) return;
    if (lane.calls === 0) throw new Error(`ring ${lane.index}: the driver sleeps, and was not called`);
    lane.isWaiting = false;
  }

  /** Nothing that can be done may be left when the device sleeps, and nobody else may sleep for it. */
  #sleep(): void {
    if (this.#isAsleep) return;
    const isSure = this.#random.oneIn(2);
    while (isSure && this.#pass() > 0);
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
      this.#expectCalled(lane);
      const left = lane.available.length + (isSure ? lane.resubmits.length : 0);
      if (left > 0 && this.#mustServe(lane)) throw new Error(`ring ${lane.index}: it sleeps over ${left} requests`);
    }
  }

  // The front end.

  /** Waits for the server, while the device and its driver go on. */
  async #settle(request: Promise<unknown>): Promise<void> {
    let isOver = false;
    const over = request.finally(() => {
      isOver = true;
    });
    for (let turns = 0; !isOver; turns += 1) {
      if (turns > 10_000) throw new Error('the server does not answer');
      if (this.#random.oneIn(2)) this.#goOn();
      // At every point at which the server waits itself, and now and then for a turn of the event loop.
      await (turns % 8 === 7 ? new Promise((resolve) => setImmediate(resolve)) : undefined);
    }
    await over;
  }

  #goOn(): void {
    this.#wake();
    this.#pass();
    if (this.#device.taken.length > 0) this.#finish();
    this.#flush(this.#random.oneIn(2));
  }

  #clearInflight(): void {
    new Uint8Array(inflightMemory.view(0, inflightMemory.length)).fill(0);
  }

  async #open(): Promise<void> {
    const { packed, inOrder, suppression, offersBuffers } = this.#kind;
    this.#device = new MemoryDevice(this.#sharedBytes, offersBuffers);
    this.#device.onTake = this.#onTake;
    this.#requests.clear();
    this.#vrings.length = 0;
    this.#isAsleep = false;
    const pump = {
      add: (vring: Vring) => {
        this.#vrings[vring.index] = vring;
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
    this.#server = new LocalRingServer(pump, this.#device, LANES, events, log);
    const eventIdx = suppression === 'event';
    await this.#server.setFeatures({ packed, inOrder, indirect: true, eventIdx, translated: false });
    await this.#share(hasRings(this.#table) ? this.#table : EVERYTHING);
    for (const lane of this.#lanes) {
      await this.#server.setSignal(lane.index, 'call', 'in-band');
      await this.#start(lane);
      await this.#enable(lane, !this.#random.oneIn(10));
    }
  }

  async #start({ index, ring, base }: Lane): Promise<void> {
    const { descriptor, available, used } = ring.addresses();
    const addresses = { descriptor: Number(descriptor), available: Number(available), used: Number(used) };
    const length = inflightQueueBytes(ring.size, this.#kind.packed);
    const region = inflightMemory.share();
    const inflight = { ...region, address: region.address + index * length, length };
    await this.#server.start(
      index,
      { size: ring.size, base, addresses, usedLog: undefined, inflight },
      undefined,
      false,
    );
  }

  async #enable(lane: Lane, isEnabled: boolean): Promise<void> {
    this.#note(`ring ${lane.index} enabled: ${isEnabled}`);
    await this.#server.enable(lane.index, isEnabled);
    lane.isEnabled = isEnabled;
  }

  async #share(table: SharedTable): Promise<void> {
    this.#note(`memory ${table.map(({ guestAddress, size }) => `${guestAddress.toString(16)}+${size.toString(16)}`)}`);
    this.#memory.clear();
    for (const region of table) this.#memory.add(region, region === EXTRA ? extra.fd : ram.fd);
    this.#table = table;
    await this.#server.setMemory(this.#memory.regions.map((region) => region.share()));
  }

  async #changeMemory(table: SharedTable = this.#random.pick(SHARED_TABLES)): Promise<void> {
    await this.#settle(this.#server.displaceAll());
    const { length } = this.#device.taken;
    if (length > 0) throw new Error(`${length} requests are in flight in memory that is taken away`);
    for (const lane of this.#lanes) lane.settle();
    await this.#server.setMemory([]);
    await this.#share(table);
    await this.#server.placeAll();
  }

  async #stop(lane: Lane): Promise<void> {
    const stopped = this.#server.stop(lane.index);
    await this.#settle(stopped);
    lane.settle();
    lane.base = await stopped;
    const { drainedBase } = lane.ring;
    if (lane.base !== drainedBase)
      throw new Error(`base of ring ${lane.index}: ${lane.base}, should be ${drainedBase}`);
  }

  async #restart(lane: Lane): Promise<void> {
    this.#note(`ring ${lane.index} restarts`);
    await this.#stop(lane);
    await this.#findRings();
    await this.#start(lane);
  }

  /** A ring can be started only where it is. */
  async #findRings(): Promise<void> {
    if (!hasRings(this.#table)) await this.#changeMemory(EVERYTHING);
  }

  async #reset(): Promise<void> {
    this.#note('reset');
    for (const lane of this.#lanes) await this.#stop(lane);
    await this.#findRings();
    this.#clearInflight();
    for (const lane of this.#lanes) {
      lane.reset();
      await this.#start(lane);
    }
  }

  /** The front end goes away in order, and comes again. */
  async #reconnect(): Promise<void> {
    this.#note('reconnects');
    await this.#close();
    if (this.#random.oneIn(2)) this.#clearInflight();
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
    for (const lane of this.#lanes) lane.lose();
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

const SUPPRESSIONS: readonly Suppression[] = ['none', 'flags', 'event'];
const KINDS = [false, true].flatMap((inOrder) =>
  [false, true].flatMap((offersBuffers) =>
    SUPPRESSIONS.map((suppression) => ({ inOrder, offersBuffers, suppression })),
  ),
);

describe.each([false, true])(`the lives of rings (packed %s; seed ${testSeed})`, (packed) => {
  it.each(KINDS)('in order $inOrder, of buffers $offersBuffers, told: $suppression', async (kind) => {
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
