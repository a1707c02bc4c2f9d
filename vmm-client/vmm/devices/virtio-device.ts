/**
 * The contract between a transport and the device behind it: what the driver sees of the device, and what it does to it.
 * The transport calls one method at a time and waits for its promise.
 */

import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';

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
  /** `config` has other bytes now. */
  configChanged(): void;
  /** The device cannot go on without a reset, if with one. Told once until `reset`. */
  needsReset(error: Error): void;
}

export interface VirtioDevice {
  /** For messages, such as `disk _disk0`. */
  readonly name: string;
  readonly deviceId: number;
  /** Entries that each queue can have at most; powers of two. */
  readonly queueSizes: readonly number[];
  /** Offered to the driver. */
  readonly features: bigint;
  /** The configuration space as it is now. Not to be written to. */
  readonly config: Uint8Array;

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
  /** What happened since the device was opened, by name. */
  counters(): Record<string, number>;
  /** Ends the device. Idempotent. */
  close(): void;
}
