/** One ring of `ring-lives.test.ts`: its driver, and the requests that a model knows to be where. */

import { ChainDriver } from '../support/frontend/chain-driver.ts';
import { INDIRECT, type RawDescriptor, type RawVirtqueue, WRITE } from '../support/frontend/raw-virtqueue.ts';
import type { Random } from '../support/random.ts';
import {
  hostBytes,
  isShared,
  LANES,
  RINGS_AT,
  ram,
  type SharedTable,
  TABLE_BYTES,
  TABLES_AT,
  TABLES_PER_LANE,
  zoneAt,
  zonesOf,
} from './lives-memory.ts';
import { patternByte } from './memory-device.ts';

const MAX_PIECES = 6;
const MAX_PIECE_BYTES = 24;
const UNWRITTEN = 0xee;

type Range = readonly [guest: number, length: number];

/** A request, from its offer to its return. */
export interface Request {
  readonly number: number;
  readonly id: number;
  readonly brought: readonly Range[];
  readonly wanted: readonly Range[];
  readonly zones: readonly number[];
  readonly table: number;
  isDone: boolean;
  /** What it wants was written, at least once. */
  isFilled: boolean;
  /** Its memory was not shared when it was taken. */
  isFault: boolean;
}

const sum = (ranges: readonly Range[]): number => ranges.reduce((bytes, [, length]) => bytes + length, 0);

export class Lane {
  readonly index: number;
  readonly driver: ChainDriver;
  readonly #random: Random;
  /** Zones and tables that no request uses. */
  readonly #zones: number[];
  readonly #tables: number[];
  /** What SET_VRING_BASE will say. */
  base: number;
  isEnabled = false;
  available: Request[] = [];
  /** In flight when the daemon was killed, and not taken again. */
  resubmits: Request[] = [];
  inFlight: Request[] = [];
  staged: Request[] = [];
  shown: Request[] = [];
  /** Those of `resubmits` that were taken again. */
  readonly old = new Set<Request>();
  /** The driver sleeps until it is called; calls since. */
  isWaiting = false;
  calls = 0;

  constructor(index: number, ring: RawVirtqueue, random: Random, inOrder: boolean) {
    this.index = index;
    this.driver = new ChainDriver(ring, random, inOrder);
    this.#random = random;
    this.#zones = zonesOf(index);
    this.#tables = Array.from({ length: TABLES_PER_LANE }, (_, i) => LANES * i + index);
    this.base = ring.initialBase;
  }

  get ring(): RawVirtqueue {
    return this.driver.ring;
  }

  /** Makes one to three requests available, as far as there is room; numbers them from `first` on. Returns the numbers. */
  offer(first: number): number[] {
    const chains: RawDescriptor[][] = [];
    const drafts: Omit<Request, 'id'>[] = [];
    let { room } = this.driver;
    for (let count = this.#random.between(1, 3); count > 0; count -= 1) {
      if (room === 0 || this.#zones.length < 2 || this.#tables.length === 0) break;
      const isIndirect = this.#random.oneIn(3);
      const draft = this.#draft(first + drafts.length, isIndirect ? MAX_PIECES : Math.min(room, MAX_PIECES));
      const chain = this.#chain(draft, isIndirect);
      room -= chain.length;
      chains.push(chain);
      drafts.push(draft);
    }
    if (drafts.length === 0) return [];
    const ids = this.driver.offer(chains);
    this.available.push(...drafts.map((draft, i) => ({ ...draft, id: ids[i] as number })));
    return drafts.map(({ number }) => number);
  }

  /** A number and a pattern to read, and room for a pattern to write, in up to `most` pieces. */
  #draft(number: number, most: number): Omit<Request, 'id'> {
    const pieces = this.#random.between(1, most);
    const writes = this.#random.below(pieces);
    const zones = [this.#zone()];
    const brought = this.#cut(zones[0] as number, pieces - writes, 4);
    let at = 0;
    for (const [guest, length] of brought) {
      const bytes = hostBytes(guest, length);
      for (let i = 0; i < length; i += 1, at += 1) {
        bytes[i] = at < 4 ? (number >>> (8 * at)) & 0xff : patternByte(number, at);
      }
    }
    if (writes > 0) zones.push(this.#zone());
    const wanted = writes > 0 ? this.#cut(zones[1] as number, writes, 1) : [];
    for (const [guest, length] of wanted) hostBytes(guest, length).fill(UNWRITTEN);
    const table = this.#tables.shift() as number;
    return { number, brought, wanted, zones, table, isDone: false, isFilled: false, isFault: false };
  }

  #chain({ brought, wanted, table }: Omit<Request, 'id'>, isIndirect: boolean): RawDescriptor[] {
    const chain = [
      ...brought.map(([address, length]) => ({ address, length })),
      ...wanted.map(([address, length]) => ({ address, length, flags: WRITE })),
    ];
    if (!isIndirect) return chain;
    const at = TABLES_AT + table * TABLE_BYTES;
    this.ring.setChain(0, chain, at);
    return [{ address: ram.guest(at), length: 16 * chain.length, flags: INDIRECT }];
  }

  #zone(): number {
    return this.#zones.splice(this.#random.below(this.#zones.length), 1)[0] as number;
  }

