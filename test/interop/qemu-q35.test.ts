import { truncateSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend, backendKind } from '../support/backend-process.ts';
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

describeWithPeers([...qemuPeers, ...fileSystemPeers], 'QEMU q35, vhost-user-blk-pci', () => {
  const cleanup = cleanupAfterAll();
  let guest: QemuGuest;
  let disk: BlkBackend;
  let plugged: BlkBackend;
  let diskFds: number;
  let pluggedFds: number;
  let sum: string;

  beforeAll(async () => {
    const directory = cleanup.directory();
    [disk, plugged] = await Promise.all([
      BlkBackend.start(cleanup, { image: createImage(join(directory, 'disk'), 128 * MiB), numQueues: 2 }),
      BlkBackend.start(cleanup, { image: createImage(join(directory, 'plugged'), 16 * MiB) }),
    ]);
    diskFds = disk.fdCount();
    pluggedFds = plugged.fdCount();
    guest = await bootQemu(cleanup, {
      machine: 'q35',
      cpus: 2,
      sockets: [disk.socket],
      diskProperties: 'num-queues=2',
      extra: ['-device', 'pcie-root-port,id=slot1,slot=1'],
      programs: fileSystemPrograms,
    });
  });

  it('gives each CPU of the guest a queue', async () => {
    expect(await guest.run('ls -1 /sys/block/vda/mq')).toBe('0\n1');
    await guest.run(
      'for cpu in 0 1; do taskset -c $cpu dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct; done',
    );
    const counts = await guest.run("awk '/virtio0-req/ { print $2 + $3 }' /proc/interrupts");
    expect(counts.split('\n').map((count) => Number(count) > 0)).toEqual([true, true]);
  });

  it('carries a file system and a file of random data to the host', async () => {
    sum = await writeRandomFile(guest, '/dev/vda', 24);
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    expect(randomFileInImage(disk.image)).toBe(sum);
  });

  it('serves the guest again after a system reset', async () => {
    await guest.reset();
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
  });

  it('is plugged in, used, pulled out and plugged in again', async () => {
    for (const round of [1, 2]) {
      await guest.plugDisk(`plugged${round}`, plugged.socket, 'slot1');
      await guest.waitUntil('[ -b /dev/vdb ]');
      const written = await writeRandomFile(guest, '/dev/vdb', 4);
      await guest.unplug(`plugged${round}`);
      await guest.waitUntil('[ ! -e /dev/vdb ]');
      expect(randomFileInImage(plugged.image)).toBe(written);
      await expect.poll(() => plugged.fdCount(), { timeout: 20_000 }).toBe(pluggedFds);
    }
  });

  it.skipIf(backendKind === 'qsd')('dials a QEMU that listens, and dials again', async () => {
    const directory = cleanup.directory();
    const image = createImage(join(directory, 'dialling'), 16 * MiB);
    const dialling = await BlkBackend.start(cleanup, { image, socket: join(directory, 'vmm.sock'), client: true });
    for (const round of [1, 2]) {
      await guest.plugDisk(`dialling${round}`, dialling.socket, 'slot1', true);
      await guest.waitUntil('[ -b /dev/vdb ]');
      const written = await writeRandomFile(guest, '/dev/vdb', 2);
      await guest.unplug(`dialling${round}`);
      expect(randomFileInImage(image)).toBe(written);
    }
    expect(await dialling.sigterm()).toEqual({ code: 0, signal: null });
  });

  it.skipIf(backendKind === 'qsd')('tells the guest when the image has grown', async () => {
    const before = await guest.run('cat /sys/block/vda/size');
    truncateSync(disk.image, 160 * MiB);
    disk.signal('SIGHUP');
    await guest.waitUntil(`[ "$(cat /sys/block/vda/size)" = ${(160 * MiB) / 512} ]`);
    expect(Number(before) * 512).toBe(128 * MiB);
  });

  it('reaches memory that was plugged in after the disk', async () => {
    await guest.run('[ "$(cat /sys/devices/system/memory/auto_online_blocks)" = online_movable ]');
    const before = await guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo");
    await guest.plugMemory('more', 256 * MiB);
    await guest.waitUntil(`[ "$(awk '/MemTotal/ { print $2 }' /proc/meminfo)" -gt ${Number(before) + 200 * 1024} ]`);
    // The page cache prefers the movable zone, which is the new memory and nothing else.
    const file = await writeRandomFile(guest, '/dev/vda', 32);
    const output = await guest.run(`mount -t ext4 /dev/vda /mnt
      sha256sum </mnt/random
      awk '/zone +Movable/ { movable = 1 } movable && /nr_zone_(in)?active_file/ { pages += $2 } END { print pages }' /proc/zoneinfo
      umount /mnt`);
    const [read, pagesInNewMemory] = output.split('\n');
    expect(read?.slice(0, 64)).toBe(file);
    expect(Number(pagesInNewMemory)).toBeGreaterThan((32 * MiB) / 4096 / 2);
    expect(randomFileInImage(disk.image)).toBe(file);
  });

  it('is done with a guest that is off: the daemons run and hold no descriptor of it', async () => {
    await guest.powerOff();
    await expect.poll(() => disk.fdCount(), { timeout: 20_000 }).toBe(diskFds);
    expect(disk.running && plugged.running).toBe(true);
  });
});
