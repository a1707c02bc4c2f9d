/** Connecting to a device's back end, whatever kind it is, so that all that can be wrong ends in one clear sentence. */

import { VhostUserFrontend } from '../../frontend/frontend.ts';
import { VmConfigError, VmError } from '../errors.ts';
import { isPeersFault } from './blame.ts';
import { checkTraits, checkVersion, type DeviceProfile, traitsOf } from './profile.ts';
import { VhostUserDevice, type VhostUserDeviceOptions } from './vhost-user-device.ts';

export interface DeviceOptions extends VhostUserDeviceOptions {
  /** Where the back end listens, for a device whose configuration does not say because this VMM started it. */
  readonly socket?: string;
  /** How long to wait for somebody to listen at the socket, in milliseconds. Default 0: not at all. */
  readonly waitMs?: number;
  /** How long the back end may take for one answer, in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** How long to dial again after the back end went away, in milliseconds. Default: as long as the machine lives. */
  readonly reconnectMs?: number;
}

const DEFAULT_RECONNECT_MS = Number.POSITIVE_INFINITY;

/**
 * Connects to the back end at `socket` and asks `describe` what it makes of it.
 * @throws VmConfigError - `describe` found that the configuration cannot be
 * @throws VmError - anything else; the sentence names device and socket
 */
export async function attach(
  name: string,
  socket: string | undefined,
  options: DeviceOptions,
  describe: (frontend: VhostUserFrontend) => DeviceProfile | Promise<DeviceProfile>,
): Promise<VhostUserDevice> {
  const path = socket ?? options.socket;
  if (path === undefined) throw new VmConfigError(`${name}: no socket of a vhost-user back end is given`);
  let frontend: VhostUserFrontend | undefined;
  try {
    frontend = await VhostUserFrontend.connect(path, {
      waitMs: options.waitMs ?? 0,
      reconnectMs: options.reconnectMs ?? DEFAULT_RECONNECT_MS,
      ...(options.timeoutMs === undefined ? {} : { timeoutMs: options.timeoutMs }),
      ...(options.iommu === undefined ? {} : { iommu: options.iommu }),
    });
    frontend.on('accessFail', ({ iova, permission }) => options.iommu?.noteFault(iova, permission));
    checkVersion(frontend.capabilities.features);
    checkTraits(frontend, traitsOf(options));
    const profile = await describe(frontend);
    return new VhostUserDevice(profile, frontend, await profile.readConfig(frontend), options);
  } catch (error) {
    frontend?.close();
    if (!isPeersFault(error)) throw error;
    throw new VmError(`${name}: back end at ${path}: ${error.message}`, { cause: error });
  }
}
