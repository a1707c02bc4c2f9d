/**
 * What a machine has from boot to shutdown: RAM, what is left of a PC, and slots with devices, those that the VMM serves
 * itself among them. Built as a configuration says, or as a machine was laid out that goes on here. Processors are no part
 * of it: a reset replaces them.
 */

import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import type { Bus } from './bus.ts';
import { type CheckedConfig, wantsIommu } from './check-config.ts';
import type { VirtioIommu } from './devices/iommu/iommu.ts';
import type { VirtioMem } from './devices/mem/mem.ts';
import { GuestRam, type RamRange, ramRanges } from './guest-ram.ts';
import { PcDevices, type PcOptions } from './legacy/pc-devices.ts';
import { MemoryPieces } from './memory-pieces.ts';
import type { MachineLayout } from './migration/offer.ts';
import { type PlannedDevice, type PlannedLocal, placeDevices, planDevices } from './slots/plan.ts';
import type { DaemonSupervisor } from './supervisor.ts';
import { VirtioSlots } from './virtio-slots.ts';

/** What a machine needs of the process that it runs in. */
export interface MachineEnvironment extends Pick<PcOptions, 'log' | 'input' | 'output'> {
  /** Starts the daemons of devices that were configured by a file or an interface. */
  readonly supervisor: Pick<DaemonSupervisor, 'start'>;
}

/** A machine that ran before, elsewhere or at another time. */
export interface MachineOrigin {
  readonly layout: MachineLayout;
  /** It still is elsewhere, with its devices: what only one process can have is taken when it goes on here. */
  readonly incoming: boolean;
  /** Its RAM itself, one for each range of the layout: the machine's from now on. None where it is to be filled. */
  readonly memory?: readonly OwnedFd[];
}

export interface HardwareOptions extends MachineEnvironment, Pick<PcOptions, 'onReset' | 'onShutdown'> {
  /** Bytes that a guest physical address can reach. */
  readonly addressLimit: number;
  /** Where exits go. */
  readonly ports: Bus;
  readonly memory: Bus;
}

export interface Hardware {
  readonly ram: GuestRam;
  readonly pieces: MemoryPieces;
  readonly pc: PcDevices;
  readonly slots: VirtioSlots;
  /** Where memory can come and go. */
  readonly mem: VirtioMem | undefined;
  /** Where a device is behind one. */
  readonly iommu: VirtioIommu | undefined;
}

/**
 * Resolves when all of it is there; no processor knows of it yet.
 * @throws VmConfigError, SysError, VmError - some of it cannot be had; nothing is left of the rest
 */
export async function buildHardware(
  config: CheckedConfig,
  origin: MachineOrigin | undefined,
  options: HardwareOptions,
): Promise<Hardware> {
  const { addressLimit, log } = options;
  const ram = await openRam(config, origin, addressLimit);
  let pc: PcDevices | undefined;
  let slots: VirtioSlots | undefined;
  try {
    const pieces = new MemoryPieces(ram, log);
    pc = new PcDevices(options.ports, { ...options, serial: config.serial, isContinued: origin !== undefined });
    const { iommu, mem, planned } = await planLocal(config, origin, ram, pieces, options);
    const all: readonly PlannedDevice[] = [...planDevices(config, origin?.incoming), ...planned];
    slots = await VirtioSlots.open(origin === undefined ? all : placeDevices(all, origin.layout.slots), {
      ...options,
      ram,
      bus: options.memory,
      iommu,
    });
    pieces.tell(slots);
    // Of pieces that were there before the slots were, the devices hear from their drivers' start on, but for the IOMMU.
    for (const region of ram.regions) await iommu?.memoryAdded(region);
    return { ram, pieces, pc, slots, mem, iommu };
  } catch (error) {
    await slots?.close();
    pc?.close();
    ram.close();
    throw error;
  }
}

/** The devices that the VMM serves itself, and their plans. Their code is loaded where there are any. */
async function planLocal(
  config: CheckedConfig,
  origin: MachineOrigin | undefined,
  ram: GuestRam,
  pieces: MemoryPieces,
  { addressLimit, log }: HardwareOptions,
): Promise<Pick<Hardware, 'iommu' | 'mem'> & { readonly planned: readonly PlannedLocal[] }> {
  const planned: PlannedLocal[] = [];
  let iommu: VirtioIommu | undefined;
  let mem: VirtioMem | undefined;
  // A guest that goes on keeps its IOMMU, also when the last device behind it is gone.
  if (wantsIommu(config) || origin?.layout.slots.has('__iommu') === true) {
    const { planIommu } = await import('./devices/iommu/plan.ts');
    const plan = planIommu(ram, log);
    iommu = plan.iommu;
    planned.push(plan.planned);
  }
  if (config.memory.hotplug_size > 0) {
    const { planMem } = await import('./devices/mem/plan.ts');
    const isContinued = origin !== undefined;
    const plan = planMem({ ram, pieces, config: config.memory, addressLimit, isContinued, log });
    mem = plan.mem;
    planned.push(plan.planned);
  }
  return { iommu, mem, planned };
}

/** @throws VmConfigError, SysError, VmError - it cannot be had; what was handed over is closed */
async function openRam(
  config: CheckedConfig,
  origin: MachineOrigin | undefined,
  addressLimit: number,
): Promise<GuestRam> {
  const given = new Map(origin?.memory?.map((fd, n) => [origin.layout.ranges[n]?.guestAddress, fd]));
  try {
    return GuestRam.allocate(config.memory, addressLimit, await piecesOf(config, origin, addressLimit), given);
  } catch (error) {
    for (const fd of origin?.memory ?? []) fd.close();
    throw error;
  }
}

/** Where memory was that had been plugged into a machine. @throws VmError - there can be none here */
async function piecesOf(
  { memory }: CheckedConfig,
  origin: MachineOrigin | undefined,
  addressLimit: number,
): Promise<readonly RamRange[]> {
  if (origin === undefined) return [];
  const { checkPieces, hotplugRegion } = await import('./devices/mem/region.ts');
  const booted = ramRanges(memory.size);
  const ranges = origin.layout.ranges.map(({ guestAddress, length }) => ({ start: guestAddress, length }));
  const added = ranges.filter(({ start }) => !booted.some((range) => range.start === start));
  return checkPieces(added, memory.hotplug_size > 0 ? hotplugRegion(memory, addressLimit) : undefined);
}
