/** The machine as a guest sees it: how it is entered, its memory, processors, serial port, and the ways it ends. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { describeWithPeers } from '../support/peers.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 30_000;

describeWithPeers(vmGuestPeers, 'The virtual machine', () => {
  const cleanup = cleanupAfterEach();

  describe.each(['pvh', 'linux64', 'bzImage'] as const)('entered as %s', (form) => {
    it('tells the guest its command line, memory, ACPI tables and initramfs', async () => {
      const initramfs = join(cleanup.directory(), 'initramfs');
      writeFileSync(
        initramfs,
        Buffer.concat([Buffer.from('ringside'), Buffer.alloc(5000, 0x2e), Buffer.from('ram disk')]),
      );
      const vmm = VmmProcess.run(cleanup, {
        form,
        parameters: { job: 'info,memory', note: 'what/ever' },
        cpus: 2,
        memory: 'size=256M',
        extra: ['--initramfs', initramfs],
      });
      expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
      const { guest } = vmm;
      expect(guest.text('boot')).toBe(form === 'pvh' ? 'pvh' : 'linux64');
      // __BOOT_CS and __BOOT_DS: Linux Documentation/arch/x86/boot.rst, 64-bit Boot Protocol.
      if (form !== 'pvh') expect(guest.text('segments')).toBe('0x100018');
      expect(guest.text('cmdline')).toContain('note=what/ever');
      expect(guest.all('map')).toEqual(expect.arrayContaining(['0x100000,0xff00000,1']));
      for (const table of ['XSDT', 'FACP', 'APIC', 'DSDT']) expect(guest.text(`acpi.${table}`)).toBe('ok');
      expect(guest.number('acpi.processors')).toBe(2);
      expect(guest.number('acpi.hardware_reduced')).toBe(1);
      expect(guest.number('initramfs')).toBe(5016);
      const word = (text: string): string => `0x${Buffer.from(text).reverse().toString('hex')}`;
      expect(guest.text('initramfs.start')).toBe(word('ringside'));
      expect(guest.text('initramfs.end')).toBe(word('ram disk'));
      expect(guest.numbers('memory')).toMatchObject({ touched: 3, mismatches: 0 });
    });
  });

  it('has memory around the hole and beyond 64 GiB', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'info,memory' }, memory: 'size=96G' });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    // 3 GiB below the hole of 1 GiB, the other 93 from 4 GiB on.
    expect(vmm.guest.all('map')).toEqual(
      expect.arrayContaining(['0x100000,0xbff00000,1', '0x100000000,0x1740000000,1']),
    );
    const { bytes, touched, mismatches } = vmm.guest.numbers('memory');
    expect(bytes).toBeGreaterThan(96 * 2 ** 30 - 2 ** 20);
    expect(touched).toBeGreaterThan(96);
    expect(mismatches).toBe(0);
  });

  it('starts as many processors as it was told', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'cpus', cpus: 4 }, cpus: 4 });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('cpus')).toEqual({ started: 4, seen: 0xf });
  });

  it('has a 16550 that reads and writes', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'serial,echo' } });
    await vmm.guest.waitFor('echo.ready');
    vmm.child.stdin.write('from the outside\n');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('serial')).toEqual({ scratch: 0x5a, fifo: 1, divisor: 1, empty: 1 });
    expect(vmm.guest.text('echo.text')).toBe('from the outside');
  });

  it.each(['reset', 'i8042', 'triplefault'])('starts the guest again on %s', async (end) => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'cpus', cpus: 2, end }, cpus: 2 });
    await vmm.child.waitFor(new RegExp(`(boot=pvh[^]*end=${end}[^]*){3}`), DEADLINE_MS);
    expect((await vmm.counters()).vm?.resets).toBeGreaterThanOrEqual(2);
    // Each time the other processor waited for its start like the first time.
    expect(new Set(vmm.guest.all('cpus.seen'))).toEqual(new Set(['0x3']));
  });

  it('ends with an error and a sentence when a processor cannot go on', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'info', end: 'lost' } });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual({ code: 1, signal: null });
    expect(vmm.child.output()).toMatch(/vCPU 0 cannot go on/);
  });
});
