/**
 * The SIGBUS handler in a process of its own, where a mistake ends only that: what is guarded survives, in every thread,
 * and what is not guarded still ends the process, as without a handler.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { faultGuardAvailable } from '../../protocol/sys/fault-guard.ts';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { projectDirectory } from '../support/peers.ts';

const cleanup = cleanupAfterEach();
const sys = (name: string): string =>
  JSON.stringify(`file://${join(projectDirectory, `dist/protocol/sys/${name}.js`)}`);

const PROLOGUE = `
import { readFileSync } from 'node:fs';
import { Worker, isMainThread } from 'node:worker_threads';
import { libc, viewMemory } from ${sys('libc')};
import { SharedMapping } from ${sys('mapping')};
const memfd = (length) => {
  const fd = libc.memfd_create('fault', 1);
  libc.ftruncate(fd, length);
  return fd;
};
const guarded = (fd) => {
  const mapping = new SharedMapping(fd, 0, 8192);
  return { mapping, bytes: new Uint8Array(mapping.view(0, 8192)) };
};
`;

const run = (code: string): Child => {
  const child = new Child(process.execPath, ['--input-type=module', '-e', PROLOGUE + code]);
  cleanup.add(() => child.stop());
  return child;
};

describe.runIf(faultGuardAvailable)('a process with guarded mappings', () => {
  it('survives a fault in one of them, again and again', async () => {
    const child = run(`
      for (let i = 0; i < 1000; i += 1) {
        const fd = memfd(8192);
        const { mapping, bytes } = guarded(fd);
        libc.ftruncate(fd, 0);
        bytes[4096] += 1;
        if (!mapping.faulted) throw new Error('not noticed');
        mapping.retire();
        libc.close(fd);
      }
      console.log('alive');
    `);

    await child.waitFor(/alive/, 10_000);
    expect(await child.waitForExit(5_000)).toEqual({ code: 0, signal: null });
  });

  it('finds zeros in the page of the fault, and nothing for system calls in the others', async () => {
    const child = run(`
      const [fd, file] = [memfd(8192), memfd(0)];
      const { mapping, bytes } = guarded(fd);
      bytes.fill(7);
      libc.ftruncate(fd, 0);
      console.log('read', bytes[1], 'write', [0, 4096].map((at) => libc.pwrite(file, mapping.address + at, 100, 0)));
    `);

    await child.waitFor(/read 0 write \[ 100, -1 \]/, 10_000);
    expect(await child.waitForExit(5_000)).toEqual({ code: 0, signal: null });
  });

  it('survives more faults than a process may have mappings, and then some in other mappings', async () => {
    const child = run(`
      const pages = 100_000;
      for (let round = 0; round < 3; round += 1) {
        const fd = memfd(pages * 4096);
        const mapping = new SharedMapping(fd, 0, pages * 4096);
        const bytes = new Uint8Array(mapping.view(0, pages * 4096));
        libc.ftruncate(fd, 0);
        let sum = 0;
        for (let page = 0; page < pages; page += 2) sum += bytes[page * 4096];
        const { length } = readFileSync('/proc/self/maps', 'utf8').split('\\n');
        console.log('round', round, sum, mapping.faulted, length < 1000);
        mapping.retire();
        libc.close(fd);
      }
    `);

    await child.waitFor(/round 2 0 true true/, 20_000);
    expect(await child.waitForExit(5_000)).toEqual({ code: 0, signal: null });
  });

  it('survives a fault in a worker thread', async () => {
    const child = run(`
      const fd = memfd(8192);
      const { mapping } = guarded(fd);
      libc.ftruncate(fd, 0);
      const code = \`
        import(${sys('libc')}).then(({ viewMemory }) => {
          new Uint8Array(viewMemory(\${mapping.address}, 8192))[5000] = 7;
          process.exit(0);
        });
      \`;
      const worker = new Worker(code, { eval: true });
      worker.on('exit', () => console.log('worker ended', mapping.faulted));
    `);

    await child.waitFor(/worker ended true/, 10_000);
    expect(await child.waitForExit(5_000)).toEqual({ code: 0, signal: null });
  });

  it.each([
    ['in a mapping that nobody guards', 'const at = libc.mmap(0, 8192, 3, 1, fd, 0);'],
    [
      'in one whose guard ended',
      'const { mapping } = guarded(fd); mapping.retire(); const at = libc.mmap(0, 8192, 3, 1, fd, 0);',
    ],
  ])('is ended by SIGBUS for a fault %s', async (_, map) => {
    const child = run(`
      const other = guarded(memfd(8192));
      const fd = memfd(8192);
      ${map}
      libc.ftruncate(fd, 0);
      console.log('touching');
      new Uint8Array(viewMemory(Number(at), 8192))[0] = 1;
      console.log('alive');
    `);

    expect((await child.waitForClose(10_000)).signal).toBe('SIGBUS');
    expect(child.output()).toMatch(/touching/);
    expect(child.output()).not.toMatch(/alive/);
  });
});
