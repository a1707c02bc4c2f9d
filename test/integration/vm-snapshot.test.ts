/** A guest that goes to a directory and comes back from it, and finds nothing missing. */

import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll, cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { MovingGuest } from '../support/vm/moving-guest.ts';
import { vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const ROUNDS = 50;

describeWithPeers(vmGuestPeers, 'A snapshot', () => {
  const cleanup = cleanupAfterAll();
  /** With a disk that is served all the time. It goes on from one test to the next. */
  let guest: MovingGuest;
  let served: BlkBackend;
  let path: string;
  let url: string;

  beforeAll(async () => {
    const directory = cleanup.directory();
    path = join(directory, 'snapshot');
    url = `file://${path}`;
    served = await BlkBackend.start(cleanup, { image: createImage(join(directory, 'disk'), 4 * MiB) });
    guest = await MovingGuest.start(cleanup, {
      parameters: { disk: 1, every: 20 },
      devices: { disks: [{ id: 'disk', vhost_socket: served.socket }] },
    });
  });

  it('needs a paused guest, and a directory without one', async () => {
    const running = await guest.source.request('PUT', 'vm.snapshot', { destination_url: url });
    expect(running).toMatchObject({ status: 405, body: ['vm.snapshot: the VM is not paused'] });
    expect(existsSync(path)).toBe(false);

    await guest.source.put('vm.pause');
    await guest.source.put('vm.snapshot', { destination_url: url });
    expect(readdirSync(path).sort()).toEqual(['config.json', 'memory-ranges', 'state.json']);
    const { size, blocks } = statSync(join(path, 'memory-ranges'));
    expect(size).toBe(48 * MiB);
    expect(blocks * 512).toBeLessThan(16 * MiB);
    const again = await guest.source.request('PUT', 'vm.snapshot', { destination_url: url });
    expect(again).toMatchObject({ status: 400, body: [`vm.snapshot: ${path} has a snapshot already (state.json)`] });

    await guest.source.put('vm.resume');
    await guest.works();
    rmSync(path, { recursive: true });
  });

  it('is taken and restored 50 times, with the daemon of the disk killed in between', async () => {
    const { image } = served;
    for (let round = 1; round <= ROUNDS; round += 1) {
      const vmm = guest.source;
      await vmm.put('vm.pause');
      await vmm.put('vm.snapshot', { destination_url: url });
      copyFileSync(image, `${image}.copy`);
      await vmm.put('vm.resume');
      // Elsewhere, what it does from here on never was.
      await guest.works();
      await vmm.put('vm.delete');
      copyFileSync(`${image}.copy`, image);
      guest.goesBack(round % 2 === 0);
      await guest.source.put('vm.restore', { source_url: url, resume: true });
      rmSync(path, { recursive: true });
      if (round % 10 === 5) {
        await served.kill9();
        await served.restart();
      }
      await guest.works();
    }
    await guest.works(2);
    const idle = guest.destination;
    await eventually(
      'memory of the VMM without a guest',
      () => idle.memfds() + idle.daemons().length,
      (n) => n === 0,
    );
  }, 180_000);

  it('that is damaged brings no guest, and says why', async () => {
    await guest.source.put('vm.pause');
    await guest.source.put('vm.snapshot', { destination_url: url });
    await guest.source.put('vm.delete');
    const restore = async (): Promise<string> => {
      const { status, body } = await guest.source.request('PUT', 'vm.restore', { source_url: url });
      expect(status === 400 || status === 500).toBe(true);
      expect((await guest.source.request('GET', 'vm.info')).status).toBe(404);
      return (body as string[])[0] ?? '';
    };
    const texts = new Map(['config.json', 'state.json'].map((name) => [name, readFileSync(join(path, name), 'utf8')]));
    const change = async (name: string, text: string): Promise<string> => {
      writeFileSync(join(path, name), text);
      const sentence = await restore();
      writeFileSync(join(path, name), texts.get(name) ?? '');
      return sentence;
    };
    const state = texts.get('state.json') ?? '';
    const config = texts.get('config.json') ?? '';

    expect(await change('config.json', '{')).toMatch(/config.json is not JSON/);
    expect(await change('config.json', config.replace('"size": 50331648', '"size": 4096'))).toMatch(/memory.size/);
    expect(await change('config.json', config.replace('"size": 50331648', '"size": 67108864'))).toMatch(/RAM is/);
    expect(
      await change(
        'config.json',
        config.replace('"boot_vcpus": 1', '"boot_vcpus": 2').replace('"max_vcpus": 1', '"max_vcpus": 2'),
      ),
    ).toMatch(/vCPU/);
    expect(await change('state.json', state.slice(0, -10))).toMatch(/is not JSON/);
    expect(await change('state.json', state.replace('"version":1', '"version":2'))).toMatch(/version 2/);
    expect(await change('state.json', state.replace('"id":"disk"', '"id":"other"'))).toMatch(/disk/);
    expect(await change('state.json', state.replace('"processors":', '"processor":'))).toMatch(
      /nothing: not an object/,
    );
    truncateSync(join(path, 'memory-ranges'), MiB);
    expect(await restore()).toMatch(/memory-ranges has 1048576 bytes, and the guest's RAM has 50331648/);
    rmSync(join(path, 'state.json'));
    expect(await restore()).toMatch(/has no whole snapshot/);
    const { source } = guest;
    await eventually(
      'what is left of the machines',
      () => source.memfds() + source.daemons().length,
      (n) => n === 0,
    );
  });
});

describeWithPeers(vmGuestPeers, 'A snapshot of a guest with two processors', () => {
  const cleanup = cleanupAfterEach();

  it('is restored paused, and goes on when it is told to', async () => {
    const directory = cleanup.directory();
    const image = createImage(join(directory, 'disk'), 4 * MiB);
    const url = `file://${join(directory, 'snapshot')}`;
    const guest = await MovingGuest.start(cleanup, {
      cpus: 2,
      parameters: { disk: 0, touch: 500, every: 20 },
      devices: { disks: [{ id: 'disk', path: image }] },
    });
    await guest.source.put('vm.pause');
    await guest.source.put('vm.snapshot', { destination_url: url });
    await guest.source.put('vm.delete');
    createImage(`${image}.other`, 4 * MiB);
    guest.goesBack(true);

    await guest.source.put('vm.restore', {
      source_url: url,
      devices: [{ id: 'disk', path: `${image}.other` }],
    });

    expect(await guest.source.state()).toBe('Paused');
    guest.source.killDaemon();
    await guest.source.put('vm.resume');
    await guest.works(2);
    const { body } = await guest.source.request('GET', 'vm.info');
    expect(body).toMatchObject({ config: { disks: [{ id: 'disk', path: `${image}.other` }] } });
  });
});
