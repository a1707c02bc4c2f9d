/**
 * The check that interop tests share: a guest makes a file system and a file of random data, and the host finds both
 * in the image, by e2fsprogs and not by the daemon under test.
 */

import { checkExtImage, sha256InExtImage } from '../image.ts';
import type { PeerName } from '../peers.ts';
import type { Guest } from './guest.ts';

/** Programs that the guest needs, and the host. */
export const fileSystemPrograms: readonly PeerName[] = ['mkfs.ext4'];
export const fileSystemPeers: readonly PeerName[] = [...fileSystemPrograms, 'debugfs', 'e2fsck'];

/** Makes a file system on `device`, writes a file of random data to it and unmounts it. Returns the file's SHA-256. */
export const writeRandomFile = async (guest: Guest, device: string, sizeMiB: number): Promise<string> => {
  const output = await guest.run(
    `mkfs.ext4 -q -F ${device}
    mount -t ext4 ${device} /mnt
    dd if=/dev/urandom of=/mnt/random bs=1M count=${sizeMiB} 2>/dev/null
    sha256sum </mnt/random
    umount /mnt`,
    90_000,
  );
  return output.slice(0, 64);
};

/** SHA-256 of that file, read from the device. */
export const readRandomFile = async (guest: Guest, device: string): Promise<string> => {
  // What the guest has cached would prove nothing.
  const output = await guest.run(
    `echo 3 >/proc/sys/vm/drop_caches
    mount -t ext4 ${device} /mnt
    sha256sum </mnt/random
    umount /mnt`,
    90_000,
  );
  return output.slice(0, 64);
};

/** SHA-256 of that file in the image of an unmounted file system. @throws Error - when e2fsck objects to it. */
export const randomFileInImage = (image: string): string => {
  checkExtImage(image);
  return sha256InExtImage(image, '/random');
};
