/**
 * User-mode Linux notifies by messages when a back end offers it, which its simulated time needs: then nothing happens
 * that the simulation has not seen. Debian's kernel was built without that time, and uses the messages all the same.
 */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { openFiles } from '../support/frontend/process-probe.ts';
import {
  fileSystemPeers,
  fileSystemPrograms,
  randomFileInImage,
  readRandomFile,
  writeRandomFile,
} from '../support/guest/file-system.ts';
import { bootUml, umlPeers } from '../support/guest/uml.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;

describeWithPeers([...umlPeers, ...fileSystemPeers], 'User-mode Linux', () => {
  const cleanup = cleanupAfterEach();

  /** Eventfds of a daemon: its own, and the kicks of a front end. Calls of this one are sockets. */
  const eventfds = (pid: number): number => openFiles(pid).filter((file) => file === 'anon_inode:[eventfd]').length;

  it.each([
    { how: 'by messages', extra: ['--in-band'], kicks: 0 },
    { how: 'by an eventfd', extra: [], kicks: 1 },
  ])('notifies $how, and a file system arrives', async ({ extra, kicks }) => {
    const disk = await BlkBackend.start(cleanup, {
      image: createImage(join(cleanup.directory(), 'disk'), 96 * MiB),
      extra,
    });
    const before = eventfds(disk.pid);
    const guest = await bootUml(cleanup, { sockets: [disk.socket], programs: fileSystemPrograms });
    expect(eventfds(disk.pid) - before).toBe(kicks);
    const sum = await writeRandomFile(guest, '/dev/vda', 48);
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    await guest.powerOff();
    expect(randomFileInImage(disk.image)).toBe(sum);
  });
});
