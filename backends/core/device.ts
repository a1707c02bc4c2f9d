/**
 * What a device gives to the core, and what the core gives to a device. The core speaks vhost-user and drives the
 * virtqueues' life; a device knows features, configuration space and requests, and never sees a socket.
 *
 * A device has two sides. `Device` and `Attachment` live on the main thread and answer the front end. `DataPath` and
 * `RingAttachment` serve rings; with --threads there is a data path on every worker thread. What the first side has to
 * tell the second lies in the attachment's `shared`, which must be structured-cloneable (memory that is shared, not
 * copied: a SharedArrayBuffer) for devices that can be spread over threads.
 */

import type { Logger } from './logging.ts';
import type { RingTraits } from './ring-traits.ts';
import type { Vring } from './vring.ts';

/** A device: one per daemon, shared by all connections. */
export interface Device<Shared = unknown> {
  /** The type of vhost-user.json: block, net, vsock. */
  readonly type: string;
  /** Virtqueues a front end may use. */
  readonly maxQueues: number;
  /** Virtio feature bits of the device; ring and transport bits are the core's. */
  readonly features: bigint;
  /** Protocol feature bits beyond those the core serves for every device. */
  readonly protocolFeatures: bigint;

  /** A front end connected: what it negotiates and configures is kept per attachment. */
  attach(): Attachment<Shared>;

  /** Serves rings on this thread. Called once, and never when there is a `worker` and the rings are spread. */
  openDataPath(): DataPath<Shared>;

  /** How rings are spread over threads; undefined where they cannot be. */
  readonly worker?: DataPathWorker;

  /** Set by the daemon: the device calls it when its configuration space changed by itself. */
  onConfigChange: () => void;

  /**
   * A front end is about to run rings, and nobody did. Returns whether what it needs was not this process's before.
   * @throws Refused - another process has it
   */
  claim?(): Promise<boolean>;

  /** The front end that this was claimed for started no ring, or is gone. */
  disclaim?(): void;

  /** The front end stopped its rings while it logged what we write: its guest goes on with another daemon. */
  handOver?(): void;

  /** SIGHUP: looks at its surroundings again. @throws SysError */
  reload(): void;

  /** Releases everything. No request is in flight, and its data paths were shut down. */
  close(): void;
}

/** What a worker thread loads to serve rings of a device. */
export interface DataPathWorker {
  /** URL of a module that is a DataPathModule. */
  readonly module: string;
  /** What its `openDataPath` gets, structured-cloneable. */
  readonly data: unknown;
  /** Rings with the same number are served by the same thread. */
  laneOf(ring: number): number;
}

/** What the module of a DataPathWorker exports. */
export interface DataPathModule {
  /** @param thread number of the thread, from 0. @throws UsageError, SysError */
  openDataPath(data: unknown, log: Logger, thread: number): DataPath;
}

/** The part of a device that serves rings on one thread. */
export interface DataPath<Shared = unknown> {
  /** Heads to take from a ring before `poll` is called: a device that takes long wants them handed over in small lots. */
  readonly budget: number;

  /** A front end connected: `shared` is its attachment's. */
  serve(shared: Shared): RingAttachment;

  /** Hands prepared work to the kernel and finishes what it completed. Returns how many requests were finished. */
  poll(): number;

  /** Whether `poll` must be called again soon although nothing becomes readable (busy-polled devices, a full kernel). */
  readonly mustPoll: boolean;

  /** No further request can be started until one in flight ends: what waits in the rings is no reason to stay awake. */
  readonly isFull: boolean;

  /** Set by the pump: the device calls it when there is work for `poll` or for a ring of buffers. */
  onCompletion: () => void;

  /** The pump goes to sleep: until it is woken, `onCompletion` must be called when there is work. */
  arm(): void;

  /** Releases what it holds. No request is in flight. */
  shutDown(): void;
}

/** What a data path knows of one front end. */
export interface RingAttachment {
  /** What the ring is for; asked when it is started. */
  ringTraits(index: number): RingTraits;

  /** The ring was started or stopped, enabled or disabled. */
  ringChanged(vring: Vring): void;

  /**
   * Takes at most `budget` heads from the ring and starts their requests; the device finishes each by
   * `vring.push(head, length)`, during this call or in a later `poll`. Returns how many were taken.
   */
  processQueue(vring: Vring, budget: number): number;
}

/** One front end's view of the device. */
export interface Attachment<Shared = unknown> {
  /** Goes to every data path's `serve`. */
  readonly shared: Shared;

  /** SET_FEATURES: the virtio feature bits the driver accepted. */
  setFeatures(accepted: bigint): void;

  /** The configuration space as this driver sees it. What lies beyond its end reads as zero. */
  readConfig(): Uint8Array;

  /** Writes configuration space. Returns a sentence when the driver may not write that, undefined when done. */
  writeConfig(offset: number, data: Uint8Array, migration: boolean): string | undefined;

  /**
   * A bit of state that the driver set and will not repeat when a killed daemon is replaced: kept in the in-flight region.
   */
  saveState(): boolean;

  /** Takes up what `saveState` returned in an earlier life of the daemon. */
  restoreState(state: boolean): void;

  /** What the driver chose and will not say again, at most 2 KiB: kept behind the in-flight region in the same way. */
  saveChoices?(): Uint8Array;

  /** Takes up what `saveChoices` returned in an earlier life. Returns a sentence when it cannot be taken up. */
  restoreChoices?(choices: Uint8Array): string | undefined;

  /** Set by the core: a device that has choices to save calls it when they changed, before the driver hears of it. */
  onChoice?: () => void;

  /** SET_DEVICE_STATE_FD, of a device that offers DEVICE_STATE: what another host needs to go on with this driver. */
  exportState?(): Uint8Array;

  /** The same on the other host. Returns a sentence when it cannot be taken up. */
  importState?(state: Uint8Array): string | undefined;

  /** NET_SET_MTU, in bytes, of a device that offers the protocol feature MTU. Returns a sentence when it cannot be. */
  setMtu?(mtu: number): string | undefined;

  /** SEND_RARP, of a device that offers the protocol feature RARP: tells the network where this address (6 bytes) is now. */
  announce?(address: Uint8Array): void;

  /** RESET_DEVICE: back to the state after attach. No request of this attachment is in flight. */
  reset(): void;

  /** The front end is gone, and its rings are stopped. */
  close?(): void;
}
