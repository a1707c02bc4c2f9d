/**
 * The source's part of a migration: memory while the guest runs, round after round, until what is left can be sent within
 * the downtime; then the guest is held, and the rest goes with the state of everything. Memory that was handed over is not
 * sent. Whatever goes wrong until the destination has been told to run the guest, the source goes on as before.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { VmError } from '../errors.ts';
import type { LongOperation } from '../long-operation.ts';
import { encodeState } from '../state/codec.ts';
import type { VcpuEnd } from '../vcpu.ts';
import { type Channel, PeerGaveUp } from './channel.ts';
import { ACCEPT, CONFIG, GO, READY, ROUND, RUNNING, STATE, TAKEN } from './frames.ts';
import { MemorySender, type SourceMemory } from './memory-sender.ts';
import { type Offer, plainOffer } from './offer.ts';
import { type PageRange, PageSet } from './page-set.ts';
import { UndecidedError } from './undecided.ts';

/** A machine as the sender needs it. */
export interface MigrationSource {
  readonly memory: SourceMemory;
  /** The end or reset that the guest has asked for. */
  readonly ending: VcpuEnd | undefined;
  /** From now on what the devices write is noted, and what the guest writes if wanted. @throws VmError - a device cannot */
  startDirtyLog(ofGuest: boolean): Promise<void>;
  /** What was written since the start or the last call. */
  takeDirty(): readonly PageRange[];
  stopDirtyLog(): Promise<void>;
  /** Has the guest run for less of the time, held for `percent` of it; with 0, or suspended, it is not slowed down. */
  throttle(percent: number): Promise<void>;
  /** Resolves when nothing touches guest memory any more. @throws VmError - it does not; `goOn` is to be called */
  suspend(): Promise<void>;
  /** Of a suspended machine; plain data. */
  state(): Promise<unknown>;
  /** Lets the devices, and the guest where it ran before, go on. */
  goOn(): Promise<void>;
}

export interface SendOptions {
  /** How long the guest may stand still, in milliseconds. */
  readonly downtimeMs: number;
  /** How long the whole may take. */
  readonly timeoutMs: number | undefined;
  /** The destination has the memory itself, so that none is sent; and from GO on it is the destination's. */
  readonly isMemoryShared: boolean;
  /** A guest that writes faster than is sent is slowed down. */
  readonly autoConverge: boolean;
}

const DEFAULT_TIMEOUT_MS = 600_000;
/** A guest that has not become calm by then will not. */
const MAX_ROUNDS = 40;
/** Rounds after which there is more than this part left of what they sent say that the guest writes too fast; */
const TOO_MUCH_LEFT = 0.5;
/** after so many of them its vCPUs are held for a part of the time, and for more of it with each further one. */
const PATIENCE_ROUNDS = 2;
const FIRST_THROTTLE_PERCENT = 20;
const MORE_THROTTLE_PERCENT = 10;
const MAX_THROTTLE_PERCENT = 99;
/** Of the downtime, what everything but memory is expected to take; half of a short one. */
const FIXED_MS = 100;
/** A shorter round says nothing of how fast memory is sent. */
const MEASURED_BYTES = 1024 * 1024;
/** Connecting back ends and starting daemons; restoring devices; starting processors. */
const ACCEPT_TIMEOUT_MS = 60_000;
const READY_TIMEOUT_MS = 60_000;
const RUNNING_TIMEOUT_MS = 30_000;
const MEGA = 1_000_000;
const SLICE_MS = 2;

export class Sender {
  readonly #source: MigrationSource;
  readonly #channel: Channel;
  readonly #options: SendOptions;
  readonly #operation: LongOperation;
  readonly #memory: MemorySender;
  readonly #pages: PageSet;
  readonly #startedAt = performance.now();
  #isSuspended = false;
  #isLogging = false;
  #round = 0;
  /** In a row, with too much left afterwards. */
  #badRounds = 0;
  #throttlePercent = 0;
  /** Of guest memory. */
  #bytesPerSecond = 0;
  #bytesDone = 0;

