import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import {
  fileSystemPeers,
  fileSystemPrograms,
  randomFileInImage,
  readRandomFile,
  writeRandomFile,
} from '../support/guest/file-system.ts';
import { bootQemu, type QemuGuest, qemuPeers } from '../support/guest/qemu.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;

describeWithPeers([...qemuPeers, ...fileSystemPeers], 'QEMU microvm, vhost-user-blk on virtio-mmio', () => {
  const cleanup = cleanupAfterAll();
  let guest: QemuGuest;
  let disk: BlkBackend;
  let idleFds: number;

  beforeAll(async () => {
    disk = await BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'disk'), 64 * MiB) });
    idleFds = disk.fdCount();
    guest = await bootQemu(cleanup, { machine: 'microvm', sockets: [disk.socket], programs: fileSystemPrograms });
  });

  it('is on virtio-mmio', async () => {
    // LNRO0005 is the ACPI name of a virtio-mmio transport.
    expect(await guest.run('readlink -f /sys/block/vda')).toMatch(/LNRO0005.*\/virtio0\/block\/vda$/);
  });

  it('carries a file system and a file of random data to the host', async () => {
    const sum = await writeRandomFile(guest, '/dev/vda', 24);
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    expect(randomFileInImage(disk.image)).toBe(sum);
  });

  it('is done with a guest that is off: the daemon runs and holds no descriptor of it', async () => {
    await guest.powerOff();
    await expect.poll(() => disk.fdCount(), { timeout: 20_000 }).toBe(idleFds);
    expect(disk.running).toBe(true);
  });
});
