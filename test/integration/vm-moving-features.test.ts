/**
 * A guest that goes to a directory and comes back, and from one VMM to another, with devices behind an IOMMU, memory that
 * was plugged, and disks that came and go: all of it is in use all the time, and goes on elsewhere.
 */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { type Cleanup, cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { HOST_ADDRESS } from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';
import { type DeviceOverride, MovingGuest, type MovingOptions } from '../support/vm/moving-guest.ts';
import { vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 2 ** 20;
const SIZE = 48 * MiB;
const MAC = '52:54:00:c0:ff:ee';

interface Moves {
  readonly guest: MovingGuest;
  readonly directory: string;
}

const start = async (cleanup: Cleanup, options: MovingOptions): Promise<Moves> => {
  const { parameters } = options;
  const guest = await MovingGuest.start(cleanup, {
    ...options,
    parameters: { disk: 1, every: 20, piece_kb: 1024, ...parameters },
  });
  return { guest, directory: cleanup.directory() };
};

/** To a directory, and on from there in the other VMM, with the same back ends. */
const saveAndRestore = async ({ guest, directory }: Moves): Promise<void> => {
  const url = `file://${join(directory, 'snapshot')}`;
  if ((await guest.source.state()) === 'Running') await guest.source.put('vm.pause');
  await guest.source.put('vm.snapshot', { destination_url: url });
  await guest.source.put('vm.delete');
  guest.goesBack(true);
  await guest.source.put('vm.restore', { source_url: url, resume: true });
  rmSync(join(directory, 'snapshot'), { recursive: true });
  await guest.works();
};

const migrate = async (
  { guest, directory }: Moves,
  devices: readonly DeviceOverride[] = [],
  local = false,
): Promise<void> => {
  await guest.migrate(`unix:${join(directory, 'm')}`, devices, { local });
  await guest.works();
};

/** There by a snapshot and back by a migration, and then the same again, with memory that is handed over. */
const thereAndBack = async (moves: Moves, step: (round: number) => Promise<void> = async () => undefined) => {
  for (let round = 0; round < 4; round += 1) {
    await (round % 2 === 0 ? saveAndRestore(moves) : migrate(moves, [], round === 3));
    await step(round);
  }
};

/** Asks for so much memory and waits until the guest has it. */
const resize = async ({ guest }: Moves, plugged: number): Promise<void> => {
  const from = guest.source.child.output().length;
  await guest.source.put('vm.resize', { desired_ram: SIZE + plugged });
  expect(await guest.source.guest.waitFor('mem.size', 60_000, from)).toBe(String(plugged));
  const { body } = await guest.source.request('GET', 'vm.info');
  expect(body).toMatchObject({ memory_actual_size: SIZE + plugged });
};

/** Adds a disk and waits until the guest has driven it. */
const add = async ({ guest }: Moves, config: Readonly<Record<string, unknown>>): Promise<number> => {
  const from = guest.source.child.output().length;
  const { status, body } = await guest.source.request('PUT', 'vm.add-disk', config);
  expect([status, body]).toMatchObject([200, { id: config.id }]);
  const { slot } = body as { slot: number };
  expect(await guest.source.guest.waitFor('hotplug.added', 60_000, from)).toBe(String(slot));
  return slot;
};

/** Looks from `from` on in what the VMM where the guest is has printed. */
const waitForRemoval = async ({ guest }: Moves, slot: number, from: number): Promise<void> => {
  expect(await guest.source.guest.waitFor('hotplug.removed', 60_000, from)).toBe(String(slot));
};

/** States of the devices by their ids. */
const states = async ({ guest }: Moves): Promise<Record<string, string>> => {
  const { body } = await guest.source.request('GET', 'vm.info');
  const tree = (body as { device_tree: Record<string, { state: string }> }).device_tree;
  return Object.fromEntries(Object.entries(tree).map(([id, { state }]) => [id, state]));
};

const countFaults = ({ guest }: Moves): number => guest.number('pattern.faults');

/** Waits until the guest has found once more that what is not mapped cannot be reached. */
const waitForFaults = async (moves: Moves): Promise<void> => {
  const before = countFaults(moves);
  await eventually(
    'faults',
    () => countFaults(moves),
    (now) => now > before,
    60_000,
  );
};

const counters = async ({ guest }: Moves) => (await guest.source.counters()).__iommu;

describeWithPeers(vmGuestPeers, 'A guest that moves', () => {
  const cleanup = cleanupAfterEach();
  const image = (): string => createImage(join(cleanup.directory(), 'disk'), 4 * MiB);

  it('keeps what its IOMMU maps for a disk, maps and unmaps as before, and hears of faults', async () => {
    const moves = await start(cleanup, {
      parameters: { iommu: 'map' },
      devices: { disks: [{ id: 'disk', path: image(), iommu: true }] },
    });
    await waitForFaults(moves);
    // RAM in pieces, and a buffer for each of the guest's requests.
    const { mappings } = (await counters(moves)) ?? {};
    await thereAndBack(moves, async () => {
      await waitForFaults(moves);
      expect(await counters(moves)).toMatchObject({ domains: 1, attached_endpoints: 1, faults_dropped: 0 });
      expect(Math.abs(((await counters(moves))?.mappings ?? 0) - (mappings ?? 0))).toBeLessThanOrEqual(1);
    });
  });

  it('keeps memory that was plugged, and what is in it, and gets more and gives it back', async () => {
    const moves = await start(cleanup, {
      parameters: { mem: 1 },
      memory: { hotplug_size: 256 * MiB },
      devices: { disks: [{ id: 'disk', path: image() }] },
    });
    await resize(moves, 100 * MiB);
    const sizes = [200, 30, 140, 0];
    await thereAndBack(moves, async (round) => {
      // A second time, all that is plugged is verified once.
      await moves.guest.works(14);
      await resize(moves, (sizes[round] ?? 0) * MiB);
      await moves.guest.works(2);
    });
  });

  it('keeps disks that came, lets go of one that is wanted back, and has none that is gone', async () => {
    const moves = await start(cleanup, {
      // It keeps what is wanted back until it is told by a word.
      parameters: { hotplug: 1, hold: 1 },
      devices: { disks: [{ id: 'disk', path: image() }] },
    });
    const { guest } = moves;
    /** Waits until the guest has heard that a disk is wanted back. */
    const hears = async (slot: number, from: number): Promise<void> => {
      expect(await guest.source.guest.waitFor('hotplug.wanted_back', 60_000, from)).toBe(String(slot));
    };
    const letGo = async (slot: number, from: number): Promise<void> => {
      guest.source.child.stdin.write('.');
      await waitForRemoval(moves, slot, from);
    };
    const gone = await add(moves, { id: 'gone', path: image() });
    await guest.source.put('vm.remove-device', { id: 'gone' });
    await hears(gone, 0);
    await letGo(gone, 0);
    await add(moves, { id: 'stays', path: image() });
    const first = await add(moves, { id: 'first', path: image() });
    const second = await add(moves, { id: 'second', path: image() });
    await guest.works(2);

    // One is wanted back by a guest that has not heard of it yet, the other by one that has.
    await guest.source.put('vm.pause');
    await guest.source.put('vm.remove-device', { id: 'first' });
    await guest.source.put('vm.power-button');
    const arrival = guest.destination.child.output().length;
    await saveAndRestore(moves);
    expect(await guest.source.guest.waitFor('hotplug.button', 60_000, arrival)).toBe('1');
    expect(await states(moves)).toEqual({
      disk: 'present',
      stays: 'present',
      first: 'removal requested',
      second: 'present',
    });
    await hears(first, arrival);
    await letGo(first, arrival);
    expect(Object.keys(await states(moves))).toEqual(['disk', 'stays', 'second']);

    const from = guest.source.child.output().length;
    await guest.source.put('vm.remove-device', { id: 'second' });
    await hears(second, from);
    const next = guest.destination.child.output().length;
    await migrate(moves);
    expect((await states(moves)).second).toBe('removal requested');
    await letGo(second, next);
    expect(await states(moves)).toEqual({ disk: 'present', stays: 'present' });
    await eventually(
      'daemons',
      () => guest.source.daemons().length,
      (count) => count === 2,
      20_000,
    );

    await add(moves, { id: 'again', path: image() });
    await thereAndBack(moves);
    expect(await states(moves)).toEqual({ disk: 'present', stays: 'present', again: 'present' });
  });
});

describeWithPeers([...vmGuestPeers, ...namespacePeers], 'A guest that moves with all of that', () => {
  const cleanup = cleanupAfterEach();

  it('has disks and a network behind its IOMMU, in memory that came, and disks that come', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    await namespace.addBridge('br0');
    await namespace.run(`ip addr add ${HOST_ADDRESS}/24 dev br0`);
    const directory = cleanup.directory();
    const image = createImage(join(directory, 'disk'), 4 * MiB);
    const open = async (tap: string): Promise<readonly DeviceOverride[]> => {
      await namespace.addTap(tap, { bridge: 'br0' });
      const [disk, net] = await Promise.all([
        BlkBackend.start(cleanup, { image, extra: ['--incoming', '--iommu'] }),
        NetBackend.start(cleanup, { namespace, tap, ctrlVq: true, extra: [`--mac=${MAC}`, '--iommu'] }),
      ]);
      return [
        { id: 'disk', socket: disk.socket },
        { id: 'net', socket: net.socket },
      ];
    };
    const places = [await open('tapa'), await open('tapb')] as const;
    const [disk, net] = places[0] as [DeviceOverride, DeviceOverride];
    const moves = await start(cleanup, {
      parameters: { iommu: 'map', mem: 1, hotplug: 1, keep: 8, net: 1, peer: HOST_ADDRESS },
      cpus: 2,
      memory: { hotplug_size: 256 * MiB },
      devices: {
        disks: [{ id: 'disk', vhost_socket: disk.socket, iommu: true }],
        net: [{ id: 'net', vhost_socket: net.socket, mac: MAC, iommu: true }],
      },
    });
    const { guest } = moves;
    const own = (name: string): string => createImage(join(directory, name), 4 * MiB);
    await add(moves, { id: 'came', path: own('came'), iommu: true });
    const leaving = await add(moves, { id: 'leaving', path: own('leaving'), iommu: true });
    await resize(moves, 100 * MiB);
    await waitForFaults(moves);
    for (let round = 0; round < 6; round += 1) {
      const there = places[(round / 2 + 1) % 2];
      const from = guest.destination.child.output().length;
      if (round === 3) await guest.source.put('vm.remove-device', { id: 'leaving' });
      await (round % 2 === 0 ? migrate(moves, there, round === 2) : saveAndRestore(moves));
      await waitForFaults(moves);
      if (round === 3) await waitForRemoval(moves, leaving, from);
      // That of the disk that is gone too: its driver does not detach it.
      expect(await counters(moves)).toMatchObject({ domains: 4, attached_endpoints: 4, faults_dropped: 0 });
      await resize(moves, ([200, 20, 140, 60, 0, 256][round] ?? 0) * MiB);
      await guest.works(2);
    }
    expect(guest.number('net.unanswered')).toBe(0);
    expect(guest.number('net.mismatches')).toBe(0);
    expect(guest.number('net.answers')).toBeGreaterThan(0);
    expect(guest.number('hotplug.mismatches')).toBe(0);
  }, 120_000);
});
