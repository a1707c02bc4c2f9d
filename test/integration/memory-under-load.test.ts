/**
 * Memory that a front end changes while requests are in flight: the whole table, one region become two, a region that comes
 * and goes, the one with the rings in it. Every request comes back once; nothing is accessed that was removed.
 * Source: vhost-user, Memory access.
 */

import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { RINGS } from '../support/frontend/chain-probe.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { DEADLINE_MS } from '../support/frontend/raw-connection.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { memoryTable, PROTOCOL, type RawRegion, REQUEST, singleRegion } from '../support/frontend/wire.ts';
import { Random, testSeed } from '../support/random.ts';

const SLOTS = 12;
const BYTES = 16384;
const ROUNDS = 20;
const UNTOUCHED = 0xdd;

const daemon = hostileDaemon();
const extra = new GuestRam(SLOTS * BYTES, 0x9000_0000, 0x7c00_0000_0000);
const EXTRA: RawRegion = extra.region();
afterAll(() => extra.close());

/** A driver that keeps reads in flight, into the front end's own memory and into a region that comes and goes. */
class ReadLoad {
  readonly #frontend: RawFrontend;
  readonly #random = new Random(testSeed);
  readonly #image: Buffer;
  readonly #free = Array.from({ length: SLOTS }, (_, i) => i);
  readonly #inFlight = new Map<number, { readonly sector: number; readonly isExtra: boolean }>();
  /** Whether reads may go to the other region. */
  useExtra = false;
  done = 0;

  constructor(frontend: RawFrontend, image: string) {
    this.#frontend = frontend;
    this.#image = readFileSync(image);
  }

  #submit(): void {
    const ring = this.#frontend.queue();
    for (let slot = this.#free.shift(); slot !== undefined; slot = this.#free.shift()) {
      const sector = this.#random.below(this.#image.length / 512 - BYTES / 512);
      const isExtra = this.useExtra && this.#random.oneIn(2);
      const area = new RequestArea(this.#frontend, slot);
      area.putHeader(TYPE.IN, sector);
      if (isExtra) extra.bytes.fill(UNTOUCHED, slot * BYTES, (slot + 1) * BYTES);
      const inExtra = { address: extra.guest(slot * BYTES), length: BYTES, flags: WRITE };
      const data = isExtra ? inExtra : area.dataDescriptor(BYTES, WRITE);
      ring.setChain(3 * slot, [area.headerDescriptor(), data, area.statusDescriptor()]);
      this.#inFlight.set(slot, { sector, isExtra });
      ring.publish(3 * slot);
    }
    ring.notify();
  }

  #harvest(): void {
    for (const { id } of this.#frontend.queue().harvest()) {
      this.#checkRead(id / 3);
      this.#free.push(id / 3);
      this.done += 1;
    }
  }

  /** @throws Error - a read that came back twice, failed, or brought something else */
  #checkRead(slot: number): void {
    const read = this.#inFlight.get(slot);
    if (read === undefined) throw new Error(`read ${slot} came back and is not in flight`);
    this.#inFlight.delete(slot);
    const { statusByte, data } = new RequestArea(this.#frontend, slot);
    const got = read.isExtra
      ? extra.bytes.subarray(slot * BYTES, (slot + 1) * BYTES)
      : this.#frontend.ram.bytes.subarray(data, data + BYTES);
    if (read.isExtra && statusByte === STATUS.IOERR) {
      // It was taken when the region was not there: then nobody wrote to it.
      if (got.some((byte) => byte !== UNTOUCHED)) throw new Error(`read ${slot} failed and wrote all the same`);
      return;
    }
    if (statusByte !== STATUS.OK) throw new Error(`read ${slot} has status ${statusByte}`);
    const expected = this.#image.subarray(read.sector * 512, read.sector * 512 + BYTES);
    if (Buffer.compare(got, expected) !== 0) throw new Error(`read ${slot} brought something else`);
  }

  /** Goes on until `change` is done, and a little longer. */
  async during(change: Promise<void>): Promise<void> {
    let isOver = false;
    const over = change.finally(() => {
      isOver = true;
    });
    const until = this.done + SLOTS;
    await this.#poll(
      () => isOver && this.done >= until,
      () => this.#submit(),
    );
    await over;
  }

  drain(): Promise<void> {
    return this.#poll(
      () => this.#inFlight.size === 0,
      () => undefined,
    );
  }

  async #poll(isOver: () => boolean, act: () => void): Promise<void> {
    const end = performance.now() + DEADLINE_MS;
    while (!isOver()) {
      act();
      await new Promise((resolve) => setImmediate(resolve));
      this.#harvest();
      if (performance.now() > end) {
        throw new Error(`${this.done} done, ${this.#inFlight.size} in flight: ${this.#frontend.queue().describe()}`);
      }
    }
  }
}

