/** `ringside vm run`: one machine, from its configuration to the shutdown of its guest. */

import { Readable } from 'node:stream';
import { type CheckedConfig, checkConfig } from '../vmm/check-config.ts';
import { VmConfigError } from '../vmm/errors.ts';
import type { VmmEnd } from '../vmm/vmm.ts';
import type { CliContext } from './context.ts';
import { UsageError } from './quantity.ts';
import { Terminal } from './terminal.ts';
import { hostVmm } from './vm-host.ts';
import { inOptionWords, toVmConfig } from './vm-options.ts';
import type { RunOptions } from './vm-program.ts';

/**
 * Resolves when the guest has shut down or migrated away, or when the user has left it.
 * @throws UsageError, VmConfigError - the machine that was asked for cannot be
 * @throws SysError, VmError - the host or a back end refuses; the guest cannot go on
 */
export async function runVm(context: CliContext, version: string, options: RunOptions): Promise<void> {
  const config = checkOptions(options);
  // A guest that has no terminal leaves standard input alone.
  const terminal = config.serial.mode === 'Tty' ? new Terminal(context.stdin, context.stderr) : undefined;
  const forget = context.host.onExit(() => terminal?.restore());
  const input = () => terminal?.input ?? Readable.from([]);
  let end: VmmEnd | undefined;
  try {
    await hostVmm(context, { ...options, version, endsWithGuest: true, input }, async (host) => {
      const { vmm, serveApi, unlessInterrupted } = host;
      await unlessInterrupted(vmm.create(config).then(() => vmm.boot()));
      terminal?.enter();
      await unlessInterrupted(serveApi());
      const ends = terminal === undefined ? [vmm.ended] : [vmm.ended, terminal.left.then(() => undefined)];
      end = await unlessInterrupted(Promise.race(ends));
      return end;
    });
  } finally {
    terminal?.restore();
    forget();
  }
  if (end?.reason === 'migrated') context.stderr.write('ringside: the guest has migrated away\n');
}

/** @throws UsageError */
function checkOptions(options: RunOptions): CheckedConfig {
  try {
    return checkConfig(toVmConfig(options));
  } catch (error) {
    if (!(error instanceof VmConfigError)) throw error;
    throw new UsageError(inOptionWords(error.message));
  }
}
