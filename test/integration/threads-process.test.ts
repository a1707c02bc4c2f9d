/**
 * A thread that serves rings and the process that it belongs to, with data paths that fail on purpose, in a process of
 * its own each: whatever goes wrong in a thread ends the process; nothing hangs. And the gate between threads that write
 * to one disk, under stress.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Child, type ChildExit } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { projectDirectory } from '../support/peers.ts';

const cleanup = cleanupAfterEach();
const dist = `file://${join(projectDirectory, 'dist')}`;

const run = async (code: string): Promise<ChildExit & { output: string }> => {
  const file = join(cleanup.directory(), 'main.mjs');
  writeFileSync(file, code);
  const child = new Child(process.execPath, [file]);
  cleanup.add(() => child.stop());
  const exit = await child.waitForClose(30_000);
  return { ...exit, output: child.output() };
};

/** A data path that has nothing to do. */
const MODULE = `
import { SysError } from '${dist}/protocol/sys/errors.js';
import { UsageError } from '${dist}/backends/core/options.js';
const path = {
  budget: 1, mustPoll: false, isFull: false, onCompletion() {}, arm() {}, shutDown() {}, poll: () => 0,
  serve: (shared) => ({
    ringTraits() { throw new RangeError('a mistake of ours'); },
    ringChanged() {},
    processQueue: () => 0,
  }),
};
`;

const FEATURES = '{ packed: false, indirect: false, eventIdx: false, inOrder: false, translated: true }';
const TRANSLATION = "{ kind: 'update', iova: 0n, size: 0n, userAddress: 0n, permission: 3 }";

/** Starts a thread whose module is MODULE with `open` for its openDataPath, and goes on with `code`. */
const withThread = (open: string, code: string): Promise<ChildExit & { output: string }> => {
  const file = join(cleanup.directory(), 'path.mjs');
  writeFileSync(file, `${MODULE}\nexport function openDataPath() { ${open} }`);
  return run(`
    const { RingThread } = await import('${dist}/backends/core/ring-thread.js');
    const { createLogger } = await import('${dist}/backends/core/logging.js');
    const log = await createLogger('test', { logLevel: 'info', logFormat: 'json' });
    const worker = { module: 'file://${file}', data: undefined, laneOf: () => 0 };
    // Without it a hang would look like an orderly end: nothing left to do.
    const patience = setInterval(() => undefined, 1000);
    const say = (text) => console.log(String(text));
    const events = { onMemoryFault() {}, onMissing() {}, onSignal() {} };
    const start = () => RingThread.start(worker, 0, { pollUs: 0, alwaysPoll: false }, log);
    const description = { size: 4, base: 0, addresses: undefined, usedLog: undefined, inflight: undefined };
    const features = ${FEATURES};
    ${code}
    clearInterval(patience);
  `);
};

