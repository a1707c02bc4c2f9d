/**
 * The devices of a configuration as slots are filled with them: which daemon has to be started for each, and which slot
 * it has to have. Pure; loads no code of devices.
 */

import type { CheckedConfig } from '../check-config.ts';
import { type DaemonCommand, diskDaemon, netDaemon } from '../daemon-commands.ts';
import type { DeviceDescription } from '../devices/open.ts';
import type { VirtioDevice } from '../devices/virtio-device.ts';
import { VmError } from '../errors.ts';

/** A device that a vhost-user back end serves. */
export interface PlannedRemote {
  readonly kind: DeviceDescription['kind'];
  readonly id: string;
  /** Undefined: any that is free. */
  readonly slot?: number;
  readonly device: DeviceDescription;
  /** What has to be started for it, where the configuration names no socket. */
  readonly daemon: DaemonCommand | undefined;
}

/** A device that the VMM serves itself. It has its slot as long as the machine is there. */
export interface PlannedLocal {
  readonly kind: 'iommu' | 'mem';
  readonly id: string;
  readonly slot: number;
  open(): VirtioDevice | Promise<VirtioDevice>;
}

export type PlannedDevice = PlannedRemote | PlannedLocal;

export const isLocal = (planned: PlannedDevice): planned is PlannedLocal =>
  planned.kind === 'iommu' || planned.kind === 'mem';

export const isBehindIommu = (planned: PlannedDevice): boolean => !isLocal(planned) && planned.device.config.iommu;

/** Every device of a configuration, in the order of the slots that they get at vm.boot. */
export function describeDevices({ disks, net, fs, vsock }: CheckedConfig): DeviceDescription[] {
  return [
    ...disks.map((config) => ({ kind: 'disk' as const, config })),
    ...net.map((config) => ({ kind: 'net' as const, config })),
    ...fs.map((config) => ({ kind: 'fs' as const, config })),
    ...(vsock === undefined ? [] : [{ kind: 'vsock' as const, config: vsock }]),
  ];
}

/** The configuration without the devices for which `isGone`; the same one where there is none. */
export function dropDevices(config: CheckedConfig, isGone: (id: string) => boolean): CheckedConfig {
  if (!describeDevices(config).some((device) => isGone(device.config.id))) return config;
  const { vsock, ...others } = config;
  return {
    ...others,
    disks: config.disks.filter(({ id }) => !isGone(id)),
    net: config.net.filter(({ id }) => !isGone(id)),
    fs: config.fs.filter(({ id }) => !isGone(id)),
    ...(vsock === undefined || isGone(vsock.id) ? {} : { vsock }),
  };
}

/** `incoming`: the guest that the device belongs to is still elsewhere. */
export function planDevice(device: DeviceDescription, incoming = false): PlannedRemote {
  const { kind, config } = device;
  return { kind, id: config.id, device, daemon: daemonOf(device, incoming) };
}

function daemonOf(device: DeviceDescription, incoming: boolean): DaemonCommand | undefined {
  if (device.kind === 'disk') {
    const { path, ...disk } = device.config;
    return path === undefined ? undefined : diskDaemon({ ...disk, path }, incoming);
  }
  if (device.kind !== 'net') return undefined;
  const { tap, ...net } = device.config;
  return tap === undefined ? undefined : netDaemon({ ...net, tap });
}

/** All devices of a configuration, in the order of their slots: disks, networks, file systems, vsock. */
export function planDevices(config: CheckedConfig, incoming = false): PlannedRemote[] {
  return describeDevices(config).map((device) => planDevice(device, incoming));
}

/**
 * The same devices, each at the slot that `slots` has for its id: where a guest knows it.
 * @throws VmError - there is none for one of them
 */
export function placeDevices(
  planned: readonly PlannedDevice[],
  slots: ReadonlyMap<string, number>,
): readonly PlannedDevice[] {
  return planned.map((device) => {
    const slot = slots.get(device.id);
    if (slot === undefined) throw new VmError(`device ${device.id}: the state of the machine has no slot for it`);
    if (isLocal(device) && device.slot !== slot) {
      throw new VmError(
        `device ${device.id}: the state of the machine has it in slot ${slot}, it is in ${device.slot}`,
      );
    }
    return { ...device, slot };
  });
}