  constructor(source: MigrationSource, channel: Channel, options: SendOptions, operation: LongOperation) {
    this.#source = source;
    this.#channel = channel;
    this.#options = options;
    this.#operation = operation;
    this.#memory = new MemorySender(source.memory, channel);
    this.#pages = new PageSet(source.memory.ranges);
  }

  /**
   * Kept when the destination runs the guest (or has it, held, where it was held here).
   * @throws UndecidedError - nobody knows; the machine is suspended
   * @throws Error - it failed or was cancelled; the machine goes on as before
   */
  async run(offer: Offer): Promise<void> {
    const { signal } = this.#operation;
    const onAbort = () => this.#channel.refuse((signal.reason as Error).message);
    signal.addEventListener('abort', onAbort);
    try {
      await this.#prepare(offer);
      const started = performance.now();
      await this.#stopAndCopy();
      signal.removeEventListener('abort', onAbort);
      await this.#commit();
      this.#operation.report({ downtime_ms: Math.round(performance.now() - started) });
    } catch (error) {
      if (error instanceof UndecidedError) throw error;
      const cause = signal.aborted ? (signal.reason as Error) : (error as Error);
      this.#channel.refuse(cause.message);
      throw await this.#goOn(cause);
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** Lets the machine go on. Returns why the migration failed, with what does not go on, if anything. */
  async #goOn(cause: Error): Promise<Error> {
    try {
      if (this.#isSuspended) await this.#source.goOn();
      else if (this.#throttlePercent > 0) await this.#source.throttle(0);
      if (this.#isLogging) await this.#source.stopDirtyLog();
      return cause;
    } catch (error) {
      return new VmError(`${cause.message}; and the machine does not go on whole: ${(error as Error).message}`, {
        cause,
      });
    }
  }

  /** What ends a migration apart from errors. */
  #check(): void {
    this.#operation.signal.throwIfAborted();
    const { ending } = this.#source;
    if (ending !== undefined) {
      const what = ending === 'reset' ? 'the guest resets itself' : 'the guest has ended';
      throw new VmError(`the migration was given up: ${what}`);
    }
    const { timeoutMs = DEFAULT_TIMEOUT_MS } = this.#options;
    if (performance.now() - this.#startedAt > timeoutMs)
      throw new VmError(`not done within ${timeoutMs} ms: ${this.#left()}`);
  }

  #left(): string {
    const rate = Math.round(this.#bytesPerSecond / MEGA);
    return `after ${this.#round} rounds ${this.#pages.bytes} bytes of memory are left, at ${rate} MB/s`;
  }

  /** Everything that happens while the guest runs. */
  async #prepare(offer: Offer): Promise<void> {
    const { memory } = this.#source;
    this.#check();
    const total = memory.ranges.reduce((sum, { length }) => sum + length, 0);
    this.#operation.report({ phase: 'connecting', bytes_total: this.#options.isMemoryShared ? 0 : total });
    await this.#channel.send(CONFIG, encodeState(plainOffer(offer)));
    await this.#channel.receive([ACCEPT], ACCEPT_TIMEOUT_MS);
    this.#check();
    this.#isLogging = true;
    // Also where nobody wants to know: a disk is let go of by a back end that notes what it writes.
    await this.#source.startDirtyLog(!this.#options.isMemoryShared);
    if (this.#options.isMemoryShared) return;
    await this.#addData(memory);
    this.#operation.report({ phase: 'memory' });
    for (;;) {
      const bytes = this.#pages.bytes;
      await this.#sendRound();
      this.#addDirty();
      if (this.#fits()) return;
      // What was written while so much was sent is more than that: another round has more to send, not less.
      this.#operation.report({ converges: this.#pages.bytes < bytes });
      await this.#slowDown(bytes);
      if (this.#round >= MAX_ROUNDS) {
        throw new VmError(`the guest writes memory faster than it is sent: ${this.#left()}`);
      }
    }
  }

  /** Takes time from a guest that writes too much while `sent` bytes are sent. */
  async #slowDown(sent: number): Promise<void> {
    this.#badRounds = this.#pages.bytes > sent * TOO_MUCH_LEFT ? this.#badRounds + 1 : 0;
    if (!this.#options.autoConverge || this.#badRounds < PATIENCE_ROUNDS) return;
    const more = this.#throttlePercent === 0 ? FIRST_THROTTLE_PERCENT : MORE_THROTTLE_PERCENT;
    this.#throttlePercent = Math.min(this.#throttlePercent + more, MAX_THROTTLE_PERCENT);
    this.#operation.report({ throttle_percent: this.#throttlePercent });
    await this.#source.throttle(this.#throttlePercent);
  }

  /** All that was ever written of RAM. */
  async #addData(memory: SourceMemory): Promise<void> {
    let sliceStart = performance.now();
    for (const range of memory.ranges) {
      for (const data of memory.dataRanges(range)) {
        this.#pages.add(data);
        if (performance.now() - sliceStart < SLICE_MS) continue;
        await nextTurn();
        sliceStart = performance.now();
      }
    }
  }

  #addDirty(): void {
    for (const range of this.#source.takeDirty()) this.#pages.add(range);
    this.#operation.report({ dirty_bytes: this.#pages.bytes });
  }

  /** Whether what is left can be sent while the guest stands still. */
  #fits(): boolean {
    const { downtimeMs } = this.#options;
    const memoryMs = downtimeMs - Math.min(FIXED_MS, downtimeMs / 2);
    return this.#pages.bytes <= (this.#bytesPerSecond * memoryMs) / 1000;
  }

  /** Sends what is to be sent now. Kept when the destination has it in its memory. */
  async #sendRound(): Promise<void> {
    this.#round += 1;
    const bytes = this.#pages.bytes;
    this.#operation.report({ round: this.#round, dirty_bytes: bytes });
    const start = performance.now();
    await this.#memory.send(this.#pages, (done) => {
      this.#bytesDone += done;
      this.#operation.report({ bytes_done: this.#bytesDone });
      if (!this.#isSuspended) this.#check();
    });
    const number = Buffer.alloc(4);
    number.writeUInt32LE(this.#round);
    await this.#channel.send(ROUND, number);
    const { payload } = await this.#channel.receive([TAKEN]);
    if (!payload.equals(number)) throw new VmError('the peer acknowledges another round than the last');
    this.#check();
    const seconds = (performance.now() - start) / 1000;
    if (bytes < MEASURED_BYTES && this.#bytesPerSecond !== 0) return;
    this.#bytesPerSecond = bytes / seconds;
    this.#operation.report({ bytes_per_second: Math.round(this.#bytesPerSecond) });
  }

  /** The guest stands still from here on. */
  async #stopAndCopy(): Promise<void> {
    this.#check();
    this.#operation.report({ phase: 'handing over' });
    this.#isSuspended = true;
    await this.#source.suspend();
    this.#check();
    if (!this.#options.isMemoryShared) {
      this.#addDirty();
      await this.#sendRound();
    }
    await this.#channel.send(STATE, encodeState(await this.#source.state()));
    await this.#channel.receive([READY], READY_TIMEOUT_MS);
    this.#check();
    this.#channel.check();
  }

  /** From the first byte of GO on the destination may run the guest, so nobody else may. */
  async #commit(): Promise<void> {
    try {
      await this.#channel.send(GO);
      await this.#channel.receive([RUNNING], this.#options.isMemoryShared ? READY_TIMEOUT_MS : RUNNING_TIMEOUT_MS);
    } catch (error) {
      if (error instanceof PeerGaveUp) throw this.#explainFailure(error);
      this.#channel.fail(error as Error);
      throw new UndecidedError(
        `the destination was told to run the guest and did not say that it does (${(error as Error).message}): ` +
          'the guest is paused here; vm.resume it if it does not run there, and shut it down if it does',
        { cause: error },
      );
    }
    this.#channel.close();
  }

  /** What it means that the destination does not run the guest after GO. */
  #explainFailure(error: PeerGaveUp): Error {
    if (!this.#options.isMemoryShared) return error;
    return new UndecidedError(
      `${error.message}; its devices may have used the guest's memory by then: the guest is paused here, vm.reboot it`,
      { cause: error },
    );
  }
}
