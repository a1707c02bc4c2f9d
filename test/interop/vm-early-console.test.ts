/**
 * Debian's kernels, as they are, in `ringside vm run` on this machine's KVM, as far as any KVM takes them: what they say
 * on an early console. Up to user space: vm-nested.test.ts.
 */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { vmlinuxPath } from '../support/guest/vmlinux.ts';
import { describeWithPeers, peerPath, projectDirectory } from '../support/peers.ts';

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');
const CMDLINE = 'earlyprintk=serial,ttyS0,115200 nokaslr ringside=was-here';
/** Where KVM emulates, a kernel takes seconds to its first word. */
const DEADLINE_MS = 200_000;

describeWithPeers(['KVM', 'cloud kernel', 'lz4'], "Debian's kernel on an early console", () => {
  const cleanup = cleanupAfterEach();

  function boot(kernel: string, memory: string): Child {
    // A hypervisor that emulates kernels does not know every instruction that the processor says it has.
    const machine = ['--cpus', 'boot=1,hide=cx16+xsave', '--memory', memory];
    const child = new Child(process.execPath, [
      MAIN,
      'vm',
      'run',
      '--kernel',
      kernel,
      '--cmdline',
      CMDLINE,
      ...machine,
    ]);
    cleanup.add(() => child.stop());
    return child;
  }

  it('finds 96 GiB around the hole, its command line and the tables (vmlinux, PVH)', async () => {
    const child = boot(vmlinuxPath(), '96G');
    await child.waitFor(/Linux version 6\.\d+/, DEADLINE_MS);
    await child.waitFor(new RegExp(`Command line: ${CMDLINE}`), DEADLINE_MS);
    await child.waitFor(/BIOS-e820: \[mem 0x0000000100000000-0x000000183fffffff\] usable/, DEADLINE_MS);
    await child.waitFor(/Hypervisor detected: KVM/, DEADLINE_MS);
    await child.waitFor(/ACPI: APIC 0x[0-9A-F]+/, DEADLINE_MS);
    const map = [...child.output().matchAll(/BIOS-e820: \[mem (0x[0-9a-f]+)-(0x[0-9a-f]+)\] usable/g)];
    expect(map.map(([, start, end]) => [Number(start), Number(end)])).toEqual([
      [0, 0x9fbff],
      [0x100000, 0xbfffffff],
      [0x1_0000_0000, 0x18_3fff_ffff],
    ]);
  });

  it('unpacks itself with our command line before it (bzImage, 64-bit entry)', async () => {
    const child = boot(peerPath('cloud kernel'), '1G');
    await child.waitFor(/KASLR disabled: 'nokaslr' on cmdline/, DEADLINE_MS);
  });
});
