/** The back end's channel to a front end that reads what it is asked and does not answer. */

import { expect, it } from 'vitest';
import { BackendChannel } from '../../../../backends/core/backend-channel.ts';
import type { Logger } from '../../../../backends/core/logging.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { BACKEND } from '../../../../protocol/vhost-user/messages.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';
import { RawConnection } from '../../../support/frontend/raw-connection.ts';

const cleanup = cleanupAfterEach();

it('is closed when too many requests wait for an answer', async () => {
  const warnings: string[] = [];
  const log = { warn: (text: string) => void warnings.push(text) } as unknown as Logger;
  const [ours, theirs] = UnixStream.pair();
  const frontend = new RawConnection(theirs);
  cleanup.add(() => frontend.close());
  const channel = new BackendChannel(ours.detach(), log);
  cleanup.add(() => channel.close());
  const miss = { iova: 0n, size: 4096n, userAddress: 0n, permission: 1, type: 1 };
  for (let i = 0; i < 20_000; i += 1) {
    channel.send(BACKEND.IOTLB_MSG, miss, () => undefined);
    if (i % 100 === 0) await new Promise(setImmediate);
  }
  await frontend.waitForEnd();
  expect(warnings).toEqual(['cannot send BACKEND_IOTLB_MSG to the front end: 16384 requests are not answered']);
});
