#!/usr/bin/env node
/** The `ringside` command: process, signals, exit codes. */

import { readFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CommanderError } from 'commander';
import { createProgram } from './program.ts';
import { UsageError } from './quantity.ts';

const EXIT_FAILURE = 1;
const EXIT_USAGE = 2;
/** What a shell makes of a signal, 130 for SIGINT. */
const EXIT_SIGNAL = 128;
/** How long an interrupted command waits for the reader of its output. */
const FLUSH_MS = 2000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

class Interrupted extends Error {
  override readonly name = 'Interrupted';
  readonly code = 'INTERRUPTED';
  readonly exitCode: number;

  constructor(signal: (typeof SIGNALS)[number]) {
    super(signal);
    this.exitCode = EXIT_SIGNAL + constants.signals[signal];
  }
}

/** The version in package.json, which is above this file in the sources and in the build. */
function readVersion(): string {
  for (let directory = dirname(fileURLToPath(import.meta.url)); ; directory = dirname(directory)) {
    try {
      return JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8')).version;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || directory === dirname(directory)) throw error;
    }
  }
}

/** The exit code of a failure, after saying what it was. Mistakes of this program are not caught: they are to be seen. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
  if (error instanceof Interrupted) return error.exitCode;
  const known = error instanceof RangeError || (error instanceof Error && 'code' in error);
  if (!known) throw error;
  process.stderr.write(`ringside: ${error.message}\n`);
  const isUsage = error instanceof UsageError || ('code' in error && error.code === 'VM_CONFIG');
  return isUsage ? EXIT_USAGE : EXIT_FAILURE;
}

/** Whether whoever started us wants the signal to be ignored, as nohup does: a handler would be heard all the same. */
function isIgnored(signal: (typeof SIGNALS)[number]): boolean {
  const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return ((BigInt(`0x${mask}`) >> BigInt(constants.signals[signal] - 1)) & 1n) === 1n;
}

const interruption = new AbortController();
for (const signal of SIGNALS) {
  if (signal === 'SIGHUP' && isIgnored(signal)) continue;
  process.on(signal, () => {
    const reason = new Interrupted(signal);
    // The second one does not wait for an orderly end.
    if (interruption.signal.aborted) process.exit(reason.exitCode);
    interruption.abort(reason);
  });
}
// A reader that has seen enough (head, less) ends the command, not an error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`ringside: standard output: ${error.message}\n`);
  process.exit(EXIT_FAILURE);
});

const exitHooks = new Set<() => void>();
process.on('exit', () => {
  for (const hook of exitHooks) hook();
});

const program = await createProgram(
  {
    // Looked at by a command that reads it: a terminal that is opened has to be closed.
    get stdin() {
      return process.stdin;
    },
    stdout: process.stdout,
    stderr: process.stderr,
    interrupted: interruption.signal,
    host: {
      root: fileURLToPath(new URL('../..', import.meta.url)),
      runtimeDirectory: process.env.XDG_RUNTIME_DIR ?? tmpdir(),
      onExit: (hook) => {
        exitHooks.add(hook);
        return () => exitHooks.delete(hook);
      },
    },
  },
  readVersion(),
  process.argv[2],
);
try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
  // What nobody reads of the output is not waited for by who was interrupted.
  if (error instanceof Interrupted) setTimeout(() => process.exit(), FLUSH_MS).unref();
}
