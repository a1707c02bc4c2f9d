/** virtiofsd, the file system back end of another project, as a child process. It serves one connection and ends. */

import { join } from 'node:path';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath } from '../peers.ts';

/** What a test needs for startVirtiofsd. */
export const virtiofsdPeers: readonly PeerName[] = ['virtiofsd'];

/** Starts it for a directory, and waits until it listens. Returns its socket; `cleanup` kills it at the latest. */
export const startVirtiofsd = async (
  cleanup: Cleanup,
  directory: string,
): Promise<{ socket: string; child: Child }> => {
  const socket = join(cleanup.directory(), 'fs.sock');
  const program = peerPath('virtiofsd');
  // It was unpacked with the libc it needs: scripts/setup says how it is started.
  const libraries = join(program, '../../lib/x86_64-linux-gnu');
  const child = new Child(join(libraries, 'ld-linux-x86-64.so.2'), [
    ...['--library-path', libraries, program, `--socket-path=${socket}`, `--shared-dir=${directory}`],
    ...['--sandbox=none', '--seccomp=none', '--inode-file-handles=never'],
  ]);
  cleanup.add(() => child.stop());
  await child.waitFor(/Waiting for vhost-user socket connection/, 10_000);
  return { socket, child };
};