  /** Neighbouring pieces of a zone, the first of at least `least` bytes. */
  #cut(zone: number, count: number, least: number): Range[] {
    let at = zoneAt(zone);
    return Array.from({ length: count }, (_, i) => {
      const length = this.#random.between(i === 0 ? least : 1, MAX_PIECE_BYTES);
      at += length;
      return [at - length, length] as const;
    });
  }

  /** The request that must be taken next, now taken; undefined when there is none. */
  take(table: SharedTable): Request | undefined {
    const old = this.resubmits.shift();
    const next = old ?? (this.isEnabled ? this.available.shift() : undefined);
    if (next === undefined) return undefined;
    if (old !== undefined) this.old.add(old);
    next.isFault = [...next.brought, ...next.wanted].some(([guest, length]) => !isShared(table, guest, length));
    this.inFlight.push(next);
    return next;
  }

  /** The request that was taken last goes back to where it came from. */
  giveBack(request: Request): void {
    if (this.inFlight.pop() !== request) throw new Error(`request ${request.number} was not taken last`);
    if (this.old.delete(request)) this.resubmits.unshift(request);
    else this.available.unshift(request);
  }

  /** A request ended. What is to be returned now: itself, or in order all that ended and none before did not. */
  finish(request: Request, inOrder: boolean): void {
    request.isDone = true;
    request.isFilled ||= !request.isFault;
    const stop = inOrder ? this.inFlight.findIndex(({ isDone }) => !isDone) : 0;
    const ready = inOrder ? this.inFlight.slice(0, stop < 0 ? this.inFlight.length : stop) : [request];
    this.inFlight = this.inFlight.filter((other) => !ready.includes(other));
    for (const one of ready) this.old.delete(one);
    this.staged.push(...ready);
  }

  /** The daemon was killed: what was not returned will be done again, in the order in which it was taken. */
  lose(): void {
    const lost = [...this.inFlight, ...this.staged].sort((a, b) => a.number - b.number);
    for (const request of lost) request.isDone = false;
    this.resubmits.unshift(...lost);
    this.old.clear();
    this.inFlight = [];
    this.staged = [];
    // What a front end says as the base of a ring that it did not stop counts for nothing.
    this.base = this.#random.oneIn(2) ? this.ring.initialBase : this.ring.drainedBase;
  }

  /** Those that a killed daemon left and nobody took go back to the ring when it is let go of. */
  settle(): void {
    this.available.unshift(...this.resubmits.splice(0));
    this.old.clear();
  }

  /** Takes what was returned, and looks at it. @throws Error - something else was returned, or not what it should be */
  harvest(): number[] {
    const used = this.driver.harvest().map(({ id, length }) => `${id}/${length}`);
    const expected = this.shown.map(({ id, isFault, wanted }) => `${id}/${isFault ? 0 : sum(wanted)}`);
    if (String(used) !== String(expected)) throw new Error(`ring ${this.index} returned ${used}, not ${expected}`);
    for (const request of this.shown) this.#checkData(request);
    for (const request of this.shown) this.#free(request);
    return this.shown.splice(0).map(({ number }) => number);
  }

  #checkData({ number, wanted, isFilled }: Request): void {
    let at = 0;
    for (const [guest, length] of wanted) {
      const bytes = hostBytes(guest, length);
      for (let i = 0; i < length; i += 1, at += 1) {
        const expected = isFilled ? patternByte(number + 1, at) : UNWRITTEN;
        if (bytes[i] !== expected) throw new Error(`request ${number}: byte ${at} is ${bytes[i]}, not ${expected}`);
      }
    }
  }

  #free(request: Request): void {
    this.#zones.push(...request.zones);
    this.#tables.push(request.table);
  }

  /** The driver resets the device: the ring is as at its beginning, and every request is forgotten. */
  reset(): void {
    const all = [this.available, this.resubmits, this.inFlight, this.staged, this.shown];
    for (const list of all) for (const request of list.splice(0)) this.#free(request);
    this.old.clear();
    const at = RINGS_AT[this.index] as number;
    ram.bytes.fill(0, at, at + 0x1000);
    this.base = this.ring.initialBase;
    this.driver.reset(this.base);
    this.ring.seen = 0;
    this.isWaiting = false;
  }
}
