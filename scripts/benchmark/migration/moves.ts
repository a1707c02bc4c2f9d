/** What our monitor and the other one have in common for those who move guests between two of either. */
import type { GuestSigns } from './guest.ts';
import type { Load } from './workloads.ts';

export interface GuestOptions {
  kernel: string;
  load: Load;
  /** The initramfs; undefined where the load has no data. */
  data: string | undefined;
  /** Image of the disk, where the load has one. */
  image: string;
}

/** What came of a migration, as the source tells it. */
export interface Moved {
  /** False: given up, because the guest writes faster than is sent. */
  isMoved: boolean;
  totalMs: number;
  downtimeMs: number | undefined;
  /** Times that memory was gone through, the last time included. */
  rounds: number;
  /** Of guest memory while it is sent. */
  megabytesPerSecond: number;
  /** What went through the connection. */
  wireMegabytes: number;
}

/** Where a guest is to go, and whether its memory is handed over instead of sent. */
export interface Place {
  url: string;
  isLocal: boolean;
}

/** Two monitors, a guest in the first, and the second ready to take it. */
export interface Pair {
  source: GuestSigns;
  destination: GuestSigns;
  /** @throws COMMAND_FAILED - it failed otherwise than by being given up */
  move(to: Place, downtimeMs: number, giveUpMs: number): Promise<Moved>;
}

export const MEGA = 1e6;