describe('a thread', () => {
  it.each([
    ['a mistake of the user', "throw new UsageError('--so: cannot be');", 'UsageError,--so: cannot be'],
    ['a failed call', "throw new SysError('open', 13, 'the disk');", 'SysError,open the disk: '],
  ])('that cannot open its data path for %s tells why', async (_, open, text) => {
    const end = await withThread(open, 'await start().catch((error) => say([error.name, error.message]));');

    expect(end).toMatchObject({ code: 0, signal: null });
    expect(end.output).toContain(text);
  });

  it.each([
    ['does not load', "throw new TypeError('gone wrong')", 'await start()', /: gone wrong$/m],
    [
      'fails in a call',
      'return path;',
      "await (await start()).openServer({}, 1, events, log).start(0, description, undefined, true); say('answered');",
      /: a mistake of ours$/m,
    ],
    [
      'fails while it serves',
      'setImmediate(() => { throw new RangeError("later"); }); return path;',
      'await start(); await new Promise(() => undefined);',
      /: later$/m,
    ],
    [
      'ends by itself',
      'setImmediate(() => process.exit(0)); return path;',
      'await start(); await new Promise(() => undefined);',
      /thread 0 ended by itself, with status 0/,
    ],
  ])('that %s ends the process', async (_, open, code, text) => {
    const end = await withThread(open, code);

    expect(end).toMatchObject({ code: 1, signal: null });
    expect(end.output).toMatch(text);
    expect(end.output).not.toContain('answered');
  });

  it('does the calls of a front end in their order, refuses some, and answers those that come after the last', async () => {
    const end = await withThread(
      'return path;',
      `
        const thread = await start();
        const server = thread.openServer({}, 2, events, log.child({ connection: 1 }));
        const done = [];
        const note = (name) => [() => done.push(name), (error) => done.push(name + ': ' + error.name)];
        await Promise.all([
          server.setFeatures(features).then(...note('features')),
          server.translate(${TRANSLATION}).then(...note('translate')),
          server.stop(0).then(...note('stop')),
          server.close().then(...note('close')),
          server.breakAll().then(...note('late')),
        ]);
        await server.translate({ kind: 'deny', iova: 0, writable: true }).then(...note('later'));
        await thread.end();
        say(done.join(', '));
      `,
    );

    expect(end).toMatchObject({ code: 0, signal: null });
    expect(end.output).toContain('features, translate: Refused, stop, close, late, later');
  });
});

describe('the gate of a disk', () => {
  it('lets requests that must run alone run alone, and everybody comes through', async () => {
    // Each thread does what a data path does: it counts those inside, and looks whether it is alone when it must be. Nobody
    // polls: who misses a change waits for ever.
    const code = `
      const { parentPort, workerData } = require('node:worker_threads');
      (async () => {
        const { BlkDiskState } = await import('${dist}/backends/blk/state.js');
        const gate = new BlkDiskState(workerData.gate);
        const inside = new Int32Array(workerData.inside);
        const { path, rounds } = workerData;
        let wrong = 0;
        const until = async (passes) => {
          for (;;) {
            const seen = gate.changes;
            if (passes()) return;
            await new Promise((resolve) => gate.whenChanged(seen, resolve));
          }
        };
        const alive = setInterval(() => {}, 1e6);
        for (let round = 0; round < rounds; round += 1) {
          await until(() => gate.tryBegin(path));
          if ((round + path) % 3 !== 0) {
            Atomics.add(inside, 0, 1);
            for (let i = 0; i < 100; i += 1) if (Atomics.load(inside, 1) !== 0) wrong += 1;
            if (round % 16 === 0) await new Promise(setImmediate);
            Atomics.sub(inside, 0, 1);
            gate.end();
            continue;
          }
          gate.end();
          await until(() => gate.tryTake(path) && gate.inFlight === 0);
          if (Atomics.add(inside, 1, 1) !== 0) wrong += 1;
          for (let i = 0; i < 1000; i += 1) if (Atomics.load(inside, 0) !== 0) wrong += 1;
          if (round % 16 === 0) await new Promise(setImmediate);
          Atomics.sub(inside, 1, 1);
          gate.shareAgain();
        }
        clearInterval(alive);
        parentPort.postMessage(wrong);
      })();
    `;
    const end = await run(`
      const { Worker } = await import('node:worker_threads');
      const { BlkDiskState } = await import('${dist}/backends/blk/state.js');
      const gate = new BlkDiskState();
      const inside = new SharedArrayBuffer(8);
      const wrong = await Promise.all([0, 1, 2].map((path) => new Promise((resolve, reject) => {
        const workerData = { gate: gate.shared, inside, path, rounds: 6000 };
        const thread = new Worker(${JSON.stringify(code)}, { eval: true, execArgv: [], workerData });
        thread.once('message', resolve).once('error', reject);
      })));
      console.log('wrong', wrong.join(' '), 'left', gate.inFlight, gate.tryBegin(0));
    `);

    expect(end.output).toContain('wrong 0 0 0 left 0 true');
  });
});
