/** From a device of the configuration to a device that a transport can carry. */

import type { CheckedDisk, CheckedFs, CheckedNet, CheckedVsock } from '../check-config.ts';
import type { DeviceOptions } from './attach.ts';
import { openDisk } from './blk.ts';
import { openFs } from './fs.ts';
import { openNet } from './net.ts';
import type { VhostUserDevice } from './vhost-user-device.ts';
import { openVsock } from './vsock.ts';

export type DeviceDescription =
  | { readonly kind: 'disk'; readonly config: CheckedDisk }
  | { readonly kind: 'net'; readonly config: CheckedNet }
  | { readonly kind: 'fs'; readonly config: CheckedFs }
  | { readonly kind: 'vsock'; readonly config: CheckedVsock };

/**
 * Connects to the back end of a device and finds out what it has.
 * @throws VmConfigError - the configuration cannot be, by itself or with this back end
 * @throws VmError - the back end is not there, goes away, or says things that cannot be
 */
export function openDevice(device: DeviceDescription, options: DeviceOptions): Promise<VhostUserDevice> {
  const withLayout = { ...options, packed: device.config.packed === true };
  switch (device.kind) {
    case 'disk':
      return openDisk(device.config, withLayout);
    case 'net':
      return openNet(device.config, withLayout);
    case 'fs':
      return openFs(device.config, withLayout);
    case 'vsock':
      return openVsock(device.config, withLayout);
  }
}
