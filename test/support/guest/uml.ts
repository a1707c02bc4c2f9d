/**
 * User-mode Linux: a real kernel as an ordinary process, with a vhost-user front end of its own (virtio_uml). Boots in
 * about a second and needs neither KVM nor root.
 */

import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath } from '../peers.ts';
import { Guest } from './guest.ts';
import { buildInitramfs } from './initramfs.ts';

/** What a test needs for bootUml. */
export const umlPeers: readonly PeerName[] = ['user-mode-linux', 'user-mode-linux modules', 'static busybox'];

const VIRTIO_ID_NET = 1;
const VIRTIO_ID_BLOCK = 2;
const VIRTIO_ID_VSOCK = 19;

export interface UmlOptions {
  /** Sockets of vhost-user-blk back ends; the first becomes /dev/vda. */
  readonly sockets?: readonly string[];
  /** Sockets of vhost-user-net back ends; the first becomes eth0. */
  readonly netSockets?: readonly string[];
  /** Socket of a vhost-user-vsock back end. */
  readonly vsockSocket?: string;
  readonly programs?: readonly PeerName[];
  /** Paths of more programs, static ones. */
  readonly staticPrograms?: readonly string[];
  readonly memoryMiB?: number;
  readonly bootDeadlineMs?: number;
}

/** Boots a guest that `cleanup` kills at the latest. */
export const bootUml = async (cleanup: Cleanup, options: UmlOptions): Promise<Guest> => {
  const initramfs = buildInitramfs({
    modules: peerPath('user-mode-linux modules'),
    network: options.netSockets !== undefined,
    sockets: options.vsockSocket !== undefined,
    ...(options.programs && { programs: options.programs }),
    ...(options.staticPrograms && { staticPrograms: options.staticPrograms }),
  });
  const child = new Child(
    peerPath('user-mode-linux'),
    [
      `mem=${options.memoryMiB ?? 256}M`,
      `initrd=${initramfs}`,
      'con=null',
      'con0=fd:0,fd:1',
      'ssl=null',
      'quiet',
      'loglevel=2',
      'panic=-1',
      ...(options.sockets ?? []).map((socket) => `virtio_uml.device=${socket}:${VIRTIO_ID_BLOCK}`),
      ...(options.netSockets ?? []).map((socket) => `virtio_uml.device=${socket}:${VIRTIO_ID_NET}`),
      ...(options.vsockSocket === undefined ? [] : [`virtio_uml.device=${options.vsockSocket}:${VIRTIO_ID_VSOCK}`]),
    ],
    // It keeps its control files in the home directory; they are to vanish with the test.
    { ...process.env, HOME: cleanup.directory() },
  );
  cleanup.add(() => child.stop());
  const guest = new Guest(child);
  await guest.waitUntilReady(options.bootDeadlineMs ?? 30_000);
  return guest;
};
