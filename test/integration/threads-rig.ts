/**
 * Several rings of a block device under load at once, served by several threads of the daemon: every request is accounted
 * for, and every byte that is read or found on the disk is known. Each ring writes to sectors of its own, which lie
 * between those of the others, so that rings share every page of the disk.
 */

import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { BlkBackend } from '../support/backend-process.ts';
import type { Cleanup } from '../support/cleanup.ts';
import { RequestArea, type RequestMemory, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { type FrontendOptions, RawFrontend } from '../support/frontend/raw-frontend.ts';
import { type RawVirtqueue, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { createImage } from '../support/image.ts';

/** Requests that each ring keeps in flight. */
export const SLOTS = 8;
export const RING_SIZE = 64;
const SECTOR = 512;
/** Sectors that each ring writes to. */
const SECTORS = 128;
const DATA_BYTES = 4096;
const AREA_BYTES = 0x1000 + DATA_BYTES;
const DEADLINE_MS = 30_000;

interface Outstanding {
  readonly sector: number;
  /** What it writes; undefined for a read. */
  readonly stamp: number | undefined;
  readonly slot: number;
}

/** Where the data of request `n` of a ring lies: bytes behind an address that suits O_DIRECT. */
export type Shift = (n: number, ring: number) => number;

/** One ring: SLOTS requests of a sector each, two writes to a read, no two at once for one sector. */
export class RingLoad {
  readonly ring: RawVirtqueue;
  readonly #rings: number;
  readonly #areas: readonly RequestArea[];
  readonly #shift: Shift;
  readonly #free = Array.from({ length: SLOTS }, (_, i) => i);
  readonly #outstanding = new Map<number, Outstanding>();
  /** Offset in memory of the data of each slot's last request. */
  readonly #dataAt: number[] = [];
  /** What each sector holds, repeated: 0 at first. */
  readonly #stamps = new Uint32Array(SECTORS);
  submitted = 0;
  returned = 0;

  /** @param first slot in `memory` of its first request. @param rings that share the disk */
  constructor(memory: RequestMemory, ring: RawVirtqueue, rings: number, shift: Shift = () => 0, first = 0) {
    this.ring = ring;
    this.#rings = rings;
    this.#shift = shift;
    this.#areas = this.#free.map((slot) => new RequestArea(memory, first + slot, DATA_BYTES));
  }

  get inFlight(): number {
    return this.#outstanding.size;
  }

  /** Writes all over the memory of requests that are not in flight: none of it is the device's any more. */
  fillFree(value: number): void {
    for (const slot of this.#free) {
      const { header } = this.#areas[slot] as RequestArea;
      this.ring.ram.bytes.fill(value, header, header + AREA_BYTES);
    }
  }

  /** A copy of all memory of the ring and its requests. */
  snapshot(): Buffer {
    const { bytes } = this.ring.ram;
    const first = (this.#areas[0] as RequestArea).header;
    return Buffer.concat([this.#ringBytes(), bytes.subarray(first, first + SLOTS * AREA_BYTES)]);
  }

  #ringBytes(): Uint8Array {
    const { ram, end } = this.ring;
    const { descriptor } = this.ring.addresses();
    return ram.bytes.subarray(Number(descriptor) - ram.userAddress, end);
  }

  /** Fills the ring up, without a kick. */
  offer(): void {
    const busy = new Set([...this.#outstanding.values()].map(({ sector }) => sector));
    for (let slot = this.#free.shift(); slot !== undefined; slot = this.#free.shift()) {
      this.submitted += 1;
      const n = this.submitted;
      let sector = (n * 37) % SECTORS;
      while (busy.has(sector)) sector = (sector + 1) % SECTORS;
      busy.add(sector);
      const stamp = n % 3 === 0 ? undefined : (this.ring.index + 1) * 0x0100_0000 + n;
      this.#prepare(slot, n, sector, stamp);
      this.#outstanding.set(3 * slot, { sector, stamp, slot });
      this.ring.publish(3 * slot);
    }
  }

  submit(): void {
    this.offer();
    this.ring.signal();
  }

  #prepare(slot: number, n: number, sector: number, stamp: number | undefined): void {
    const area = this.#areas[slot] as RequestArea;
    const { ram, index } = this.ring;
    const at = area.data + this.#shift(n, index);
    area.putHeader(stamp === undefined ? TYPE.IN : TYPE.OUT, sector * this.#rings + this.ring.index);
    for (let i = 0; i < SECTOR; i += 4) ram.view.setUint32(at + i, stamp ?? 0xeeee_eeee, true);
    const data = { address: ram.guest(at), length: SECTOR, flags: stamp === undefined ? WRITE : 0 };
    this.ring.setChain(3 * slot, [area.headerDescriptor(), data, area.statusDescriptor()]);
    this.#dataAt[slot] = at;
  }

  /** Takes what came back. @throws Error - a request that is not in flight, that failed, or that read what is not there */
  harvest(): void {
    for (const { id } of this.ring.harvest()) {
      const request = this.#outstanding.get(id);
      const what = `ring ${this.ring.index}, head ${id}`;
      if (request === undefined) throw new Error(`${what} came back and is not in flight`);
      const { sector, stamp, slot } = request;
      const status = (this.#areas[slot] as RequestArea).statusByte;
      if (status !== STATUS.OK) throw new Error(`${what}: status ${status}`);
      if (stamp === undefined) this.#checkRead(what, slot, sector);
      else this.#stamps[sector] = stamp;
      this.#outstanding.delete(id);
      this.#free.push(slot);
      this.returned += 1;
    }
  }

  #checkRead(what: string, slot: number, sector: number): void {
    const at = this.#dataAt[slot] as number;
    const expected = this.#stamps[sector] as number;
    for (let i = 0; i < SECTOR; i += 4) {
      const found = this.ring.ram.view.getUint32(at + i, true);
      if (found === expected) continue;
      throw new Error(`${what}: sector ${sector} reads as ${found.toString(16)}, not ${expected.toString(16)}`);
    }
  }

  /** Sectors of the image that do not hold what was written last. */
  wrongSectors(image: Buffer): number[] {
    return Array.from(this.#stamps, (_, sector) => sector).filter((sector) => {
      const at = (sector * this.#rings + this.ring.index) * SECTOR;
      for (let i = 0; i < SECTOR; i += 4) if (image.readUInt32LE(at + i) !== this.#stamps[sector]) return true;
      return false;
    });
  }
}

export interface RigOptions extends FrontendOptions {
  readonly queues: number;
  readonly threads: number;
  readonly extra?: readonly string[];
  readonly shift?: Shift;
}

/** A daemon and a front end with all rings up. */
export class ThreadsRig {
  readonly backend: BlkBackend;
  readonly loads: readonly RingLoad[];
  frontend: RawFrontend;

  private constructor(backend: BlkBackend, frontend: RawFrontend, shift: Shift) {
    this.backend = backend;
    this.frontend = frontend;
    const { queues } = frontend;
    this.loads = queues.map((ring) => new RingLoad(frontend, ring, queues.length, shift, ring.index * SLOTS));
  }

  /** Negotiates and lays rings out; none is started. */
  static async negotiate(cleanup: Cleanup, options: RigOptions): Promise<ThreadsRig> {
    const { queues, threads, extra = [] } = options;
    const image = createImage(join(cleanup.directory(), 'disk.img'), 2 * queues * SECTORS * SECTOR);
    const arguments_ = [`--threads=${threads}`, ...extra];
    const backend = await BlkBackend.start(cleanup, { image, numQueues: queues, extra: arguments_ });
    return ThreadsRig.#connect(cleanup, backend, options);
  }

  static async #connect(cleanup: Cleanup, backend: BlkBackend, options: RigOptions): Promise<ThreadsRig> {
    const frontend = RawFrontend.connect(backend.socket, { ramBytes: 4 << 20, queueSize: RING_SIZE, ...options });
    const rig = new ThreadsRig(backend, frontend, options.shift ?? (() => 0));
    cleanup.add(() => rig.frontend.close());
    await frontend.negotiate();
    return rig;
  }

  /** Starts all rings. */
  static async start(cleanup: Cleanup, options: RigOptions): Promise<ThreadsRig> {
    const rig = await ThreadsRig.negotiate(cleanup, options);
    await rig.#startRings();
    return rig;
  }

  /** Another front end of a daemon that runs; the disk is empty. */
  static async attach(cleanup: Cleanup, backend: BlkBackend, options: RigOptions): Promise<ThreadsRig> {
    const rig = await ThreadsRig.#connect(cleanup, backend, options);
    createImage(backend.image, statSync(backend.image).size);
    await rig.#startRings();
    return rig;
  }

  async #startRings(): Promise<void> {
    await this.frontend.shareMemory();
    for (const ring of this.frontend.queues) await this.frontend.startRing(ring);
  }

  load(index: number): RingLoad {
    return this.loads[index] as RingLoad;
  }

  submit(loads = this.loads): void {
    for (const load of loads) load.submit();
  }

  /** Keeps the load up until each ring has returned `count` more requests. */
  async run(count: number, loads = this.loads): Promise<void> {
    const until = loads.map((load) => load.returned + count);
    await eventually(
      'returned requests',
      () => {
        for (const load of loads) load.harvest();
        for (const load of loads) load.submit();
        return loads.map((load, i) => (until[i] as number) - load.returned);
      },
      (left) => left.every((n) => n <= 0),
      DEADLINE_MS,
    );
  }

  /** Keeps the load up until `work` is done. */
  async runDuring<T>(work: Promise<T>, loads = this.loads): Promise<T> {
    let running = true;
    const done = work.finally(() => {
      running = false;
    });
    while (running) {
      for (const load of loads) load.harvest();
      for (const load of loads) load.submit();
      await new Promise((resolve) => setImmediate(resolve));
    }
    return done;
  }

  /** Waits for everything in flight. */
  async drain(loads = this.loads): Promise<void> {
    await eventually(
      'requests in flight',
      () => {
        for (const load of loads) load.harvest();
        return loads.map((load) => load.inFlight);
      },
      (left) => left.every((n) => n === 0),
      DEADLINE_MS,
    );
  }

  /** Names of the rings and sectors on the disk that are not what was written last. */
  wrongSectors(): string[] {
    const image = readFileSync(this.backend.image);
    return this.loads.flatMap((load) => load.wrongSectors(image).map((sector) => `ring ${load.ring.index}: ${sector}`));
  }
}
