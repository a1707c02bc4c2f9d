/**
 * A new size for a disk whose image this VMM was told of. The image grows, and the daemon looks at it again (SIGHUP), which
 * the guest hears of. It does not shrink: what is behind the new end would be lost, and a guest with a file system there
 * is not asked before. A block device has the size that its own tools gave it, and is only looked at again.
 */

import { open } from 'node:fs/promises';
import { VmConfigError, VmError } from '../errors.ts';
import type { PlannedDevice } from '../slots/plan.ts';
import type { SupervisedDaemon } from '../supervisor.ts';

/**
 * Resizes the disk that `daemon` serves, and tells that.
 * @throws VmConfigError - it is no disk with an image of ours, or has more bytes
 * @throws VmError - the host refuses
 */
export async function resizeDisk(
  planned: PlannedDevice,
  daemon: SupervisedDaemon | undefined,
  bytes: number,
): Promise<void> {
  const path = planned.kind === 'disk' && planned.device.kind === 'disk' ? planned.device.config.path : undefined;
  if (path === undefined || daemon === undefined) {
    throw new VmConfigError(`device "${planned.id}" is no disk with a path: its size is for its back end to decide`);
  }
  const name = `disk "${planned.id}"`;
  try {
    await grow(name, path, bytes);
  } catch (error) {
    if (error instanceof VmConfigError) throw error;
    const { message } = error as Error;
    throw new VmError(`${name}: ${path} cannot be resized to ${bytes} bytes: ${message}`, { cause: error });
  }
  await daemon.reload();
}

async function grow(name: string, path: string, bytes: number): Promise<void> {
  const file = await open(path, 'r+');
  try {
    const stat = await file.stat();
    if (!stat.isFile()) return;
    if (bytes < stat.size) {
      throw new VmConfigError(`${name}: desired_size is ${bytes}, it has ${stat.size} bytes, and does not shrink`);
    }
    await file.truncate(bytes);
  } finally {
    await file.close();
  }
}
