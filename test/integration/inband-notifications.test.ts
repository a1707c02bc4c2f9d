/** Kicks and calls as messages, no descriptor in sight: the daemons and the drivers do as they always do. */

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkDriver } from '../../vmm-client/driver/blk-driver.ts';
import { VsockDriver } from '../../vmm-client/driver/vsock-driver.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { USABLE_PROTOCOL_FEATURES } from '../../vmm-client/frontend/negotiation.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener } from '../support/frontend/vsock-host.ts';
import { randomImage } from '../support/image.ts';

const MiB = 1 << 20;
const INBAND_NOTIFICATIONS = 14;
const cleanup = cleanupAfterEach();

const connect = async (socket: string): Promise<VhostUserFrontend> => {
  const frontend = await VhostUserFrontend.connect(socket, {
    protocolFeatures: USABLE_PROTOCOL_FEATURES,
    reconnectMs: 20_000,
  });
  cleanup.add(() => frontend.close());
  expect(frontend.hasProtocolFeature(INBAND_NOTIFICATIONS)).toBe(true);
  return frontend;
};

it.each([
  ['a split ring', {}, []],
  ['a packed ring', { packed: true }, []],
  ['two rings on two threads', { queues: 2 }, ['--threads=2']],
])('a disk is read and written, and again after its daemon was killed: %s', async (_, options, extra) => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), 4 * MiB);
  const daemon = await BlkBackend.start(cleanup, { image, extra: ['--in-band', ...extra], numQueues: 2 });
  const frontend = await connect(daemon.socket);
  const refusals: Error[] = [];
  frontend.on('refusal', (error) => refusals.push(error));
  const driver = await BlkDriver.open(frontend, { ...options, timeoutMs: 10_000 });
  cleanup.add(() => driver.close());
  const readAll = async (): Promise<void> => {
    const disk = readFileSync(image);
    const workers = Array.from({ length: 8 }, async (_, worker) => {
      const buffer = driver.allocateBuffer(4096);
      for (let block = worker; block < 512; block += 8) {
        await driver.read(block * 4096, buffer);
        expect(buffer.equals(disk.subarray(block * 4096, (block + 1) * 4096))).toBe(true);
      }
      driver.freeBuffer(buffer);
    });
    await Promise.all(workers);
  };
  await readAll();
  const buffer = driver.allocateBuffer(4096);
  await driver.write(0, buffer.fill(3));
  await driver.flush();
  expect(readFileSync(image).subarray(0, 4096).equals(buffer)).toBe(true);
  const back = once(frontend, 'reconnect');
  await daemon.kill9();
  await daemon.restart();
  await back;
  await readAll();
  expect(refusals).toEqual([]);
});

it('a socket device carries data both ways', async () => {
  const daemon = await VsockDaemon.start(cleanup, { extra: ['--in-band'] });
  const driver = await VsockDriver.open(await connect(daemon.socket));
  cleanup.add(() => driver.close());
  const listener = await HostListener.listen(cleanup, `${daemon.uds}_5000`);
  const socket = await driver.connect(5000);
  const { socket: host } = await listener.accept();
  host.pipe(host);
  const data = randomBytes(2 * MiB);
  const received: Buffer[] = [];
  const receive = async (): Promise<void> => {
    const buffer = Buffer.alloc(65_536);
    for (let got = 0; got < data.length; ) {
      const length = await socket.read(buffer);
      if (length === 0) throw new Error(`the connection ended after ${got} bytes`);
      received.push(Buffer.from(buffer.subarray(0, length)));
      got += length;
    }
  };
  await Promise.all([socket.write(data), receive()]);
  expect(Buffer.concat(received).equals(data)).toBe(true);
  await socket.close();
});
