/** The configuration of a machine that is there, changed: devices added, removed and found elsewhere, memory. Pure. */

import { VIRTIO_BLK_SECTOR_BYTES } from '../../protocol/virtio/blk.ts';
import type { RestoredDevice, VmResize, VmResizeDisk } from '../api/vmm-control.ts';
import { type CheckedConfig, checkConfig } from './check-config.ts';
import type { DiskConfig, FsConfig, NetConfig, VsockConfig } from './config.ts';
import { fail, HOTPLUG_BLOCK_BYTES } from './config-limits.ts';
import type { DeviceDescription } from './devices/open.ts';
import { VmConfigError, VmConflictError, VmNotFoundError } from './errors.ts';
import { describeDevices } from './slots/plan.ts';

/** A device that is to be added, not checked yet. */
export type NewDevice =
  | { readonly kind: 'disk'; readonly config: DiskConfig }
  | { readonly kind: 'net'; readonly config: NetConfig }
  | { readonly kind: 'fs'; readonly config: FsConfig }
  | { readonly kind: 'vsock'; readonly config: VsockConfig };

/** @throws VmNotFoundError - none has this id */
export function findDevice(config: CheckedConfig, id: string): DeviceDescription {
  const found = describeDevices(config).find((device) => device.config.id === id);
  if (found === undefined)
    throw new VmNotFoundError(`no disk, net, fs or vsock device has the id ${JSON.stringify(id)}`);
  return found;
}

/** Where the sentences about the last device of its kind begin, in `checkConfig`. */
function pathOf(config: CheckedConfig, kind: NewDevice['kind']): string {
  switch (kind) {
    case 'disk':
      return `disks[${config.disks.length}]`;
    case 'net':
      return `net[${config.net.length}]`;
    case 'fs':
      return `fs[${config.fs.length}]`;
    case 'vsock':
      return 'vsock';
  }
}

function append(config: CheckedConfig, device: NewDevice): CheckedConfig {
  switch (device.kind) {
    case 'disk':
      return checkConfig({ ...config, disks: [...config.disks, device.config] });
    case 'net':
      return checkConfig({ ...config, net: [...config.net, device.config] });
    case 'fs':
      return checkConfig({ ...config, fs: [...config.fs, device.config] });
    case 'vsock':
      return checkConfig({ ...config, vsock: device.config });
  }
}

/**
 * The configuration with one more device, and that device with its defaults and its id.
 * @throws VmConflictError - the id is taken; there is a vsock device
 * @throws VmConfigError - the device cannot be, by itself or beside the others; the sentence names fields of the device
 */
export function addDevice(
  config: CheckedConfig,
  device: NewDevice,
): { readonly config: CheckedConfig; readonly added: DeviceDescription } {
  const { id } = device.config;
  const others = describeDevices(config);
  if (id !== undefined && others.some((other) => other.config.id === id)) {
    throw new VmConflictError(`id: "${id}" is the id of another device`);
  }
  if (device.kind === 'vsock' && config.vsock !== undefined) {
    throw new VmConflictError(`there is a vsock device already, ${config.vsock.id}; one is possible`);
  }
  try {
    const changed = append(config, device);
    const ids = new Set(others.map((other) => other.config.id));
    const added = describeDevices(changed).find((each) => !ids.has(each.config.id));
    if (added === undefined) throw new Error('a device was added and is not there');
    return { config: changed, added };
  } catch (error) {
    if (!(error instanceof VmConfigError)) throw error;
    const path = pathOf(config, device.kind);
    throw new VmConfigError(error.message.replace(`${path}: `, '').replaceAll(`${path}.`, ''));
  }
}

/**
 * The configuration with `desired_ram` bytes of memory altogether.
 * @throws VmConfigError - it is less than the machine boots with, more than was reserved, or no whole number of blocks
 */
