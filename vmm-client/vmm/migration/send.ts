/** Sends a machine of this process to another VMM. */

import type { Socket } from 'node:net';
import type { CheckedConfig } from '../check-config.ts';
import { VmConfigError } from '../errors.ts';
import type { LongOperation } from '../long-operation.ts';
import type { Machine } from '../machine.ts';
import { dropDevices } from '../slots/plan.ts';
import type { PeerAddress } from '../urls.ts';
import { Channel } from './channel.ts';
import { connectPeer } from './connect.ts';
import { refuseNamedMemory } from './named-memory.ts';
import { Sender, type SendOptions } from './sender.ts';
// What the machine loads when it stands still: a guest is not to wait for that.
import '../state/processors-state.ts';

/** How long a peer may be silent, or take nothing. */
export const SILENCE_MS = 30_000;

/**
 * Kept when the destination has the guest: the machine is then to be closed.
 * @throws UndecidedError - nobody knows; the machine is suspended
 * @throws VmConfigError, VmError - it failed or was cancelled; the machine goes on as before
 */
export async function sendMachine(
  machine: Machine,
  config: CheckedConfig,
  to: PeerAddress,
  { paused, ...options }: SendOptions & { readonly paused: boolean },
  operation: LongOperation,
): Promise<void> {
  refuseNamedMemory(config);
  if (options.isMemoryShared) refuseFiles(config);
  await machine.holdMemory(true);
  try {
    const channel = new Channel(await dial(machine, to, options, operation), SILENCE_MS);
    const { layout } = machine;
    // The guest may have let go of a device while the destination was dialled.
    const here = dropDevices(config, (id) => !layout.slots.has(id));
    await new Sender(machine, channel, options, operation).run({ config: here, layout, isRunning: !paused });
  } finally {
    await machine.holdMemory(false);
  }
}

/** Connects to the destination, and hands memory over where that is wanted. */
async function dial(
  machine: Machine,
  to: PeerAddress,
  { isMemoryShared }: SendOptions,
  { signal }: LongOperation,
): Promise<Socket> {
  const memory = isMemoryShared ? machine.duplicateMemory() : [];
  try {
    return await connectPeer(
      to,
      signal,
      memory.map(({ fd }) => fd),
    );
  } finally {
    for (const each of memory) each.close();
  }
}

/** @throws VmConfigError - RAM is in files, whose size nobody has sealed */
function refuseFiles({ memory: { file } }: CheckedConfig): void {
  if (file === undefined) return;
  throw new VmConfigError(`local: memory.file is ${file}, and only memory without a file is handed over`);
}
