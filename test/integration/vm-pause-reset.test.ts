/**
 * A machine that is paused while its guest resets it. The VMM runs in this process, so that the pause can come between the
 * guest's reset and the moment at which the VMM hears of it. The compiled modules are used, because vCPUs are threads.
 */

import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { describeWithPeers, projectDirectory } from '../support/peers.ts';
import { buildGuest, type GuestParameters, guestCommandLine } from '../support/vm/guest-program.ts';
import { vmGuestPeers } from '../support/vm/vmm-process.ts';

type Vmm = import('../../vmm-client/vmm/vmm.ts').Vmm;

const MiB = 1 << 20;
const DEADLINE_MS = 40_000;
const main = `file://${join(projectDirectory, 'dist/vmm-client/vmm/vmm.js')}`;

describeWithPeers(vmGuestPeers, 'a guest that resets itself', () => {
  const cleanup = cleanupAfterEach();

  const boot = async (parameters: GuestParameters) => {
    const { Vmm } = (await import(/* @vite-ignore */ main)) as typeof import('../../vmm-client/vmm/vmm.ts');
    const lines: string[] = [];
    const note = (...words: unknown[]): void => void lines.push(String(words.at(-1)));
    const output = new PassThrough();
    let said = '';
    output.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const vmm: Vmm = new Vmm({
      version: 'test',
      endsWithGuest: false,
      log: { info: note, warn: note, error: note },
      supervisor: { start: () => Promise.reject(new Error('no daemon')) },
      input: new PassThrough(),
      output,
    });
    cleanup.add(() => vmm.close());
    const cpus = { boot_vcpus: 1, max_vcpus: 1 };
    const payload = { kernel: buildGuest('pvh'), cmdline: guestCommandLine(parameters) };
    const serial = { mode: 'Tty' as const };
    await vmm.create({ payload, cpus, memory: { size: 64 * MiB }, serial, console: { mode: 'Off' } });
    await vmm.boot();
    return { vmm, lines, boots: () => said.split('\nend=').length - 1 };
  };

  const exits = async (vmm: Vmm): Promise<Readonly<Record<string, number>>> => (await vmm.counters()).vcpu0 ?? {};

  /** Pauses when the guest has reset the machine and the VMM has not heard of it: the event waits for this thread's turn. */
  const pauseInReset = async ({ vmm, lines, boots }: Awaited<ReturnType<typeof boot>>): Promise<void> => {
    for (const end = performance.now() + DEADLINE_MS; performance.now() < end; await new Promise(setImmediate)) {
      // The guest says so before it resets the machine, the VMM when it has heard.
      if (boots() <= lines.length) continue;
      for (const until = performance.now() + 5; performance.now() < until; ) {
        // No turn of the event loop in between.
        if (((await exits(vmm)).exits_shutdown ?? 0) === 0) continue;
        await vmm.pause();
        return;
      }
    }
    throw new Error('the guest does not reset the machine');
  };

  it('and is paused at that moment, is paused when it is reset, and begins when it is resumed', async () => {
    const guest = await boot({ job: 'info', end: 'triplefault' });
    const { vmm, lines, boots } = guest;
    await pauseInReset(guest);
    const { resets = 0 } = (await vmm.counters()).vm ?? {};
    const isReset = (): boolean => lines.length > resets;
    await eventually('the reset', isReset, (is) => is);
    // What is asked in turn is answered when the reset is done.
    await expect(vmm.pause()).rejects.toThrow('the VM is paused already');
    expect((await vmm.counters()).vm?.resets).toBe(resets + 1);

    const look = async () => ({ info: (await vmm.info()).state, boots: boots(), vcpu: await exits(vmm) });
    const before = await look();
    expect(before.info).toBe('Paused');
    // An observation takes time, nothing is waited for.
    await delay(300);
    expect(await look()).toEqual(before);

    await vmm.resume();
    await eventually('boots', boots, (count) => count > before.boots, DEADLINE_MS);
    expect(new Set(lines)).toEqual(new Set(['the guest resets the machine']));
  });

  it('and is paused then can be rebooted, and runs', async () => {
    const guest = await boot({ job: 'info', end: 'triplefault' });
    const { vmm, boots } = guest;
    await pauseInReset(guest);
    const before = boots();
    await vmm.reboot();
    expect((await vmm.info()).state).toBe('Running');
    await eventually('boots', boots, (count) => count > before, DEADLINE_MS);
  });
});
