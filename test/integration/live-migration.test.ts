/**
 * A device that goes from one daemon to another under load, and back, while its driver knows nothing of it. The dirty log
 * is on meanwhile, as in any migration: that is how a daemon learns that its disk goes elsewhere.
 */

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkDriver } from '../../vmm-client/driver/blk-driver.ts';
import { NetDriver } from '../../vmm-client/driver/net-driver.ts';
import { VsockDriver } from '../../vmm-client/driver/vsock-driver.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { NetDaemon } from '../support/frontend/net-daemon.ts';
import { countOwnFds } from '../support/frontend/process-probe.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener } from '../support/frontend/vsock-host.ts';
import { createImage, randomImage } from '../support/image.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';
import { DiskRig, READ, WRITE } from './disk-rig.ts';

const MiB = 1 << 20;
const BLOCK = 16 * 1024;
const DISK_BYTES = 16 * MiB;
const CONFIG_BYTES = 60;
const cleanup = cleanupAfterEach();

/** Two daemons for one disk. The second one waits for a guest. */
const startPair = async (image: string, extra: readonly string[] = []) => {
  const options = { image, numQueues: 2 };
  const first = await BlkBackend.start(cleanup, { ...options, extra });
  const second = await BlkBackend.start(cleanup, { ...options, extra: [...extra, '--incoming'] });
  return [first, second] as const;
};

/** Moves the device as a migration does. */
const move = async (frontend: VhostUserFrontend, socket: string, configBytes = 0): Promise<void> => {
  await frontend.dirtyLog.start();
  const snapshot = await frontend.migration.suspend({ configBytes });
  await frontend.migration.moveTo(socket, snapshot);
  await frontend.dirtyLog.stop();
};

