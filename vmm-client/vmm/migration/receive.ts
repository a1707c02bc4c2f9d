/** Waits for a machine of another VMM, and takes it over. */

import type { CheckedConfig } from '../check-config.ts';
import { VmError } from '../errors.ts';
import type { LongOperation } from '../long-operation.ts';
import { Machine, type MachineEnvironment } from '../machine.ts';
import type { PeerAddress } from '../urls.ts';
import { acceptPeer } from './accept.ts';
import { Channel } from './channel.ts';
import { refuseNamedMemory } from './named-memory.ts';
import type { MachineLayout } from './offer.ts';
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
  const { socket, memory } = await acceptPeer(from, {
    signal: operation.signal,
    onListening: () => operation.report({ phase: 'waiting' }),
    warn: (line) => environment.log.warn(line),
  });
  const build = async (offered: CheckedConfig, layout: MachineLayout) => {
    const config = adjust(offered);
    refuseNamedMemory(config);
    const { length } = layout.ranges;
    if (memory.length > 0 && memory.length !== length) {
      throw new VmError(`the peer hands ${memory.length} descriptors over for ${length} ranges of RAM`);
    }
    const origin = { layout, incoming: true, memory };
    return { config, machine: await Machine.open(config, origin, environment, onEnd) };
  };
  try {
    return await receiveGuest(new Channel(socket, SILENCE_MS), build, operation, memory.length > 0);
  } catch (error) {
    // What a machine took is closed with it.
    for (const each of memory) each.close();
    throw error;
  }
}
