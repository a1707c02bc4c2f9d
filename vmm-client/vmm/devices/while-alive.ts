/** Steps that need a back end, which may be away for a while, die in the middle, and come back. */

import { PeerError } from '../../../protocol/vhost-user/errors.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';

/**
 * Does a step when the back end is there, for which it waits until `awayMs` milliseconds from now. Where the back end died
 * meanwhile and comes back in time, undoes the step and does it again; one that refused would do so again.
 * @throws PeerError - it is away. Whatever the step throws
 */
export async function whileAlive<T>(
  frontend: VhostUserFrontend,
  awayMs: number,
  step: () => Promise<T>,
  undo: () => Promise<void> = async () => undefined,
): Promise<T> {
  const deadline = performance.now() + awayMs;
  for (;;) {
    const waitMs = Math.max(0, deadline - performance.now());
    if (!(await frontend.waitUntilConnected(waitMs))) throw new PeerError('the back end is away');
    try {
      return await step();
    } catch (error) {
      const died = frontend.isReconnecting;
      await undo();
      if (!died || performance.now() >= deadline) throw error;
    }
  }
}