describe('a disk', () => {
  it.each([
    ['one split ring', {}, []],
    ['one packed ring', { packed: true }, []],
    ['two rings on two threads', { queues: 2 }, ['--threads=2']],
  ])('goes from daemon to daemon and back while it is written and verified: %s', async (_, options, extra) => {
    const image = createImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
    const [first, second] = await startPair(image, extra);
    const frontend = await VhostUserFrontend.connect(first.socket);
    const driver = await BlkDriver.open(frontend, { ...options, timeoutMs: 10_000 });
    cleanup.add(() => driver.close().catch(() => undefined));

    /** What each block has to hold: the number of its last write, 0 for none. */
    const written = new Uint32Array(DISK_BYTES / BLOCK);
    let isOver = false;
    let requests = 0;
    const workers = Array.from({ length: 8 }, async (_, worker) => {
      const buffer = driver.allocateBuffer(BLOCK);
      const words = new Uint32Array(buffer.buffer, buffer.byteOffset, BLOCK / 4);
      for (let step = worker + 1; !isOver; step += 8) {
        // Each worker has its own blocks.
        const block = ((step * 2_654_435_761) % (written.length / 8)) * 8 + worker;
        words.fill(step);
        await driver.write(block * BLOCK, buffer);
        written[block] = step;
        const other = ((step * 40_503) % (written.length / 8)) * 8 + worker;
        await driver.read(other * BLOCK, buffer);
        const expected = written[other];
        if (!words.every((word) => word === expected)) throw new Error(`block ${other} is not what was written`);
        requests += 2;
      }
    });
    const progress = async (): Promise<void> => {
      const enough = requests + 200;
      while (requests < enough) await Promise.race([new Promise(setImmediate), Promise.all(workers)]);
    };
    for (let round = 0; round < 6; round += 1) {
      await progress();
      await move(frontend, round % 2 === 0 ? second.socket : first.socket);
    }
    await progress();
    isOver = true;
    await Promise.all(workers);
    await driver.flush();
    await driver.close();
    const disk = readFileSync(image);
    for (const [block, step] of written.entries()) {
      const words = new Uint32Array(disk.buffer, disk.byteOffset + block * BLOCK, BLOCK / 4);
      expect(words.every((word) => word === step)).toBe(true);
    }
    expect(first.log()).toContain('unlocked, its guest migrates');
    expect(second.log()).toContain('unlocked, its guest migrates');
  });

  it('keeps its cache mode, which is state, and nothing open of the daemon that it left', async () => {
    const image = createImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
    const [first, second] = await startPair(image);
    const frontend = await VhostUserFrontend.connect(first.socket);
    const driver = await BlkDriver.open(frontend);
    cleanup.add(() => driver.close());
    const fds = countOwnFds();
    await frontend.writeConfig(32, Uint8Array.of(0));
    await move(frontend, second.socket, CONFIG_BYTES);
    expect((await frontend.readConfig(32, 1))[0]).toBe(0);
    expect(countOwnFds()).toBe(fds);
    await first.sigterm();
    const buffer = driver.allocateBuffer(512);
    await driver.write(0, buffer.fill(1));
  });

  it('goes on where it was when the other daemon cannot have it', async () => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
    const first = await BlkBackend.start(cleanup, { image });
    // A daemon of another device: it lacks the features of a disk.
    const other = await VsockDaemon.start(cleanup);
    const frontend = await VhostUserFrontend.connect(first.socket);
    const driver = await BlkDriver.open(frontend);
    cleanup.add(() => driver.close());
    const buffer = driver.allocateBuffer(4096);
    await frontend.dirtyLog.start();
    const snapshot = await frontend.migration.suspend({ configBytes: CONFIG_BYTES });
    const reading = driver.read(8192, buffer);
    await expect(frontend.migration.moveTo(other.socket, snapshot)).rejects.toThrow('lacks features of the device');
    await frontend.migration.resume();
    await reading;
    expect(buffer.equals(readFileSync(image).subarray(8192, 12288))).toBe(true);
  });

  it('is handed over again after the daemon that it moved to was killed', async () => {
    const image = createImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
    const [first, second] = await startPair(image);
    const frontend = await VhostUserFrontend.connect(first.socket, { reconnectMs: 20_000 });
    const driver = await BlkDriver.open(frontend);
    cleanup.add(() => driver.close());
    const buffer = driver.allocateBuffer(4096);
    await driver.write(0, buffer.fill(7));
    await move(frontend, second.socket);
    await second.kill9();
    const writing = driver.write(4096, buffer);
    await second.restart();
    await writing;
    await driver.read(0, buffer.fill(0));
    expect(buffer.every((byte) => byte === 7)).toBe(true);
  });
});

describe.each([
  ['split', false],
  ['packed', true],
])('a snapshot of a disk with a %s ring', (_, packed) => {
  it('is restored by another front end, which finds what was made available meanwhile', async () => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
    const [first, second] = await startPair(image);
    const source = await VhostUserFrontend.connect(first.socket);
    cleanup.add(() => source.close());
    const memory = source.createMemory(8 * MiB);
    cleanup.add(() => memory.close());
    const rig = await DiskRig.open(source, memory, packed);
    await source.setMemory([memory]);
    await source.trackInflight(1, rig.queue.size);
    await rig.start();
    const at = memory.allocate(MiB, 4096);
    for (let i = 0; i < 100; i += 1) expect(await rig.run(i % 2 === 0 ? READ : WRITE, 4096 * i, at, 4096)).toBe(0);

    await source.dirtyLog.start();
    const snapshot = await source.migration.suspend({ configBytes: CONFIG_BYTES });
    const tokens = [0, 1, 2, 3].map((i) => rig.stage(READ, i * 65_536, at + i * 65_536, 65_536));
    rig.queue.flush();
    source.close();
    // Nothing but values: this could have come from anywhere.
    const copy = structuredClone(snapshot);
    const target = await VhostUserFrontend.connect(second.socket);
    cleanup.add(() => target.close());
    await target.migration.restore(copy, [memory], [rig.queue.vring]);
    await rig.finishAsync();
    expect(tokens.map((token) => rig.statuses.get(token))).toEqual([0, 0, 0, 0]);
    const expected = readFileSync(image).subarray(0, 4 * 65_536);
    expect(memory.slice(at, expected.length).equals(expected)).toBe(true);
  });
});

