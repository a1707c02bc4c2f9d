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
import { expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { MovingGuest, type MovingOptions } from '../support/vm/moving-guest.ts';
import { vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const ROUNDS = 50;

describeWithPeers(vmGuestPeers, 'A snapshot', () => {
  const cleanup = cleanupAfterEach();

  const start = async (options: MovingOptions = {}) => {
    const directory = cleanup.directory();
    const image = createImage(join(directory, 'disk'), 4 * MiB);
    const guest = await MovingGuest.start(cleanup, {
      parameters: { disk: 1 },
      devices: { disks: [{ id: 'disk', path: image }] },
      ...options,
    });
    const path = join(directory, 'snapshot');
    return { guest, image, path, url: `file://${path}` };
  };

  it('is taken and restored 50 times, with daemons killed in between', async () => {
    const { guest, image, path, url } = await start();
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
      if (round % 10 === 5) process.kill(guest.source.daemons()[0] ?? 0, 'SIGKILL');
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

  it('of two processors is restored paused, and goes on when it is told to', async () => {
    const { guest, url, image } = await start({ cpus: 2, parameters: { disk: 0, touch: 500 } });
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
    await guest.source.put('vm.resume');
    await guest.works(2);
    const { body } = await guest.source.request('GET', 'vm.info');
    expect(body).toMatchObject({ config: { disks: [{ id: 'disk', path: `${image}.other` }] } });
  });

  it('needs a paused guest, and a directory without one', async () => {
    const { guest, path, url } = await start();

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
    await guest.works(2);
  });

  it('that is damaged brings no guest, and says why', async () => {
    const { guest, path, url } = await start();
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
