/** The life of a virtual machine under load: pause, reboot, shutdown, hostile drivers, and that nothing is left of it. */

import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { cpuDuring, cpuWhenIdle, eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { buildGuest, guestCommandLine } from '../support/vm/guest-program.ts';
import { isRunning, VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 40_000;

/** Resolves when the guest has done nothing for half a second; a reset takes a tenth. */
const untilItWaits = async (vmm: VmmProcess): Promise<void> => {
  const end = performance.now() + DEADLINE_MS;
  for (let last = -1; performance.now() < end; await delay(500)) {
    const exits = (await vmm.counters()).vcpu0?.exits_io ?? 0;
    if (exits === last) return;
    last = exits;
  }
  throw new Error('the guest is not held up');
};

describeWithPeers(vmGuestPeers, 'A virtual machine', () => {
  const cleanup = cleanupAfterEach();
  const image = (): string => createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
  const start = (): Promise<BlkBackend> => BlkBackend.start(cleanup, { image: image() });

  it('stands still while it is paused, under load, and goes on where it was', async () => {
    const disk = await start();
    const parameters = { job: 'load', requests: 12_000, cpus: 2 };
    const vmm = VmmProcess.run(cleanup, { parameters, cpus: 2, disks: [`socket=${disk.socket}`] });
    await vmm.guest.waitFor('load.progress', DEADLINE_MS);
    for (let round = 0; round < 3; round++) {
      await vmm.put('vm.pause');
      expect(await vmm.state()).toBe('Paused');
      const before = { said: vmm.child.mark(), counters: await vmm.counters() };
      // An observation takes time, nothing is waited for.
      await delay(300);
      expect({ said: vmm.child.mark(), counters: await vmm.counters() }).toEqual(before);
      await vmm.put('vm.resume');
      expect(await vmm.state()).toBe('Running');
      await vmm.guest.waitFor('load.progress', DEADLINE_MS, before.said);
    }
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('load')).toMatchObject({ failures: 0, mismatches: 0 });
  });

  it('stops all its processors, and all go on', async () => {
    const disk = await BlkBackend.start(cleanup, { image: image(), numQueues: 2 });
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'smp', cpus: 2, requests: 4000 },
      cpus: 2,
      disks: [`socket=${disk.socket},num_queues=2`],
    });
    await vmm.guest.waitFor('smp.started', DEADLINE_MS);
    // A guest that polls keeps its processors busy.
    const busy = await cpuDuring(vmm.child.pid, 300);
    await vmm.put('vm.pause');
    const still = await cpuWhenIdle(vmm.child.pid, 300, 49);
    expect(still).toBeLessThan(50);
    expect(busy).toBeGreaterThan(still);
    await vmm.put('vm.resume');
    expect(vmm.guest.all('smp.requests')).toEqual([]);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('smp')).toEqual({ queues: 2, started: 2, requests: 8000, mismatches: 0 });
  });

  it('reboots itself, and finds its disk as it left it', async () => {
    const disk = await start();
    const parameters = { job: 'boots,load', requests: 200, start: 64, until: 4, end: 'reset' };
    const vmm = VmmProcess.run(cleanup, { parameters, disks: [`socket=${disk.socket}`] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('boots')).toEqual(['1', '2', '3', '4']);
    expect(vmm.guest.all('load.mismatches')).toEqual(['0', '0', '0']);
  });

  it.each([1, 2])('is rebooted through the API while %i of its processors have requests in flight', async (cpus) => {
    const disk = await BlkBackend.start(cleanup, { image: image(), numQueues: cpus });
    const job = cpus === 1 ? 'boots,load' : 'boots,smp';
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job, requests: 1_000_000, start: 64, until: 4, cpus },
      cpus,
      disks: [`socket=${disk.socket},num_queues=${cpus}`],
    });
    const busy = cpus === 1 ? 'load.depth' : 'smp.started';
    for (let from = 0, round = 1; round < 4; round++) {
      expect(await vmm.guest.waitFor(busy, DEADLINE_MS, from)).toBe(cpus === 1 ? '16' : '2');
      from = vmm.child.mark();
      await vmm.put('vm.reboot');
    }
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('boots')).toEqual(['1', '2', '3', '4']);
  });

  it('is rebooted through the API while it is halted or paused', async () => {
    const disk = await start();
    const parameters = { job: 'boots', until: 3, end: 'halt' };
    const vmm = VmmProcess.run(cleanup, { parameters, disks: [`socket=${disk.socket}`] });
    await vmm.guest.waitFor('end', DEADLINE_MS);
    const from = vmm.child.mark();
    await vmm.put('vm.reboot');
    await vmm.guest.waitFor('end', DEADLINE_MS, from);
    await vmm.put('vm.pause');
    await vmm.put('vm.reboot');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('boots')).toEqual(['1', '2', '3']);
  });

  it('survives a hostile driver, and so do its daemon and the next driver', async () => {
    const disk = await start();
    const idle = disk.fdCount();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'hostile,blk', kb: 128 },
      disks: [`socket=${disk.socket}`],
    });
    expect(await vmm.child.waitForClose(60_000)).toEqual(SHUT_DOWN);
    const cases = ['rings', 'sizes', 'registers', 'notifies', 'states', 'chains', 'resets', 'nobody'];
    expect(vmm.guest.numbers('hostile')).toMatchObject(Object.fromEntries(cases.map((name) => [name, 1])));
    expect(vmm.guest.numbers('hostile')).toMatchObject({ features_refused: 1, features_beyond: 0 });
    expect(new Set([...vmm.guest.all('hostile.read'), ...vmm.guest.all('hostile.in')])).toEqual(
      new Set(['0xffffffff']),
    );
    expect(vmm.guest.numbers('disk0')).toMatchObject({ failures: 0, mismatches: 0 });
    expect(disk.running).toBe(true);
    await eventually(
      'descriptors of the daemon',
      () => disk.fdCount(),
      (count) => count === idle,
    );
  });

  it('leaves nothing behind, whichever way it ends', async () => {
    const run = (end: string): VmmProcess =>
      VmmProcess.run(cleanup, { parameters: { job: 'blk,echo', kb: 16, end }, disks: [`path=${image()}`] });
    const ends: Record<string, (vmm: VmmProcess) => unknown> = {
      poweroff: () => undefined,
      lost: () => undefined,
      halt: (vmm) => vmm.put('vmm.shutdown'),
      spin: (vmm) => vmm.child.kill('SIGTERM'),
    };
    for (const [end, act] of Object.entries(ends)) {
      const vmm = run(end);
      await vmm.guest.waitFor('echo.ready', DEADLINE_MS);
      const daemons = vmm.daemons();
      expect(daemons).toHaveLength(1);
      // It waits for a word: then it ends.
      vmm.child.stdin.write('\n');
      await vmm.guest.waitFor('end', DEADLINE_MS);
      await act(vmm);
      await vmm.child.waitForClose(DEADLINE_MS);
      await eventually(
        'daemons that run',
        () => daemons.filter(isRunning),
        (left) => left.length === 0,
      );
      expect(readdirSync(dirname(vmm.apiSocket))).toEqual([]);
    }
  });

  it('ends when nobody can read its serial port any more, with processors that are in the guest', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'cpus', cpus: 2, end: 'reset' }, cpus: 2 });
    await vmm.guest.waitFor('cpus.started', DEADLINE_MS);
    vmm.child.stdout.destroy();
    expect(await vmm.child.waitForExit(DEADLINE_MS)).toEqual(SHUT_DOWN);
  });

  it('resets itself without a mapping more', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'info', end: 'triplefault', cpus: 2 }, cpus: 2 });
    const mappingsAfter = async (resets: number): Promise<number> => {
      const end = performance.now() + DEADLINE_MS;
      while (((await vmm.counters()).vm?.resets ?? 0) < resets) {
        if (performance.now() > end) throw new Error(`no ${resets} resets within ${DEADLINE_MS} ms`);
        await delay(20);
      }
      return readFileSync(`/proc/${vmm.child.pid}/maps`, 'utf8').split('\n').length;
    };
    const before = await mappingsAfter(5);
    // The heap may grow by some; a thread's stacks and buffers would be three a processor and reset.
    expect((await mappingsAfter(35)) - before).toBeLessThan(90);
  });

  it('is paused, rebooted and ended while nobody reads its serial port', async () => {
    const parameters = { job: 'info,info,info,info', end: 'reset', note: 'x'.repeat(1500) };
    const vmm = VmmProcess.run(cleanup, { parameters });
    await vmm.guest.waitFor('end', DEADLINE_MS);
    vmm.child.stdout.pause();
    await untilItWaits(vmm);
    for (const route of ['vm.pause', 'vm.resume', 'vm.reboot']) await vmm.put(route);
    vmm.child.stdout.resume();
    const from = vmm.child.mark();
    await vmm.guest.waitFor('end', DEADLINE_MS, from);
    vmm.child.stdout.pause();
    await untilItWaits(vmm);
    vmm.child.kill('SIGTERM');
    expect(await vmm.child.waitForExit(DEADLINE_MS)).toEqual({ code: 143, signal: null });
  });

  it('takes its daemons along when the VMM is killed', async () => {
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'load', requests: 16_000 },
      disks: [`path=${image()}`],
    });
    await vmm.guest.waitFor('load.progress', DEADLINE_MS);
    const daemons = vmm.daemons();
    vmm.child.kill('SIGKILL');
    await vmm.child.waitForClose(5000);
    await eventually(
      'daemons that run',
      () => daemons.filter(isRunning),
      (left) => left.length === 0,
    );
  });

  it('comes and goes in one process without a descriptor, thread or mapping more', async () => {
    const path = image();
    const vmm = VmmProcess.serve(cleanup);
    const config = {
      payload: { kernel: buildGuest('pvh'), cmdline: guestCommandLine({ job: 'blk', kb: 64, end: 'halt' }) },
      cpus: { boot_vcpus: 2, max_vcpus: 2 },
      memory: { size: 128 * MiB },
      disks: [{ path }],
      serial: { mode: 'Tty' },
      console: { mode: 'Off' },
    };
    let held = Number.POSITIVE_INFINITY;
    const guestMemory: number[] = [];
    for (let round = 0; round < 4; round++) {
      const from = vmm.child.mark();
      await vmm.put('vm.create', config);
      await vmm.put('vm.boot');
      await vmm.guest.waitUntilDone('blk', DEADLINE_MS, from);
      await vmm.put(round % 2 === 0 ? 'vm.delete' : 'vm.shutdown');
      if (round % 2 === 1) await vmm.put('vm.delete');
      expect(vmm.daemons()).toEqual([]);
      // The first machine loads modules and makes the event loop's descriptors. Connections of the API come and go.
      const count = await eventually(
        'descriptors',
        () => vmm.child.fdCount(),
        (now) => now <= held,
      );
      if (round === 1) held = count;
      guestMemory.push(vmm.memfds());
    }
    expect(guestMemory).toEqual([0, 0, 0, 0]);
    await vmm.put('vmm.shutdown');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
  });
});
