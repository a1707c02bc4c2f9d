/** The memory device of a machine as a device for its slot. */

import type { CheckedConfig } from '../../check-config.ts';
import type { GuestRam } from '../../guest-ram.ts';
import { MEM_SLOT } from '../../layout.ts';
import type { Log } from '../../log.ts';
import type { PlannedLocal } from '../../slots/plan.ts';
import { LocalDevice } from '../local/local-device.ts';
import { VirtioMem } from './mem.ts';
import { hotplugRegion } from './region.ts';
import type { Pieces } from './region-pieces.ts';

export interface MemPlanOptions {
  readonly ram: GuestRam;
  readonly pieces: Pieces;
  readonly config: CheckedConfig['memory'];
  /** Bytes that a guest physical address can reach. */
  readonly addressLimit: number;
  /** It goes on where it was elsewhere: what is requested is in its state. */
  readonly isContinued: boolean;
  readonly log: Pick<Log, 'warn'>;
}

/**
 * The device and what is planned for its slot.
 * @throws VmConfigError - the host's processors do not reach that far
 */
export function planMem({ ram, pieces, config, addressLimit, isContinued, log }: MemPlanOptions): {
  readonly mem: VirtioMem;
  readonly planned: PlannedLocal;
} {
  const mem = new VirtioMem({
    region: hotplugRegion(config, addressLimit),
    pieces,
    requestedBytes: isContinued ? 0 : config.hotplugged_size,
    log: (line) => log.warn(line),
  });
  const open = async (): Promise<LocalDevice> => {
    await mem.open();
    return new LocalDevice(mem, { ram });
  };
  return { mem, planned: { kind: 'mem', id: '__mem', slot: MEM_SLOT, open } };
}
