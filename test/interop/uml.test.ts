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
import type { Guest } from '../support/guest/guest.ts';
import { bootUml, umlPeers } from '../support/guest/uml.ts';
import { allocatedMiB, createImage, randomImage, sha256Of, sha256OfFile } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
const SERIAL = 'ringside-uml-0001';

const peers = [...umlPeers, ...fileSystemPeers, 'fallocate', 'blkdiscard'] as const;

describeWithPeers(peers, 'User-mode Linux', () => {
  const cleanup = cleanupAfterAll();
  let guest: Guest;
  let disk: BlkBackend;
  let readOnly: BlkBackend;
  let bigBlocks: BlkBackend;
  let idleFds: number;

  beforeAll(async () => {
    const directory = cleanup.directory();
    [disk, readOnly, bigBlocks] = await Promise.all([
      BlkBackend.start(cleanup, { image: createImage(join(directory, 'disk'), 128 * MiB), serial: SERIAL }),
      BlkBackend.start(cleanup, { image: randomImage(join(directory, 'ro'), 4 * MiB), readOnly: true }),
      BlkBackend.start(cleanup, { image: randomImage(join(directory, '4k'), 8 * MiB), blockSize: 4096 }),
    ]);
    idleFds = disk.fdCount();
    guest = await bootUml(cleanup, {
      sockets: [disk.socket, readOnly.socket, bigBlocks.socket],
      programs: [...fileSystemPrograms, 'fallocate', 'blkdiscard'],
    });
  });

  it('shows the capacity in sectors of 512 bytes', async () => {
    const sizes = await guest.run('cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/size');
    expect(sizes.split('\n').map((sectors) => Number(sectors) * 512)).toEqual([128 * MiB, 4 * MiB, 8 * MiB]);
  });

  it.skipIf(backendKind === 'qsd')('shows the serial number', async () => {
    expect(await guest.run('cat /sys/block/vda/serial')).toBe(SERIAL);
  });

  it('shows the logical block size', async () => {
    const sizes = await guest.run(
      'cat /sys/block/vda/queue/logical_block_size /sys/block/vdc/queue/logical_block_size',
    );
    expect(sizes.split('\n')).toEqual(['512', '4096']);
  });

  it('reads what the host has put into the image', async () => {
    const sums = await guest.run('sha256sum </dev/vdb; sha256sum </dev/vdc');
    expect(sums.match(/[0-9a-f]{64}/g)).toEqual([sha256OfFile(readOnly.image), sha256OfFile(bigBlocks.image)]);
  });

  it('lets nothing be written to a read-only disk', async () => {
    const before = sha256OfFile(readOnly.image);
    expect(await guest.run('cat /sys/block/vdb/ro')).toBe('1');
    expect((await guest.try('dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync')).code).not.toBe(0);
    expect(sha256OfFile(readOnly.image)).toBe(before);
  });

  it('frees the space of discarded sectors and zeroes them', async () => {
    const before = allocatedMiB(bigBlocks.image);
    const rest = sha256OfFile(bigBlocks.image, 2 * MiB);
    await guest.run(`/usr/bin/blkdiscard -o 0 -l ${2 * MiB} /dev/vdc`);
    expect(before - allocatedMiB(bigBlocks.image)).toBe(2);
    expect(sha256OfFile(bigBlocks.image, 2 * MiB)).toBe(rest);
  });

  it('zeroes sectors by WRITE_ZEROES, with leave and without leave to free them', async () => {
    const rest = sha256OfFile(bigBlocks.image, 6 * MiB);
    const before = allocatedMiB(bigBlocks.image);
    // Without FALLOC_FL_NO_HIDE_STALE a hole in a block device is a WRITE_ZEROES with UNMAP; a zeroed range is one without.
    await guest.run(
      `/usr/bin/fallocate -p -o ${2 * MiB} -l ${2 * MiB} /dev/vdc; /usr/bin/fallocate -z -o ${4 * MiB} -l ${2 * MiB} /dev/vdc`,
    );
    expect(sha256OfFile(bigBlocks.image, 2 * MiB, 4 * MiB)).toBe(sha256Of(Buffer.alloc(4 * MiB)));
    expect(sha256OfFile(bigBlocks.image, 6 * MiB)).toBe(rest);
    expect(before - allocatedMiB(bigBlocks.image)).toBe(2);
  });

  it('lets the driver switch the write cache off and on', async () => {
    const modes = await guest.run(`cd /sys/block/vda
      for mode in 'write through' 'write back'; do
        echo "$mode" >cache_type; cat cache_type
        dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=fsync 2>/dev/null
      done`);
    expect(modes.split('\n')).toEqual(['write through', 'write back']);
  });

  it.skipIf(backendKind === 'qsd')('tells the guest when the image has grown', async () => {
    const pattern = 'the new end\n';
    truncateSync(disk.image, 192 * MiB);
    disk.signal('SIGHUP');
    await guest.waitUntil(`[ "$(cat /sys/block/vda/size)" = ${(192 * MiB) / 512} ]`);
    await guest.run(`printf '${pattern.trim()}\\n' | dd of=/dev/vda bs=1M seek=191 conv=fsync`);
    expect(sha256OfFile(disk.image, 191 * MiB, pattern.length)).toBe(sha256Of(pattern));
  });

  it('carries a file system and a file of random data to the host, across a reboot', { timeout: 120_000 }, async () => {
    const sum = await writeRandomFile(guest, '/dev/vda', 48);
    await guest.reboot();
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    await guest.powerOff();
    expect(randomFileInImage(disk.image)).toBe(sum);
  });

  it('is done with a guest that is off: the daemon runs and holds no descriptor of it', async () => {
    await expect.poll(() => disk.fdCount(), { timeout: 20_000 }).toBe(idleFds);
    expect(disk.running && readOnly.running && bigBlocks.running).toBe(true);
  });
});
