#!/usr/bin/env node
/** The `ringside` command: process, signals, exit codes. */

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CommanderError } from 'commander';
import { createProgram } from './program.ts';
import { UsageError } from './quantity.ts';

const EXIT_FAILURE = 1;
const EXIT_USAGE = 2;
const EXIT_INTERRUPTED = 130;

class Interrupted extends Error {
  override readonly name = 'Interrupted';
  readonly code = 'INTERRUPTED';
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
  if (error instanceof Interrupted) return EXIT_INTERRUPTED;
  const known = error instanceof RangeError || (error instanceof Error && 'code' in error);
  if (!known) throw error;
  process.stderr.write(`ringside: ${error.message}\n`);
  return error instanceof UsageError ? EXIT_USAGE : EXIT_FAILURE;
}

const interruption = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    // The second one does not wait for an orderly end.
    if (interruption.signal.aborted) process.exit(EXIT_INTERRUPTED);
    interruption.abort(new Interrupted(signal));
  });
}
// A reader that has seen enough (head, less) ends the command, not an error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`ringside: standard output: ${error.message}\n`);
  process.exit(EXIT_FAILURE);
});

const program = createProgram(
  { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr, interrupted: interruption.signal },
  readVersion(),
);
try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}
