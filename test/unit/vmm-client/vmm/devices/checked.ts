/** Devices as a machine opens them: of a configuration that was checked, with its defaults. */

import {
  type CheckedDisk,
  type CheckedFs,
  type CheckedNet,
  type CheckedVsock,
  checkConfig,
} from '../../../../../vmm-client/vmm/check-config.ts';
import type { DiskConfig, FsConfig, NetConfig, VsockConfig } from '../../../../../vmm-client/vmm/config.ts';

const payload = { kernel: 'vmlinux' };

export const checkedDisk = (disk: DiskConfig): CheckedDisk =>
  checkConfig({ payload, disks: [disk] }).disks[0] as CheckedDisk;
export const checkedNet = (net: NetConfig): CheckedNet => checkConfig({ payload, net: [net] }).net[0] as CheckedNet;
export const checkedFs = (fs: FsConfig): CheckedFs => checkConfig({ payload, fs: [fs] }).fs[0] as CheckedFs;
export const checkedVsock = (vsock: VsockConfig): CheckedVsock => checkConfig({ payload, vsock }).vsock as CheckedVsock;