export function resizeMemory(config: CheckedConfig, { desired_ram, desired_vcpus }: VmResize): CheckedConfig {
  const { boot_vcpus } = config.cpus;
  if (desired_vcpus !== undefined && desired_vcpus !== boot_vcpus) {
    fail(`desired_vcpus: ${desired_vcpus} is not boot_vcpus (${boot_vcpus}), and vCPUs are not hotplugged`);
  }
  if (desired_ram === undefined) {
    if (desired_vcpus === undefined) fail('desired_ram is missing');
    return config;
  }
  const { size, hotplug_size } = config.memory;
  const hotplugged_size = desired_ram - size;
  if (hotplugged_size < 0) fail(`desired_ram: ${desired_ram} is below the ${size} of memory.size, which stay`);
  if (hotplugged_size > hotplug_size) {
    fail(`desired_ram: ${desired_ram} is above ${size + hotplug_size}, which are memory.size and memory.hotplug_size`);
  }
  if (hotplugged_size % HOTPLUG_BLOCK_BYTES !== 0) {
    fail(`desired_ram: ${desired_ram} is not memory.size (${size}) and a multiple of ${HOTPLUG_BLOCK_BYTES} bytes`);
  }
  return { ...config, memory: { ...config.memory, hotplugged_size } };
}

/** @throws VmNotFoundError, VmConfigError - there is no such disk, or the size of its image is not the VMM's to change */
export function checkDiskResize(config: CheckedConfig, { id, desired_size }: VmResizeDisk): void {
  const device = findDevice(config, id);
  if (device.kind !== 'disk') fail(`id: ${id} is no disk`);
  if (device.config.path === undefined) fail(`id: the size of ${id} is for the back end behind its socket to decide`);
  if (device.config.readonly) fail(`id: ${id} is readonly`);
  if (desired_size % VIRTIO_BLK_SECTOR_BYTES !== 0) {
    fail(`desired_size: ${desired_size} is not a multiple of ${VIRTIO_BLK_SECTOR_BYTES} bytes`);
  }
}

/** The field that says where a device is found on its host, in requests. */
function placeOf({ config }: DeviceDescription): 'socket' | 'path' | 'tap' {
  if ('path' in config && config.path !== undefined) return 'path';
  return 'tap' in config && config.tap !== undefined ? 'tap' : 'socket';
}

/** Fields of a device's configuration, for where it is found now. @throws VmConfigError - it is not found in this way */
function relocate(device: DeviceDescription, where: RestoredDevice): Readonly<Record<string, string>> {
  const { id, ...places } = where;
  const own = placeOf(device);
  const value = places[own];
  const [other] = Object.keys(places).filter((name) => name !== own);
  if (value === undefined || other !== undefined) {
    throw new VmConfigError(`devices: ${id}: ${other ?? 'nothing'} is given, and its ${own} is needed`);
  }
  const isVhostSocket = own === 'socket' && (device.kind === 'disk' || device.kind === 'net');
  return { [isVhostSocket ? 'vhost_socket' : own]: value };
}

/**
 * The configuration of a machine that comes from elsewhere, with its back ends where they are here.
 * @throws VmNotFoundError - no device has such an id
 * @throws VmConfigError - a device is not found in this way
 */
export function addressDevices(config: CheckedConfig, devices: readonly RestoredDevice[]): CheckedConfig {
  const changes = new Map<string, Readonly<Record<string, string>>>();
  for (const device of devices) {
    if (changes.has(device.id)) throw new VmConfigError(`devices: ${device.id} is there twice`);
    changes.set(device.id, relocate(findDevice(config, device.id), device));
  }
  const change = <T extends { readonly id: string }>(device: T): T => ({ ...device, ...changes.get(device.id) });
  const { vsock, ...others } = config;
  return checkConfig({
    ...others,
    disks: config.disks.map(change),
    net: config.net.map(change),
    fs: config.fs.map(change),
    ...(vsock === undefined ? {} : { vsock: change(vsock) }),
  });
}
