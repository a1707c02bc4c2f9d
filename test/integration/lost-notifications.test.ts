/**
 * Two processes that try to sleep at the worst moment: the driver kicks only when it is asked to, and sleeps until the
 * call that it asked for. It runs without an event loop, so that both come to the same place tens of thousands of times a
 * second. A notification lost on either side stops the run. RINGSIDE_TEST_SEED repeats one.
 */

import { describe, expect, it } from 'vitest';
import { prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { pollReadable, takeEvent } from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import type { Suppression } from '../support/frontend/raw-virtqueue.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { Random, testSeed } from '../support/random.ts';

const SIZE = 64;
/** Requests in flight at most, of three descriptors each. */
const DEPTH = 16;
const RUN_MS = 500;
/** Nothing takes that long but a notification that does not come. */
const LOST_MS = 10_000;
/** Requests of a run at least: it goes on for longer where others have the processors. */
const LEAST = 500;
const LONGEST_RUN_MS = 20_000;

const { EVENT_IDX, IN_ORDER, RING_PACKED } = FEATURE;

const MODES: [string, Suppression, readonly number[]][] = [
  ['split, always told', 'none', []],
  ['split, told by flags', 'flags', []],
  ['split, told at an event', 'event', [EVENT_IDX]],
  ['packed, always told', 'none', [RING_PACKED]],
  ['packed, told by flags', 'flags', [RING_PACKED]],
  ['packed with EVENT_IDX, told by flags', 'flags', [RING_PACKED, EVENT_IDX]],
  ['packed, told at a descriptor', 'event', [RING_PACKED, EVENT_IDX]],
  ['split and in order, told at an event', 'event', [EVENT_IDX, IN_ORDER]],
  ['packed and in order, told at a descriptor', 'event', [RING_PACKED, EVENT_IDX, IN_ORDER]],
];
const EVENT_MODES = MODES.filter(([, suppression, bits]) => suppression === 'event' && !bits.includes(IN_ORDER));

/** A driver that is awake or asleep in the kernel, as its dice say. */
class Hammer {
  readonly #frontend: RawFrontend;
  readonly #random: Random;
  readonly #areas: readonly RequestArea[];
  /** Slots of requests that are not in flight. */
  readonly #free = Array.from({ length: DEPTH }, (_, i) => i);
  done = 0;
  kicks = 0;
  calls = 0;

  constructor(frontend: RawFrontend, random: Random) {
    this.#frontend = frontend;
    this.#random = random;
    this.#areas = this.#free.map((i) =>
      prepareRequest(frontend, { type: TYPE.IN, sector: 8 * i, inBytes: 4096 }, 3 * i, i),
    );
  }

  /** @throws Error - a notification or a request was lost; with all that both sides can see of it */
  run(runMs: number): void {
    const start = performance.now();
    const isOver = (now: number): boolean => now > start + (this.done > LEAST ? runMs : LONGEST_RUN_MS);
    const ring = this.#frontend.queue();
    const random = this.#random;
    ring.refuseCalls();
    while (!isOver(performance.now())) {
      // One at a time most often: both sides fall asleep after each.
      this.#submit(random.oneIn(2) ? 1 : random.between(1, DEPTH));
      if (random.oneIn(8)) this.#dawdle();
      while (this.#free.length < DEPTH && !random.oneIn(4)) {
        if (random.oneIn(2)) this.#dawdle();
        if (this.#harvest() === 0) this.#sleep();
      }
    }
    while (this.#free.length < DEPTH) if (this.#harvest() === 0) this.#sleep();
  }

  #submit(count: number): void {
    const ring = this.#frontend.queue();
    ring.publish(...this.#free.splice(0, count).map((slot) => 3 * slot));
    if (ring.notify()) this.kicks += 1;
  }

  /** Up to some 30 us: the other side falls asleep, or is just about to. */
  #dawdle(): void {
    for (let turns = this.#random.below(2000); turns > 0; turns -= 1) this.#frontend.queue().usedIndex;
  }

  #harvest(): number {
    const used = this.#frontend.queue().harvest();
    for (const { id, length } of used) {
      const status = this.#areas[id / 3]?.statusByte;
      if (length !== 4097 || status !== STATUS.OK) {
        throw new Error(`request ${id / 3} came back with ${length} bytes and status ${status}`);
      }
      this.#free.push(id / 3);
    }
    this.done += used.length;
    return used.length;
  }

  #sleep(): void {
    const ring = this.#frontend.queue();
    const inFlight = DEPTH - this.#free.length;
    ring.askForCall(this.#random.oneIn(3) ? this.#random.below(inFlight) : 0);
    if (ring.waiting === 0) {
      if (!pollReadable(ring.call, LOST_MS)) this.#complain(inFlight);
      this.calls += 1;
    }
    takeEvent(ring.call);
    ring.refuseCalls();
  }

  #complain(inFlight: number): never {
    const ring = this.#frontend.queue();
    const lost = ring.waiting > 0 ? 'a call was lost, it seems' : 'a kick was lost, it seems, or a request';
    const kicked = pollReadable(ring.kick, 0) ? 'a kick that nobody took' : 'no kick';
    throw new Error(
      `no call in ${LOST_MS} ms: ${lost}. ${ring.waiting} of ${inFlight} requests in flight are back; the kick ` +
        `descriptor holds ${kicked}; ${this.done} done, ${this.kicks} kicks, ${this.calls} calls. ${ring.describe()}`,
    );
  }
}

describe.each([
  ['a daemon that polls for as long as pays', [], MODES],
  ['a daemon that sleeps at once', ['--poll-us=0'], MODES],
  ['a daemon that never sleeps', ['--poll'], EVENT_MODES],
  ['the null engine', ['--engine=null', '--poll-us=0'], EVENT_MODES],
  ['the thread pool', ['--engine=threads', '--poll-us=0'], EVENT_MODES],
])(`%s loses no notification (seed ${testSeed})`, (title, extra, modes) => {
  const daemon = hostileDaemon({ extra }, { contentIsKept: !title.includes('null') });

  it.each(modes)('%s', async (_, suppression, features) => {
    const frontend = await daemon().start({ features, queueSize: SIZE });
    frontend.queue().suppression = suppression;
    const hammer = new Hammer(frontend, new Random(testSeed));

    hammer.run(RUN_MS);

    expect(hammer.done).toBeGreaterThan(LEAST);
    expect(await frontend.stopRing(frontend.queue())).toBe(frontend.queue().drainedBase);
  });
});
