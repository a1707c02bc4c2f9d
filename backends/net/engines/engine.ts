/** How packets get into the TAP and out of it. One engine per daemon. No operation waits: what is not there is EAGAIN. */

import type { Packet } from '../packet.ts';

/** Called for each operation that ended, with `packet.result` set. */
export type Complete = (packet: Packet) => void;

export interface Engine {
  readonly name: string;

  /** Starts to write (TRANSMIT) or read (RECEIVE) a packet; it ends in a later `poll`. */
  submit(packet: Packet): void;

  /** Hands over what was submitted, and completes what ended, in the order of submission. */
  poll(): void;

  /** `poll` must be called again soon. */
  readonly mustPoll: boolean;

  /** The TAP has new descriptors, one per queue. Nothing is in flight. @throws SysError */
  replaceQueues(fds: readonly number[]): void;

  /** Nothing is in flight. */
  close(): void;
}