describeWithPeers(namespacePeers, 'a network device', () => {
  it.each([
    ['split', false],
    ['packed', true],
  ])('goes on sending at another daemon, with %s rings', async (_, packed) => {
    const daemons = [
      await NetDaemon.start(cleanup, { tap: ['--null'], extra: ['--ctrl-vq'] }),
      await NetDaemon.start(cleanup, { tap: ['--null'], extra: ['--ctrl-vq'] }),
    ] as const;
    const frontend = await VhostUserFrontend.connect(daemons[0].socket);
    const driver = await NetDriver.open(frontend, { packed });
    cleanup.add(() => driver.close());
    const packet = Buffer.alloc(1500, 0xff);
    const size = driver.transmitQueues[0]?.queue.ring.size ?? 0;
    /** Sends several times as many packets as the ring has entries: they have to come back. */
    const send = async (count: number): Promise<void> => {
      const deadline = performance.now() + 10_000;
      for (let sent = 0; sent < count; ) {
        if (driver.send(packet)) sent += 1;
        else await new Promise(setImmediate);
        if (performance.now() > deadline) throw new Error(`${sent} of ${count} packets were sent`);
      }
    };
    for (let round = 0; round < 4; round += 1) {
      const sending = send(20 * size);
      await move(frontend, daemons[(round + 1) % 2]?.socket ?? '', 12);
      await sending;
    }
    await send(20 * size);
    // Also the ring of commands goes on: RX, PROMISC.
    if (driver.controlQueue !== undefined) await driver.command('promiscuous mode', 0, 0, Uint8Array.of(1));
    expect(driver.failure).toBeUndefined();
  });
});

describe('a socket device', () => {
  it.each([
    ['split', false],
    ['packed', true],
  ])('has new connections at another daemon, with %s rings', async (_, packed) => {
    const [first, second] = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup)];
    const frontend = await VhostUserFrontend.connect(first.socket);
    const driver = await VsockDriver.open(frontend, { packed });
    cleanup.add(() => driver.close());
    /** Sends and receives 4 MiB over a new connection by way of a daemon. */
    const talk = async (daemon: VsockDaemon, port: number): Promise<void> => {
      const listener = await HostListener.listen(cleanup, `${daemon.uds}_${port}`);
      const socket = await driver.connect(port);
      const { socket: host } = await listener.accept();
      host.pipe(host);
      const block = Buffer.alloc(4 * MiB, `port ${port}`);
      const hash = createHash('sha256');
      const receive = async () => {
        const buffer = Buffer.alloc(65_536);
        for (let got = 0; got < block.length; ) {
          const length = await socket.read(buffer);
          if (length === 0) throw new Error(`the connection ended after ${got} bytes`);
          hash.update(buffer.subarray(0, length));
          got += length;
        }
      };
      await Promise.all([socket.write(block), receive()]);
      expect(hash.digest('hex')).toBe(createHash('sha256').update(block).digest('hex'));
      await socket.close();
    };
    await talk(first, 5000);
    for (let round = 0; round < 4; round += 1) {
      const there = round % 2 === 0 ? second : first;
      await move(frontend, there.socket, 8);
      await talk(there, 6000 + round);
    }
    expect(driver.connectionCount).toBe(0);
  });

  it('ends connections that were open when it moved', async () => {
    const [first, second] = [await VsockDaemon.start(cleanup), await VsockDaemon.start(cleanup)];
    const frontend = await VhostUserFrontend.connect(first.socket);
    const driver = await VsockDriver.open(frontend);
    cleanup.add(() => driver.close());
    const listener = await HostListener.listen(cleanup, `${first.uds}_5000`);
    const socket = await driver.connect(5000);
    const { socket: host } = await listener.accept();
    host.resume();
    await move(frontend, second.socket, 8);
    // The other daemon knows nothing of it, and says so at the latest when it hears of it.
    const ended = socket.write(Buffer.from('is anybody there')).then(() => socket.read(Buffer.alloc(1)));
    await expect(ended).rejects.toThrow();
  });
});
