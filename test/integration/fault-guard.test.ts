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

    expect((await child.waitForExit(10_000)).signal).toBe('SIGBUS');
    expect(child.output()).toMatch(/touching/);
    expect(child.output()).not.toMatch(/alive/);
  });
});
