/**
 * The destination's part of a migration. What comes is checked as anything that a stranger sends; until the source says GO
 * nothing runs, and nothing is left of it when something is wrong.
 */

import type { CheckedConfig } from '../check-config.ts';
import type { LongOperation } from '../long-operation.ts';
import { decodeState } from '../state/codec.ts';
import type { Channel } from './channel.ts';
import { ACCEPT, CONFIG, GO, PAGES, READY, ROUND, RUNNING, STATE, TAKEN } from './frames.ts';
import { applyPages, type TargetMemory } from './memory-receiver.ts';
import { checkRanges, type MachineLayout, parseOffer } from './offer.ts';

/** A machine that is there and has no state yet. */
export interface MigrationTarget {
  readonly memory: TargetMemory;
  /** Processors go on where the state was taken, once the guest runs. @throws VmError - not of this machine */
  restoreProcessors(state: unknown): Promise<void>;
  /** Likewise devices, which may use memory from now on. @throws VmError - not of this machine, or one cannot */
  restoreDevices(state: unknown): Promise<void>;
  /** Lets the guest run. */
  resume(): Promise<void>;
  /** Ends everything. */
  close(): Promise<void>;
}

export interface Received<T> {
  readonly machine: T;
  readonly config: CheckedConfig;
  readonly running: boolean;
}

/** From READY to GO: the source has nothing else to do. */
const GO_TIMEOUT_MS = 30_000;

/**
 * Takes a guest over a connection. `build` makes the machine of what is offered, whose memory is the source's where that is
 * shared: the devices touch it when it is ours.
 * @throws Error - it failed or was cancelled; the source goes on, and nothing is left here
 */
export async function receiveGuest<T extends MigrationTarget>(
  channel: Channel,
  build: (
    config: CheckedConfig,
    layout: MachineLayout,
  ) => Promise<{ readonly machine: T; readonly config: CheckedConfig }>,
  operation: LongOperation,
  isMemoryShared = false,
): Promise<Received<T>> {
  const { signal } = operation;
  const onAbort = () => channel.interrupt(signal.reason as Error);
  signal.addEventListener('abort', onAbort);
  let machine: T | undefined;
  try {
    signal.throwIfAborted();
    const offer = parseOffer(decodeState((await channel.receive([CONFIG])).payload));
    operation.report({ phase: 'connecting' });
    const built = await build(offer.config, offer.layout);
    machine = built.machine;
    checkRanges(machine.memory.ranges, offer.layout.ranges);
    await channel.send(ACCEPT);
    const state = isMemoryShared
      ? decodeState((await channel.receive([STATE])).payload)
      : await receiveMemory(channel, machine.memory, operation);
    operation.report({ phase: 'devices' });
    await machine.restoreProcessors(state);
    if (!isMemoryShared) await machine.restoreDevices(state);
    signal.throwIfAborted();
    await channel.send(READY);
    await channel.receive([GO], GO_TIMEOUT_MS);
    // The guest is here now, whatever becomes of the connection or of a wish to cancel.
    signal.removeEventListener('abort', onAbort);
    if (isMemoryShared) await machine.restoreDevices(state);
    if (offer.isRunning) await machine.resume();
    await channel.send(RUNNING).then(
      () => channel.close(),
      (error: Error) => channel.fail(error),
    );
    return { machine, config: built.config, running: offer.isRunning };
  } catch (error) {
    const cause = signal.aborted ? (signal.reason as Error) : (error as Error);
    try {
      await machine?.close();
    } finally {
      // Only now: the source's devices go on when it hears of that, with the same disks.
      channel.refuse(cause.message);
    }
    throw cause;
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** Receives memory until the state comes, which is not looked at yet. */
async function receiveMemory(channel: Channel, memory: TargetMemory, operation: LongOperation): Promise<unknown> {
  const start = performance.now();
  let done = 0;
  operation.report({ phase: 'memory', bytes_total: memory.ranges.reduce((sum, { length }) => sum + length, 0) });
  for (;;) {
    const { type, payload } = await channel.receive([PAGES, ROUND, STATE]);
    if (type === STATE) return decodeState(payload);
    if (type === PAGES) {
      done += applyPages(memory, payload);
      const bytes_per_second = Math.round((done / (performance.now() - start)) * 1000);
      operation.report({ bytes_done: done, bytes_per_second });
      continue;
    }
    operation.report({ round: payload.readUInt32LE(0) });
    await channel.send(TAKEN, payload);
  }
}
