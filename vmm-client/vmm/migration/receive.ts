/** Waits for a machine of another VMM, and takes it over. */

import type { CheckedConfig } from '../check-config.ts';
import type { LongOperation } from '../long-operation.ts';
import { Machine, type MachineEnvironment } from '../machine.ts';
import type { PeerAddress } from '../urls.ts';
import { Channel } from './channel.ts';
import { acceptPeer } from './connect.ts';
import { refuseNamedMemory } from './named-memory.ts';
import { type Received, receiveGuest } from './receiver.ts';
import { SILENCE_MS } from './send.ts';
// What the machine loads to go on: its guest is not to wait for that.
import '../legacy/pc-state.ts';
import '../slots/moving.ts';
import '../state/processors-state.ts';

/**
 * Kept when the guest is here: it runs, or its vCPUs are held where they were. `adjust` says what is to be different here.
 * @throws VmConfigError, VmError - nothing came of it, and nothing is left; what ran at the source goes on there
 */
export async function receiveMachine(
  from: PeerAddress,
  adjust: (config: CheckedConfig) => CheckedConfig,
  environment: MachineEnvironment,
  onEnd: () => void,
  operation: LongOperation,
): Promise<Received<Machine>> {
  const socket = await acceptPeer(from, operation.signal, () => operation.report({ phase: 'waiting' }));
  const channel = new Channel(socket, SILENCE_MS);
  return receiveGuest(
    channel,
    async (offered, layout) => {
      const config = adjust(offered);
      refuseNamedMemory(config);
      return { config, machine: await Machine.open(config, { layout, incoming: true }, environment, onEnd) };
    },
    operation,
  );
}
