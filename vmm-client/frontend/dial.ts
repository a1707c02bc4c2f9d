/** Connecting to a socket that may not be there yet. */

import { setTimeout as delay } from 'node:timers/promises';
import { EAGAIN, ECONNREFUSED, ENOENT, SysError } from '../../protocol/sys/errors.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';

const PAUSE_MS = 5;
/** No file, nobody who listens at it, nobody who accepts: what a back end that is being started looks like. */
const NOT_YET: readonly number[] = [ENOENT, ECONNREFUSED, EAGAIN];

/**
 * Connects to the socket at `path`, trying for at most `waitMs` milliseconds.
 * @throws SysError - nobody listens there by then, or it can never be connected to
 */
export async function dial(path: string, waitMs: number): Promise<UnixStream> {
  const deadline = performance.now() + waitMs;
  for (;;) {
    try {
      return UnixStream.connect(path);
    } catch (error) {
      const worthWaiting = error instanceof SysError && NOT_YET.includes(error.errno);
      if (!worthWaiting || performance.now() >= deadline) throw error;
    }
    await delay(PAUSE_MS);
  }
}
