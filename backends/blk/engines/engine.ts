/** How the operations of requests reach the disk. One engine per daemon. */

import type { BlkRequest } from '../request.ts';

/** Called for each operation that ended: bytes transferred (0 where there are none), or a negative errno. */
export type Complete = (request: BlkRequest, result: number) => void;

/** Index in the table of files: the one given by the user, with O_DIRECT if asked for. */
export const MAIN_FILE = 0;
/** The same file through the page cache, for what O_DIRECT cannot do. */
export const BUFFERED_FILE = 1;

export interface Engine {
  readonly name: string;

  /** Starts the operation described by the request's fields; it ends in a later `poll`. */
  submit(request: BlkRequest): void;

  /** Hands over what was submitted, and completes what ended. Returns how many ended. */
  poll(): number;

  /** `poll` must be called again soon although nothing becomes readable. */
  readonly mustPoll: boolean;

  /** Called when operations ended, or can be seen to have ended by `poll`. */
  onCompletion: () => void;

  /** Nothing is in flight. */
  close(): void;
}
