/**
 * The memory device: RAM that the guest gets and gives back in blocks of 2 MiB while it runs. `resize` says how much it is
 * to have; the driver decides which blocks of the region those are. Memory is behind a piece of the region (region.ts)
 * while a block of it is plugged, and from the start behind as many of the first ones as hold what is requested:
 *
 *     requested   | piece 0 | piece 1 |             there before the driver hears of it
 *     plugged     | ###.... | ....... | .#..... |   there while it has them
 *     usable      | ------- | ------- | ------- |   never shrinks but by UNPLUG ALL and a reset of the machine
 *
 * Blocks that are not plugged are given back to the host. Nobody keeps a guest from touching those of a piece that is there:
 * they cost the host what the guest touched, at most the pieces. Source: VIRTIO 1.3, 5.15 Memory Device.
 */

import { VIRTIO_ID_MEM } from '../../../../protocol/virtio/device-ids.ts';
import {
  VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
  VIRTIO_MEM_REQ_PLUG,
  VIRTIO_MEM_REQ_STATE,
  VIRTIO_MEM_REQ_UNPLUG,
  VIRTIO_MEM_REQ_UNPLUG_ALL,
  VIRTIO_MEM_RESP_ACK,
  VIRTIO_MEM_RESP_BUSY,
  VIRTIO_MEM_RESP_ERROR,
  VIRTIO_MEM_RESP_NACK,
  VIRTIO_MEM_STATE_MIXED,
  VIRTIO_MEM_STATE_PLUGGED,
  VIRTIO_MEM_STATE_UNPLUGGED,
} from '../../../../protocol/virtio/mem.ts';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { HOTPLUG_BLOCK_BYTES } from '../../config-limits.ts';
import { VmError } from '../../errors.ts';
import type { LocalHost, LocalModel } from '../local/local-device.ts';
import { type BlockRun, Blocks } from './blocks.ts';
import { encodeConfig, encodeResponse, type MemRequest, parseRequest } from './messages.ts';
import { type HotplugRegion, piecesOf } from './region.ts';
import { type Pieces, RegionPieces } from './region-pieces.ts';
import { checkMemState, type MemState } from './state.ts';

const QUEUE_SIZE = 128;
const INACCESSIBLE = featureMask(VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE);
const NOTHING = new Uint8Array(0);

export interface MemOptions {
  readonly region: HotplugRegion;
  readonly pieces: Pieces;
  /** Bytes that are requested from the start on. */
  readonly requestedBytes: number;
  /** Gets one line without its end for each thing that goes wrong. */
  readonly log: (line: string) => void;
}

export class VirtioMem implements LocalModel {
  readonly name = 'memory __mem';
  readonly deviceId = VIRTIO_ID_MEM;
  readonly queueSizes: readonly number[] = [QUEUE_SIZE];
  readonly bufferQueues: readonly number[] = [];
  readonly features = INACCESSIBLE;
  /** What is not plugged is not always there to be read. */
  readonly required = INACCESSIBLE;
  readonly #region: HotplugRegion;
  readonly #pieces: RegionPieces;
  readonly #log: (line: string) => void;
  #host: LocalHost | undefined;
  #config: Uint8Array = NOTHING;
  #blocks: Blocks;
  #requested: number;
  #usable: number;
  /** The end of all changes so far: one at a time. */
  #tail: Promise<unknown> = Promise.resolve();
  #held = false;
  /** Whether it was said that there is no memory, since more was requested. */
  #complained = false;
  readonly #counts = { plugs: 0, unplugs: 0, nacks: 0, busy: 0, errors: 0 };

  constructor({ region, pieces, requestedBytes, log }: MemOptions) {
    this.#region = region;
    this.#pieces = new RegionPieces(region, pieces);
    this.#log = log;
    this.#requested = requestedBytes;
    this.#usable = this.#usableFor(requestedBytes);
    this.#blocks = this.#noBlocks();
    this.#encode();
  }

  get config(): Uint8Array {
    return this.#config;
  }

  /** Bytes that the guest has. */
  get pluggedBytes(): number {
    return this.#blocks.plugged * HOTPLUG_BLOCK_BYTES;
  }

