/** Sends a machine of this process to another VMM. */

import type { CheckedConfig } from '../check-config.ts';
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
  const channel = new Channel(await connectPeer(to, operation.signal), SILENCE_MS);
  await machine.holdMemory(true);
  try {
    const { layout } = machine;
    // The guest may have let go of a device while the destination was dialled.
    const here = dropDevices(config, (id) => !layout.slots.has(id));
    await new Sender(machine, channel, options, operation).run({ config: here, layout, isRunning: !paused });
  } finally {
    await machine.holdMemory(false);
  }
}
