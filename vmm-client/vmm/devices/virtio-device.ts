/**
 * The contract between a transport and the device behind it: what the driver sees of the device, and what it does to it.
 * The transport calls one method at a time and waits for its promise.
 */

import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { DirtyRange } from '../../frontend/dirty-bitmap.ts';
import type { SharedRegion } from '../../frontend/hand-over.ts';

/** A virtqueue that the driver has made ready. Addresses are guest physical, aligned, and not yet known to be RAM. */
export interface ReadyQueue {
  readonly index: number;
  /** Entries; a power of two. */
  readonly size: number;
  readonly descriptorTable: number;
  readonly availRing: number;
  readonly usedRing: number;
  /** Written when the driver notifies. Stays the transport's, open until `reset` is done. */
  readonly kick: OwnedFd;
  /** Writes to it. */
  notify(): void;
}

/** What the device gets at DRIVER_OK. */
export interface Activation {
  /** Accepted by the driver, all of them offered. */
  readonly features: bigint;
  readonly queues: readonly ReadyQueue[];
  /** To be written when buffers were used. Stays the transport's, open until `reset` is done. */
  readonly interrupt: OwnedFd;
  /** Writes to it. */
  signalInterrupt(): void;
}

export interface VirtioDeviceListener {
  /** `config` has other bytes now. Where it is the driver's doing (`byDriver`), the driver is not told. */
  configChanged(byDriver?: boolean): void;
  /** The device cannot go on without a reset, if with one. Told once until `reset`. */
  needsReset(error: Error): void;
}

/**
 * What a device takes along when it goes on elsewhere: plain data (objects, arrays, strings, numbers, booleans, bigints,
 * Uint8Arrays, undefined), which only the same kind of device understands. One that comes from elsewhere may be anything.
 */
export type DeviceState = unknown;

export interface VirtioDevice {
  /** For messages, such as `disk _disk0`. */
  readonly name: string;
  readonly deviceId: number;
  /** Entries that each queue can have at most; powers of two. */
  readonly queueSizes: readonly number[];
  /** Offered to the driver. */
  readonly features: bigint;
  /** Those of them that the driver has to accept, besides VERSION_1. */
  readonly required?: bigint;
  /** The configuration space as it is now. Not to be written to. */
  readonly config: Uint8Array;
  /** Whether its back end is there; undefined where there is none. */
  readonly isConnected?: boolean;

  /** Whom to tell. */
  listen(listener: VirtioDeviceListener): void;
  /** Starts the queues. @throws Error - they do not run; `reset` is to be called all the same */
  activate(activation: Activation): Promise<void>;
  /** Stops one queue of an activated device. It touches nothing of it afterwards. Never throws. */
  stopQueue(index: number): Promise<void>;
  /** Back to the state before `activate`. Nothing touches guest memory afterwards. Never throws. */
  reset(): Promise<void>;
  /** The driver writes to the configuration space, inside its bounds; `config` tells what came of it. Never throws. */
  writeConfig(offset: number, bytes: Uint8Array, features: bigint): Promise<void>;
  /**
   * Stops the device without a reset, activated or not, and takes what it needs to go on elsewhere. Nothing touches guest
   * memory afterwards. What follows is `resume`, `reset` or `close`.
   * @throws VmError - it failed; the device runs on
   */
  suspend(): Promise<DeviceState>;
  /** Goes on after `suspend`. @throws VmError - it does not; `reset` is to be called all the same */
  resume(): Promise<void>;
  /**
   * Lets a device that was only opened go on where another was suspended. `activation` is as that one's: with the features
   * and queues that its driver knows; undefined where it was not activated. `config` is as the driver is to see it then.
   * @throws VmError - the state is none, or does not fit this device; it is to be closed
   */
  restore(state: DeviceState, activation: Activation | undefined): Promise<void>;
  /**
   * From now on every page of guest memory that the device writes to is noted. It goes on over resets, and from a
   * `suspend` to what follows. No effect where it is on. @throws VmError - the device cannot do that
   */
  startDirtyLog(): Promise<void>;
  /** Takes what was written since `startDirtyLog` or the last call. Nothing where the log is off. */
  takeDirty(): readonly DirtyRange[];
  /** What was not taken is lost. Never throws. */
  stopDirtyLog(): Promise<void>;
  /** RAM that was added to the guest's: the device may be asked for what is in it. @throws VmError - the device cannot */
  addMemory(region: SharedRegion): Promise<void>;
  /** Takes such RAM away again (the same object). The caller proves that the driver uses none of it. Never throws. */
  removeMemory(region: SharedRegion): Promise<void>;
  /** Tells the outside world that the device is here now, after `restore`, where it has one. Never throws. */
  announce?(): Promise<void>;
  /** What happened since the device was opened, by name. */
  counters(): Record<string, number>;
  /** Ends the device. Idempotent. */
  close(): void;
}
