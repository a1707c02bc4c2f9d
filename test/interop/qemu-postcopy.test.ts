/** A guest that goes on at another QEMU before its memory is there, and daemons that wait for pages of it. */

import { randomBytes } from 'node:crypto';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { userFaultsAvailable } from '../../protocol/sys/userfault.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { loadPrograms, startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { Postcopy } from '../support/guest/postcopy.ts';
import { bootQemu, type QemuOptions, qemuPeersOf, qemuVersions } from '../support/guest/qemu.ts';
import { createImage, sha256Of } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace } from '../support/net/namespace.ts';
import {
  bringUp,
  GUEST_ADDRESS,
  HOST_ADDRESS,
  iperf,
  ping,
  startIperfServer,
  trafficPeers,
  trafficPrograms,
} from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
/** Where fio writes, and what the guest only reads. */
const LOAD_BYTES = 16 * MiB;
const READ_BYTES = 24 * MiB;

const possible = userFaultsAvailable();
if (!possible) process.stderr.write('skipped: userfaultfd: needs root, or sysctl vm.unprivileged_userfaultfd=1\n');

for (const version of possible ? qemuVersions : []) {
  const common = {
    machine: 'q35',
    version,
    cpus: 2,
    memoryMiB: 512,
    // Or the guest itself would ask for each page that it gives to the device.
    kernelArguments: 'init_on_alloc=0',
  } as const;

  describeWithPeers([...qemuPeersOf(version), ...loadPrograms], `postcopy by ${version}, vhost-user-blk`, () => {
    const cleanup = cleanupAfterEach();

    it.each<[string, string[]]>([
      ['', []],
      [' with worker threads', ['--threads=2']],
    ])('brings each page when the daemon%s asks for it', { timeout: 240_000 }, async (_, extra) => {
      const image = createImage(join(cleanup.directory(), 'disk'), LOAD_BYTES + READ_BYTES);
      const data = randomBytes(READ_BYTES);
      const fd = openSync(image, 'r+');
      writeSync(fd, data, 0, data.length, LOAD_BYTES);
      closeSync(fd);
      const numQueues = 2;
      const options = (socket: string): QemuOptions => ({
        ...common,
        sockets: [socket],
        diskProperties: `num-queues=${numQueues}`,
        programs: loadPrograms,
      });
      const source = await BlkBackend.start(cleanup, { image, numQueues, extra });
      const guest = await bootQemu(cleanup, options(source.socket));
      await startDiskLoad(guest);

      const target = await BlkBackend.start(cleanup, { image, numQueues, extra: [...extra, '--incoming'] });
      const postcopy = await Postcopy.start(cleanup, guest, options(target.socket));
      const { destination } = postcopy;
      const read = `dd if=/dev/vda bs=1M skip=${LOAD_BYTES / MiB} 2>/dev/null | sha256sum`;
      expect((await destination.run(read, 120_000)).slice(0, 64)).toBe(sha256Of(data));
      expect(await postcopy.pagesAskedFor()).toBeGreaterThan(10);
      await postcopy.finish();

      await stopDiskLoad(destination);
      for (const { qmp } of [guest, destination]) await qmp.execute('quit');
      for (const daemon of [source, target]) expect(await daemon.sigterm()).toEqual({ code: 0, signal: null });
    });
  });

  describeWithPeers([...qemuPeersOf(version), ...trafficPeers], `postcopy by ${version}, vhost-user-net`, () => {
    const cleanup = cleanupAfterEach();

    // The newer one waits for answers to what it sends once, for the first pair.
    const pairs = version === 'qemu-system-x86_64' ? [1, 2] : [1];

    it.each(pairs)(
      'brings each page when the daemon asks for it, queue pairs: %i',
      { timeout: 240_000 },
      async (queuePairs) => {
        const namespace = await NetworkNamespace.create(cleanup);
        await namespace.addBridge('br0');
        await namespace.run(`ip addr add ${HOST_ADDRESS}/24 dev br0`);
        for (const tap of ['tap0', 'tap1']) await namespace.addTap(tap, { bridge: 'br0', queuePairs });
        const options = (socket: string): QemuOptions => ({
          ...common,
          interfaces: [{ socket, queuePairs, properties: 'mac=52:54:00:00:00:07' }],
          programs: trafficPrograms,
        });
        const source = await NetBackend.start(cleanup, { namespace, tap: 'tap0', queuePairs });
        const guest = await bootQemu(cleanup, options(source.socket));
        await bringUp(guest);
        await startIperfServer(namespace);
        await ping(namespace, GUEST_ADDRESS);

        const target = await NetBackend.start(cleanup, { namespace, tap: 'tap1', queuePairs });
        const postcopy = await Postcopy.start(cleanup, guest, options(target.socket));
        const { destination } = postcopy;
        await iperf(destination, HOST_ADDRESS, '--bidir');
        expect(await postcopy.pagesAskedFor()).toBeGreaterThan(0);
        await postcopy.finish();

        await iperf(destination, HOST_ADDRESS, '--bidir');
        for (const { qmp } of [guest, destination]) await qmp.execute('quit');
        for (const daemon of [source, target]) expect(await daemon.sigterm()).toEqual({ code: 0, signal: null });
      },
    );
  });
}
