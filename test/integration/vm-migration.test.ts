/** A guest that goes from one VMM to another while it runs, and finds nothing missing. */

import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { type Cleanup, cleanupAfterAll, cleanupAfterEach } from '../support/cleanup.ts';
import { eventually, openFiles } from '../support/frontend/process-probe.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { HOST_ADDRESS } from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';
import { FRAME, MigrationProxy } from '../support/vm/migration-proxy.ts';
import { type DeviceOverride, MovingGuest } from '../support/vm/moving-guest.ts';
import { type VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const ROUNDS = 50;
const CID = 77;
const MAC = '52:54:00:c0:ff:ee';
const ECHO_PORT = 5000;
/** At an address of this process alone, whoever else tests here at the same time. */
const TCP_URL = `tcp:127.${1 + ((process.pid >> 16) & 0x7f)}.${(process.pid >> 8) & 0xff}.${process.pid & 0xff}:17321`;

/** A host program that sends back what comes. */
const echo = async (cleanup: Cleanup, uds: string): Promise<void> => {
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  cleanup.add(() => server.close());
  await new Promise<void>((resolve) => server.listen(`${uds}_${ECHO_PORT}`, resolve));
};

/** Back ends at one of two places. Both disks are one image: its lock goes with the guest. */
interface Place {
  readonly disk: BlkBackend;
  readonly net: NetBackend;
  readonly vsock: VsockDaemon;
  readonly overrides: readonly DeviceOverride[];
}

const openPlace = async (cleanup: Cleanup, namespace: NetworkNamespace, tap: string, image: string): Promise<Place> => {
  await namespace.addTap(tap, { bridge: 'br0' });
  const [disk, net, vsock] = await Promise.all([
    BlkBackend.start(cleanup, { image, extra: ['--incoming'] }),
    NetBackend.start(cleanup, { namespace, tap, ctrlVq: true, extra: [`--mac=${MAC}`] }),
    VsockDaemon.start(cleanup, { cid: CID }),
  ]);
  await echo(cleanup, vsock.uds);
  const overrides = [
    { id: 'disk', socket: disk.socket },
    { id: 'net', socket: net.socket },
    { id: 'vsock', socket: vsock.socket },
  ];
  return { disk, net, vsock, overrides };
};

/** Descriptors of a VMM that a guest has left, without the connections of its API, which come and go. */
const leftovers = async (vmm: VmmProcess, most = Number.POSITIVE_INFINITY): Promise<number> => {
  await eventually(
    'memory and daemons of a VMM without a guest',
    () => `${vmm.memfds()} ${vmm.daemons().length}`,
    (held) => held === '0 0',
  );
  return eventually(
    'descriptors of a VMM without a guest',
    () => openFiles(vmm.child.pid).filter((file) => !file.startsWith('socket:')).length,
    (count) => count <= most,
  );
};

describeWithPeers([...vmGuestPeers, ...namespacePeers], 'A guest with disk, network and sockets', () => {
  const cleanup = cleanupAfterEach();

  it('goes there and back 50 times, with back ends killed in between and on the way', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    await namespace.addBridge('br0');
    await namespace.run(`ip addr add ${HOST_ADDRESS}/24 dev br0`);
    const directory = cleanup.directory();
    const image = createImage(join(directory, 'disk'), 4 * MiB);
    const open = (tap: string): Promise<Place> => openPlace(cleanup, namespace, tap, image);
    const places = [await open('tapa'), await open('tapb')] as const;
    const guest = await MovingGuest.start(cleanup, {
      parameters: { disk: 1, net: 1, vsock: 1, peer: HOST_ADDRESS, every: 20 },
      cpus: 2,
      devices: {
        disks: [{ id: 'disk', vhost_socket: places[0].disk.socket }],
        net: [{ id: 'net', vhost_socket: places[0].net.socket, mac: MAC }],
        vsock: { id: 'vsock', cid: CID, socket: places[0].vsock.socket },
      },
    });
    const downtimes: number[] = [];
    let held = 0;
    for (let round = 1; round <= ROUNDS; round += 1) {
      const here = places[(round + 1) % 2] as Place;
      const there = places[round % 2] as Place;
      const url = round % 2 === 0 ? `unix:${join(directory, 'm')}` : TCP_URL;
      const moving = guest.migrate(url, there.overrides);
      const killed = [undefined, here.disk, undefined, here.net][round % 5];
      await killed?.kill9();
      await killed?.restart();
      const { downtime_ms: downtime = Number.NaN } = await moving;
      downtimes.push(downtime);
      await guest.works();
      if (round % 10 === 5) {
        await there.vsock.kill9();
        await there.vsock.restart();
      }
      // From the second time on that a VMM has let a guest go it holds no more than then.
      const isAsBefore = round > 4 && round % 2 === 0;
      const idle = await leftovers(guest.destination, isAsBefore ? held : undefined);
      if (round === 4) held = idle;
    }
    await guest.works(2);
    expect(guest.number('net.unanswered')).toBe(0);
    expect(guest.number('net.mismatches')).toBe(0);
    expect(guest.number('vsock.broken')).toBe(0);
    expect(guest.number('vsock.mismatches')).toBe(0);
    expect(guest.number('net.answers')).toBeGreaterThan(0);
    expect(guest.number('vsock.complete')).toBeGreaterThan(0);
    expect(guest.number('vsock.resets')).toBeGreaterThan(0);
    downtimes.sort((a, b) => a - b);
    console.info(`downtime: median ${downtimes[ROUNDS / 2]} ms, most ${downtimes.at(-1)} ms`);
  }, 180_000);
});

