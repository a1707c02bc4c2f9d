/**
 * What a VMM needs around it, whether it was started to run one machine or to serve requests: a log, daemons, the API, and
 * an end that leaves nothing behind.
 */

import { rmSync } from 'node:fs';
import type { Readable } from 'node:stream';
import type { ApiServer } from '../api/server.ts';
import type { DaemonCommand } from '../vmm/daemon-commands.ts';
import type { DaemonSupervisor } from '../vmm/supervisor.ts';
import { Vmm, type VmmEnd } from '../vmm/vmm.ts';
import type { CliContext } from './context.ts';
import { createLog } from './log.ts';
import type { HostOptions } from './vm-program.ts';

export interface VmHostSettings extends HostOptions {
  readonly version: string;
  readonly endsWithGuest: boolean;
  /** What serial ports in mode Tty read; asked for when there is one. */
  readonly input: () => Readable;
}

export interface VmHost {
  readonly vmm: Vmm;
  /** Serves the API, if there is to be one. It is loaded only now: that takes longer than to start a guest. @throws SysError */
  serveApi(): Promise<void>;
  /** What `promise` is kept with. @throws what interrupted the command, if that comes first */
  unlessInterrupted<T>(promise: Promise<T>): Promise<T>;
}

/** Runs `use` with a VMM, and takes everything down afterwards in every case. Returns what `use` returns. */
export async function hostVmm(
  context: CliContext,
  settings: VmHostSettings,
  use: (host: VmHost) => Promise<VmmEnd | undefined>,
): Promise<void> {
  const { version, endsWithGuest, input, apiSocket, logLevel, logFile } = settings;
  const { root, runtimeDirectory: directory, onExit } = context.host;
  const log = createLog({
    level: logLevel,
    isTTY: context.stderr.isTTY === true,
    ...(logFile === undefined ? {} : { file: logFile }),
  });
  // Loaded with the first daemon: a guest that needs none does not wait for the code.
  let supervisor: DaemonSupervisor | undefined;
  const start = async (command: DaemonCommand) => {
    const { DaemonSupervisor } = await import('../vmm/supervisor.ts');
    supervisor ??= new DaemonSupervisor({ root, directory, logLevel, log });
    return supervisor.start(command);
  };
  const vmm = new Vmm({
    version,
    log,
    supervisor: { start },
    endsWithGuest,
    output: context.stdout,
    get input() {
      return input();
    },
  });
  let api: ApiServer | undefined;
  const serveApi = async (): Promise<void> => {
    if (apiSocket === undefined) return;
    const { ApiServer } = await import('../api/server.ts');
    // A VMM that has its machine already will hardly be sent another one to check.
    api = await ApiServer.listen({ path: apiSocket, control: vmm, log, version, compileSchemas: !endsWithGuest });
  };
  const forget = onExit(() => {
    vmm.abandon();
    if (api !== undefined && apiSocket !== undefined) rmSync(apiSocket, { force: true });
  });
  const { unlessInterrupted, stopListening } = watchInterruption(context.interrupted);
  try {
    const end = await use({ vmm, serveApi, unlessInterrupted });
    if (end?.reason === 'error') throw end.error;
  } finally {
    stopListening();
    // Its answer would be waited for.
    vmm.cancel();
    await api?.close();
    forget();
    await vmm.close();
    await supervisor?.stop();
  }
}

function watchInterruption(signal: AbortSignal) {
  let onAbort: () => void = () => undefined;
  const interruption = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort);
  });
  // It may come when nobody waits, while everything is being taken down anyway.
  interruption.catch(() => undefined);
  return {
    unlessInterrupted: <T>(promise: Promise<T>): Promise<T> => Promise.race([promise, interruption]),
    stopListening: () => signal.removeEventListener('abort', onAbort),
  };
}