  plug(host: LocalHost): void {
    this.#host = host;
  }

  /** Has memory ready for what is requested from the start on. @throws Error - the host has not got it */
  open(): Promise<void> {
    return this.#inTurn(() => this.#pieces.provide(this.#requested));
  }

  /**
   * Asks the driver to have so many bytes, a multiple of blocks and at most what the region is for. Resolves when it has
   * been asked. @throws VmError - there is no such memory; nothing has changed
   */
  resize(bytes: number): Promise<void> {
    return this.#inTurn(async () => {
      try {
        await this.#pieces.provide(bytes);
      } catch (error) {
        await this.#trim();
        throw new VmError(`memory: no ${bytes} bytes can be added: ${(error as Error).message}`, { cause: error });
      }
      this.#requested = bytes;
      this.#complained = false;
      this.#usable = Math.max(this.#usable, this.#usableFor(bytes));
      await this.#trim();
      this.#encode();
      this.#host?.configChanged();
    });
  }

  /**
   * While it is on no block changes its state, so that memory can be copied: the driver is told to try again later. Resolves
   * when what was under way is done.
   */
  holdStill(on: boolean): Promise<void> {
    return this.#inTurn(async () => {
      this.#held = on;
    });
  }

  /** The machine is reset: nothing is plugged. The driver is gone. Never throws. */
  systemReset(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#unplugAll();
      this.#changed();
    });
  }

  async serve(_queue: number, bytes: Uint8Array, writable: number): Promise<Uint8Array> {
    const request = parseRequest(bytes, writable);
    if (request === undefined) {
      this.#counts.errors += 1;
      return NOTHING;
    }
    return this.#inTurn(async () => {
      const { type, state } = await this.#handle(request);
      if (type === VIRTIO_MEM_RESP_ERROR) this.#counts.errors += 1;
      else if (type === VIRTIO_MEM_RESP_NACK) this.#counts.nacks += 1;
      else if (type === VIRTIO_MEM_RESP_BUSY) this.#counts.busy += 1;
      return encodeResponse(type, state);
    });
  }

  async #handle({ type, address, count }: MemRequest): Promise<{ readonly type: number; readonly state?: number }> {
    if (type === VIRTIO_MEM_REQ_UNPLUG_ALL) {
      if (this.#held) return { type: VIRTIO_MEM_RESP_BUSY };
      await this.#unplugAll();
      this.#changed();
      return { type: VIRTIO_MEM_RESP_ACK };
    }
    const run = this.#runAt(address, count);
    if (run === undefined) return { type: VIRTIO_MEM_RESP_ERROR };
    switch (type) {
      case VIRTIO_MEM_REQ_PLUG:
        return { type: await this.#plug(run) };
      case VIRTIO_MEM_REQ_UNPLUG:
        return { type: await this.#unplug(run) };
      case VIRTIO_MEM_REQ_STATE:
        return { type: VIRTIO_MEM_RESP_ACK, state: this.#stateOf(run) };
      default:
        return { type: VIRTIO_MEM_RESP_ERROR };
    }
  }

  /** The blocks of a request; undefined where they are none, or not all in the usable region. */
  #runAt(address: number, count: number): BlockRun | undefined {
    const offset = address - this.#region.start;
    if (offset < 0 || offset >= this.#usable || offset % HOTPLUG_BLOCK_BYTES !== 0) return undefined;
    if (count === 0 || count * HOTPLUG_BLOCK_BYTES > this.#usable - offset) return undefined;
    return { first: offset / HOTPLUG_BLOCK_BYTES, count };
  }

  async #plug(run: BlockRun): Promise<number> {
    if (this.#blocks.pluggedOf(run) > 0) return VIRTIO_MEM_RESP_ERROR;
    if (run.count * HOTPLUG_BLOCK_BYTES > this.#requested - this.pluggedBytes) return VIRTIO_MEM_RESP_NACK;
    if (this.#held) return VIRTIO_MEM_RESP_BUSY;
    try {
      await this.#pieces.take(run);
    } catch (error) {
      if (!this.#complained) this.#log(`${this.name}: no memory for what the guest plugs: ${(error as Error).message}`);
      this.#complained = true;
      await this.#pieces.giveBack(run);
      await this.#trim();
      return VIRTIO_MEM_RESP_BUSY;
    }
    this.#blocks.set(run, true);
    this.#counts.plugs += 1;
    this.#changed();
    return VIRTIO_MEM_RESP_ACK;
  }

  async #unplug(run: BlockRun): Promise<number> {
    if (this.#blocks.pluggedOf(run) < run.count) return VIRTIO_MEM_RESP_ERROR;
    if (this.#held) return VIRTIO_MEM_RESP_BUSY;
    this.#blocks.set(run, false);
    this.#counts.unplugs += 1;
    await this.#trim();
    await this.#pieces.giveBack(run);
    this.#changed();
    return VIRTIO_MEM_RESP_ACK;
  }

  async #unplugAll(): Promise<void> {
    this.#blocks.clear();
    this.#usable = this.#usableFor(this.#requested);
    await this.#trim();
    await this.#pieces.giveBackUnplugged(this.#blocks);
  }

  #stateOf(run: BlockRun): number {
    const plugged = this.#blocks.pluggedOf(run);
    if (plugged === run.count) return VIRTIO_MEM_STATE_PLUGGED;
    return plugged === 0 ? VIRTIO_MEM_STATE_UNPLUGGED : VIRTIO_MEM_STATE_MIXED;
  }

  /** Whole pieces, so that no memory block of the guest is usable in part. */
  #usableFor(requested: number): number {
    return Math.min(this.#region.size, piecesOf(this.#region, requested) * this.#region.pieceBytes);
  }

  #noBlocks(bits?: Uint8Array): Blocks {
    const { size, pieceBytes } = this.#region;
    return new Blocks(size / HOTPLUG_BLOCK_BYTES, pieceBytes / HOTPLUG_BLOCK_BYTES, bits);
  }

  /** Takes away the pieces that nothing of is plugged, and that what is requested does not need. */
  #trim(): Promise<void> {
    const needed = piecesOf(this.#region, this.#requested);
    return this.#pieces.remove((index) => index >= needed && this.#blocks.pluggedIn(index) === 0);
  }

  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const done = this.#tail.then(change);
    this.#tail = done.catch(() => undefined);
    return done;
  }

  #encode(): void {
    this.#config = encodeConfig(this.#region, {
      usable: this.#usable,
      plugged: this.pluggedBytes,
      requested: this.#requested,
    });
  }

  /** The driver asked for it, and is not told. */
  #changed(): void {
    this.#encode();
    this.#host?.configChanged(true);
  }

  save(): MemState {
    const { start, size } = this.#region;
    return { start, size, requested: this.#requested, usable: this.#usable, plugged: this.#blocks.bits() };
  }

  /** Its pieces are there already, and what is plugged is filled. What is not is given back. */
  async restore(state: unknown): Promise<void> {
    const { requested, usable, plugged } = checkMemState(state, this.#region);
    const blocks = this.#noBlocks(plugged);
    const missing = this.#pieces.absent.find((index) => blocks.pluggedIn(index) > 0);
    if (missing !== undefined) {
      throw new VmError(`${this.name}: blocks of piece ${missing} are plugged, and it is not there`);
    }
    this.#blocks = blocks;
    this.#requested = requested;
    this.#usable = usable;
    await this.#inTurn(async () => {
      await this.#pieces.provide(requested);
      await this.#trim();
      await this.#pieces.giveBackUnplugged(blocks);
    });
    this.#encode();
    this.#host?.configChanged(true);
  }

  activated(): void {
    // What the driver accepted is what it has to accept.
  }

  reset(): void {
    // Blocks keep their state, 5.15.5.2.
  }

  writeConfig(): void {
    // All fields are read-only for the driver.
  }

  memoryAdded(): void {
    // It knows.
  }

  memoryRemoved(): void {
    // It knows.
  }

  counters(): Record<string, number> {
    return {
      requested_bytes: this.#requested,
      plugged_bytes: this.pluggedBytes,
      pieces: this.#pieces.present.length,
      ...this.#counts,
    };
  }

  close(): void {
    this.#host = undefined;
  }
}