describeWithPeers(vmGuestPeers, 'A guest that writes all of its memory all the time', () => {
  const cleanup = cleanupAfterEach();

  it('goes there and back, whole, slowed down as far as need be', async () => {
    const path = join(cleanup.directory(), 'm');
    const guest = await MovingGuest.start(cleanup, { parameters: { touch: 16_000, every: 1 }, memoryMiB: 160 });
    for (let round = 0; round < 2; round += 1) {
      const progress = await guest.migrate(`unix:${path}`, [], { downtime_ms: 20 });
      console.info(`held for ${progress.throttle_percent ?? 0} % of the time, ${progress.round} rounds`);
      await guest.works(2);
    }
  });
});

describeWithPeers(vmGuestPeers, 'A migration that does not come to its end', () => {
  const cleanup = cleanupAfterAll();
  const BEFORE_GO = ['config', 'pages', 'round', 'state'] as const;
  /** With a disk, and more memory written than one batch. It goes on from one test to the next. */
  let guest: MovingGuest;
  let path: string;

  beforeAll(async () => {
    const directory = cleanup.directory();
    const image = createImage(join(directory, 'disk'), 4 * MiB);
    path = join(directory, 'm');
    guest = await MovingGuest.start(cleanup, {
      parameters: { disk: 1, touch: 1000, every: 10 },
      devices: { disks: [{ id: 'disk', path: image }] },
    });
  });

  /** Migrates through a proxy that does something before a frame of the source's goes on. Returns both answers. */
  const migrateWith = async (frame: keyof typeof FRAME, act: (proxy: MigrationProxy) => void | Promise<void>) => {
    const between = join(cleanup.directory(), 'p');
    await MigrationProxy.listen(cleanup, between, path, FRAME[frame], act);
    const { answer } = await guest.receive(`unix:${path}`);
    const received = answer.catch((error: Error) => error);
    return [await guest.send(`unix:${between}`), await received] as const;
  };

  /** The guest runs on where it is, and nothing is left of it elsewhere. */
  const stays = async (): Promise<void> => {
    expect(await guest.source.state()).toBe('Running');
    expect((await guest.destination.request('GET', 'vm.info')).status).toBe(404);
    await leftovers(guest.destination);
    await guest.works();
  };

  const goes = async (): Promise<void> => {
    await guest.migrate(`unix:${path}`);
    await guest.works();
  };

  it('is tried again until it does, with the daemon of the disk killed on the way', async () => {
    for (let round = 0; round < 4; round += 1) {
      guest.source.killDaemon();
      await goes();
    }
  });

  it('because the connection breaks lets the guest go on', async () => {
    for (const frame of BEFORE_GO) {
      const answers = await migrateWith(frame, (proxy) => proxy.cut());
      expect(answers).toMatchObject([{ status: 500 }, { status: 500 }]);
      await stays();
    }
    await goes();
  });

  it('because the connection breaks at GO leaves the guest paused, until somebody who knows lets it go on', async () => {
    const [sent, received] = await migrateWith('go', (proxy) => proxy.cut());

    const sentence = /was told to run the guest .* the guest is paused here; vm.resume it if it does not run there/;
    expect(sent).toMatchObject({ status: 500, body: [expect.stringMatching(sentence), expect.anything()] });
    expect(received).toMatchObject({ status: 500 });
    expect(await guest.source.state()).toBe('Paused');
    // Neither a snapshot nor another migration lets guest or devices go on, which may be at work elsewhere.
    await guest.source.put('vm.snapshot', { destination_url: `file://${join(cleanup.directory(), 'snapshot')}` });
    expect((await guest.send('unix:/nowhere')).status).toBe(500);
    const [again] = await migrateWith('state', (proxy) => proxy.cut());
    expect(again.status).toBe(500);
    expect(await guest.source.state()).toBe('Paused');
    await guest.source.put('vm.resume');
    await stays();
    await goes();
  });

  it('because the destination is killed lets the guest go on', async () => {
    // While the guest runs, and while it is held.
    for (const frame of ['pages', 'state'] as const) {
      const [sent] = await migrateWith(frame, () => guest.destination.child.kill('SIGKILL'));
      expect(sent.status).toBe(500);
      guest.replaceDestination(cleanup);
      await stays();
    }
    await goes();
  });

  it('because it is cancelled lets the guest go on', async () => {
    for (const frame of BEFORE_GO) {
      for (const vmm of [guest.source, guest.destination]) {
        const answers = await migrateWith(frame, () => vmm.put('vm.cancel-migration'));
        expect(answers).toMatchObject([{ status: 500 }, { status: 500 }]);
        const progress = await guest.progress(vmm);
        expect(progress).toMatchObject({
          phase: 'cancelled',
          error: `${progress.operation}: cancelled by vm.cancel-migration`,
        });
        await stays();
      }
    }
    await goes();
  });

  it('because it can be changed by nothing meanwhile: requests are refused', async () => {
    const statuses: number[] = [];

    const answers = await migrateWith('round', async () => {
      for (const route of ['vm.pause', 'vm.reboot', 'vm.boot']) {
        statuses.push((await guest.source.request('PUT', route)).status);
      }
      await guest.source.put('vm.cancel-migration');
    });

    expect(statuses).toEqual([405, 405, 405]);
    expect(answers[0].status).toBe(500);
    await stays();
  });

  it('because nobody listens says so', async () => {
    const sent = await guest.send(`unix:${path}`);

    expect(sent).toMatchObject({
      status: 500,
      body: [expect.stringMatching(/connecting to .*: no such file or directory \(ENOENT\)/)],
    });
    await stays();
  });

  it('leaves no socket when the destination stops waiting', async () => {
    const { answer } = await guest.receive(`unix:${path}`);

    await guest.destination.put('vm.cancel-migration');

    expect((await answer).status).toBe(500);
    expect(existsSync(path)).toBe(false);
  });

  it('because the guest is shut down at the source is over', async () => {
    const answers = await migrateWith('round', () => guest.source.put('vm.shutdown'));

    expect(answers).toMatchObject([
      { status: 500, body: ['vm.send-migration: send-migration: the VM is shut down'] },
      { status: 500 },
    ]);
    expect(await guest.source.state()).toBe('Created');
  });
});
