/**
 * Mappings that threads of one process share, in a process of its own: what one thread maps, others see, and whichever
 * thread finds pages missing, all that use the mapping hear of it.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { faultGuardAvailable } from '../../protocol/sys/fault-guard.ts';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { projectDirectory } from '../support/peers.ts';

const cleanup = cleanupAfterEach();
const modules = `file://${join(projectDirectory, 'dist/protocol')}`;

const IMPORTS = `
const { Worker, parentPort } = await import('node:worker_threads');
const { libc } = await import('${modules}/sys/libc.js');
const { OwnedFd } = await import('${modules}/sys/owned-fd.js');
const { SharedMapping, StitchedMapping } = await import('${modules}/sys/mapping.js');
const { installedHandler } = await import('${modules}/sys/signal-handler.js');
const { GuestMemory } = await import('${modules}/memory/guest-memory.js');
const { deepStrictEqual } = await import('node:assert');
const SIGBUS = 7;
const memory = new GuestMemory();
const memfd = (length) => {
  const fd = libc.memfd_create('shared', 1);
  libc.ftruncate(fd, length);
  return fd;
};
`;

const WORKER_PROLOGUE = `
const { fd, regions, code } = require('node:worker_threads').workerData;
(async () => {
  ${IMPORTS}
  memory.adopt(regions);
  parentPort.postMessage(await eval('(async () => {' + code + '})()'));
})();
`;

/** A worker gets the regions of \`memory\` and \`fd\` of their file, and posts what \`code\` returns. */
const MAIN_PROLOGUE = `
${IMPORTS}
const fd = memfd(16384);
memory.add({ guestAddress: 0, size: 16384, userAddress: 0, mmapOffset: 0 }, new OwnedFd(fd));
const worker = (code) => new Promise((resolve, reject) => {
  const regions = memory.regions.map((region) => region.share());
  const thread = new Worker(${JSON.stringify(WORKER_PROLOGUE)}, {
    eval: true,
    execArgv: [],
    workerData: { fd, regions, code },
  });
  let answer;
  thread.once('message', (message) => { answer = message; });
  thread.once('error', reject);
  thread.once('exit', () => resolve(answer));
});
`;

const succeeds = async (body: string): Promise<void> => {
  const code = `${MAIN_PROLOGUE}\n${body}\nconsole.log('alive');`;
  const child = new Child(process.execPath, ['--input-type=module', '-e', code]);
  cleanup.add(() => child.stop());
  const { code: status, signal } = await child.waitForClose(15_000);
  expect(`${child.output()} ${status} ${signal}`).toMatch(/alive\s+0 null$/);
};

describe('a thread that borrows guest memory', () => {
  it('reads and writes what its owner does, and leaves it mapped when it ends', async () => {
    await succeeds(`
      memory.copyIn(5000, Uint8Array.of(1, 2));
      const read = await worker(\`
        const bytes = new Uint8Array(2);
        memory.copyOut(5000, bytes);
        memory.copyIn(9000, Uint8Array.of(7));
        memory.clear();
        return bytes;
      \`);
      const written = new Uint8Array(1);
      memory.copyOut(9000, written);
      deepStrictEqual([...read, ...written], [1, 2, 7]);
    `);
  });
});

describe.runIf(faultGuardAvailable)('the fault guard of several threads', () => {
  it('shows a fault of the owner to the borrower, and the other way round', async () => {
    await succeeds(`
      const first = memory;
      libc.ftruncate(fd, 0);
      const before = first.faulted;
      const inWorker = await worker(\`
        const seen = memory.faulted;
        memory.copyIn(0, Uint8Array.of(1));
        return [seen, memory.faulted];
      \`);
      deepStrictEqual([before, ...inWorker, first.faulted], [false, false, true, true]);
      deepStrictEqual(await worker('return memory.faulted;'), true);
    `);
  });

  it('is one handler with one table, in which every thread guards mappings of its own', async () => {
    await succeeds(`
      const handler = installedHandler(SIGBUS);
      const threads = await Promise.all([1, 2, 3].map(() => worker(\`
        const { address } = memory.regions[0].mapping;
        let faults = 0;
        for (let i = 0; i < 300; i += 1) {
          const own = memfd(8192);
          const mapping = new SharedMapping(own, 0, 8192);
          const stitched = new StitchedMapping([{ address: mapping.address + 4096, length: 4096 }]);
          const bytes = new Uint8Array(stitched.view(0, 4096));
          libc.ftruncate(own, 0);
          bytes[i] = 1;
          if (stitched.faulted && !mapping.faulted && !memory.faulted) faults += 1;
          stitched.retire();
          mapping.retire();
          libc.close(own);
        }
        return [faults, installedHandler(SIGBUS)];
      \`)));
      deepStrictEqual(threads, Array(3).fill([300, handler]));
      deepStrictEqual(memory.faulted, false);
    `);
  });
});
