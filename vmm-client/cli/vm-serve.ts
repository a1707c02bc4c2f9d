/** `ringside vm serve`: a VMM that waits for requests, until one of them ends it. */

import type { CliContext } from './context.ts';
import { hostVmm } from './vm-host.ts';
import type { ServeOptions } from './vm-program.ts';

/**
 * Resolves after vmm.shutdown.
 * @throws SysError - the socket of the API is not to be had
 */
export async function serveVms(context: CliContext, version: string, options: ServeOptions): Promise<void> {
  const input = () => context.stdin;
  await hostVmm(context, { ...options, version, endsWithGuest: false, input }, async (host) => {
    await host.unlessInterrupted(host.serveApi());
    return host.unlessInterrupted(host.vmm.ended);
  });
}
