/** Opening a planned device: its daemon, where it needs one, and the connection to its back end. */

import type { IoMappings } from '../../frontend/io-mappings.ts';
import type { DeviceMemory } from '../devices/vhost-user-device.ts';
import type { VirtioDevice } from '../devices/virtio-device.ts';
import type { Log } from '../log.ts';
import type { DaemonSupervisor, SupervisedDaemon } from '../supervisor.ts';
import { isBehindIommu, isLocal, type PlannedDevice } from './plan.ts';

/** A device and what was started for it. Owned by whoever opened it, until a slot is filled with it. */
export interface OpenedDevice {
  readonly planned: PlannedDevice;
  readonly device: VirtioDevice;
  readonly daemon: SupervisedDaemon | undefined;
}

/** The machine's IOMMU, as far as devices in slots are its endpoints. An endpoint's number is its slot. */
export interface SlotsIommu {
  /** What is mapped for the device of a slot. */
  endpoint(slot: number): IoMappings;
  /** The machine is reset. */
  systemReset(): void | Promise<void>;
}

export interface OpenOptions {
  readonly ram: DeviceMemory;
  readonly log: Log;
  readonly supervisor: Pick<DaemonSupervisor, 'start'>;
  readonly iommu?: SlotsIommu | undefined;
}

/**
 * Opens a device for a slot.
 * @throws VmConfigError, VmError, SysError - it cannot be had; nothing is left of it
 */
export async function openPlanned(
  planned: PlannedDevice,
  slot: number,
  { ram, log, supervisor, iommu }: OpenOptions,
): Promise<OpenedDevice> {
  if (isLocal(planned)) return { planned, device: await planned.open(), daemon: undefined };
  const mappings = isBehindIommu(planned) ? iommu?.endpoint(slot) : undefined;
  // Loaded only now, while the daemon starts: a guest without devices does not wait for their code.
  const code = import('../devices/open.ts');
  const daemon = planned.daemon === undefined ? undefined : await supervisor.start(planned.daemon);
  try {
    const options = {
      ram,
      log: (line: string) => log.warn(line),
      ...(daemon === undefined ? {} : { socket: daemon.socket }),
      ...(mappings === undefined ? {} : { iommu: mappings }),
    };
    return { planned, device: await (await code).openDevice(planned.device, options), daemon };
  } catch (error) {
    await daemon?.stop();
    throw error;
  }
}

/** Gives back what `openPlanned` returned. */
export async function closeOpened({ device, daemon }: OpenedDevice): Promise<void> {
  device.close();
  await daemon?.stop();
}

/** Opens all of them at once. @throws - what the first of those threw that cannot be had; nothing is left of the others */
export async function openAll(opening: readonly Promise<OpenedDevice>[]): Promise<OpenedDevice[]> {
  const results = await Promise.allSettled(opening);
  const opened = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed === undefined) return opened;
  await Promise.all(opened.map(closeOpened));
  throw failed.reason;
}
