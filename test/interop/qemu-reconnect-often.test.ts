/**
 * A daemon that dies under load again and again, at any moment. RINGSIDE_TEST_RECONNECTS says how often; the default is
 * for every day.
 */

import { randomInt } from 'node:crypto';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { loadPrograms, startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { bootQemu, qemuPeersOf } from '../support/guest/qemu.ts';
import { devicesWith, RING_PACKED } from '../support/guest/virtio-features.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
const reconnects = Number(process.env.RINGSIDE_TEST_RECONNECTS ?? '10');

/** Where QEMU dials, the older version waits a second before each attempt. */
const cases = [
  { version: 'qemu-system-x86_64', listens: true, packed: false },
  { version: 'newer qemu-system-x86_64', listens: false, packed: false },
  { version: 'qemu-system-x86_64', listens: true, packed: true },
  { version: 'newer qemu-system-x86_64', listens: false, packed: true },
] as const;

for (const { version, listens, packed } of cases) {
  const title = `${version} that ${listens ? 'listens' : 'dials'}, ${packed ? 'packed' : 'split'} rings, and a daemon that dies often`;
  describeWithPeers([...qemuPeersOf(version), ...loadPrograms], title, () => {
    const cleanup = cleanupAfterAll();

    it('finds every block as it was written', { timeout: 60_000 + reconnects * 5_000 }, async () => {
      const directory = cleanup.directory();
      const image = createImage(join(directory, 'disk'), 32 * MiB);
      const socket = join(directory, 'blk.sock');
      // Where the front end listens, the daemon dials until it does.
      const disk = await BlkBackend.start(cleanup, { image, socket, client: listens, numQueues: 2 });
      const guest = await bootQemu(cleanup, {
        machine: 'q35',
        version,
        cpus: 2,
        memoryMiB: 512,
        sockets: [socket],
        listens,
        diskProperties: 'num-queues=2',
        ...(packed && { deviceProperties: 'packed=on' }),
        programs: loadPrograms,
      });
      expect((await devicesWith(guest, RING_PACKED)).get(2)).toBe(packed);
      await startDiskLoad(guest, { jobs: 4, extra: '--fsync=16' });
      for (let count = 0; count < reconnects; count++) {
        const before = statSync(image, { bigint: true }).mtimeNs;
        const written = (): boolean => statSync(image, { bigint: true }).mtimeNs > before;
        await expect.poll(written, { timeout: 30_000, interval: 2 }).toBe(true);
        // At any moment of what goes on then: a batch, a flush, nothing.
        await delay(randomInt(20));
        await disk.kill9();
        await disk.restart();
      }
      await stopDiskLoad(guest);
    });
  });
}