/** The region of a front end as two, cut behind its rings and in the middle of its requests. */
const inTwo = ({ ram, dataStart }: RawFrontend): RawRegion[] => {
  const at = (dataStart + 0x2_8000) & ~0xfff;
  return [
    { ...ram.region(), size: at },
    { guestAddress: ram.guest(at), size: ram.length - at, userAddress: ram.user(at), mmapOffset: at },
  ];
};

describe.each(RINGS)('while a %s ring is under load', (_, features) => {
  const start = async (): Promise<{ frontend: RawFrontend; load: ReadLoad }> => {
    const protocolFeatures = [PROTOCOL.CONFIGURE_MEM_SLOTS];
    const frontend = await daemon().start({ features, protocolFeatures });
    return { frontend, load: new ReadLoad(frontend, daemon().image) };
  };

  it('its whole table may be replaced, again and again', async () => {
    const { frontend, load } = await start();
    const { ram } = frontend;
    const tables = [[ram.region()], inTwo(frontend), [EXTRA, ram.region()], [...inTwo(frontend), EXTRA]];

    for (let round = 0; round < ROUNDS; round += 1) {
      const table = tables[round % tables.length] as RawRegion[];
      load.useExtra = table.includes(EXTRA);
      const fds = table.map((region) => (region === EXTRA ? extra.fd : ram.fd));
      await load.during(frontend.require(REQUEST.SET_MEM_TABLE, memoryTable(table), fds));
    }
    await load.drain();

    expect(load.done).toBeGreaterThanOrEqual(ROUNDS * SLOTS);
    expect(await frontend.stopRing(frontend.queue())).toBe(frontend.queue().drainedBase);
  });

  it('a region may be removed with requests in it: they were finished or not begun', async () => {
    const { frontend, load } = await start();

    for (let round = 0; round < ROUNDS; round += 1) {
      await load.during(frontend.require(REQUEST.ADD_MEM_REG, singleRegion(EXTRA), [extra.fd]));
      load.useExtra = true;
      await load.during(frontend.require(REQUEST.REM_MEM_REG, singleRegion(EXTRA)));
      load.useExtra = false;
      await load.drain();
      // It is the front end's alone now.
      extra.bytes.fill(UNTOUCHED);
      await load.during(Promise.resolve());
      expect(extra.bytes.every((byte) => byte === UNTOUCHED)).toBe(true);
    }
  });

  it('the region with the ring in it may be removed and brought back: what was not begun waits', async () => {
    const { frontend, load } = await start();
    const { ram } = frontend;

    for (let round = 0; round < ROUNDS; round += 1) {
      const away = frontend.require(REQUEST.REM_MEM_REG, singleRegion(ram.region()));
      const back = away.then(() => frontend.require(REQUEST.ADD_MEM_REG, singleRegion(ram.region()), [ram.fd]));
      await load.during(back);
    }
    await load.drain();

    expect(load.done).toBeGreaterThanOrEqual(ROUNDS * SLOTS);
  });

  it('it may be stopped and started where it stood, again and again', async () => {
    const { frontend, load } = await start();
    const ring = frontend.queue();

    for (let round = 0; round < ROUNDS; round += 1) {
      await load.during(frontend.stopRing(ring).then((base) => frontend.startRing(ring, base)));
    }
    await load.drain();

    expect(await frontend.stopRing(ring)).toBe(ring.drainedBase);
  });
});
