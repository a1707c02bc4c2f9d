/**
 * What a test has to take down again, in reverse order of setting up, also when it failed half-way.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach } from 'vitest';
import { watchDirectory } from './watchdog.ts';

export class Cleanup {
  readonly #steps: (() => Promise<unknown> | unknown)[] = [];

  add(step: () => Promise<unknown> | unknown): void {
    this.#steps.push(step);
  }

  /** A directory that goes away with the test. Its path is short: a socket's has at most 107 bytes. */
  directory(): string {
    const path = mkdtempSync(join(tmpdir(), 'ringside-'));
    watchDirectory(path);
    this.add(() => rmSync(path, { recursive: true, force: true }));
    return path;
  }

  /** Takes everything down. @throws AggregateError - after all of it, when steps failed. */
  async run(): Promise<void> {
    const errors: unknown[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, 'clean-up failed');
  }
}

/** A Cleanup that runs after the tests of the surrounding describe. */
export const cleanupAfterAll = (): Cleanup => {
  const cleanup = new Cleanup();
  afterAll(() => cleanup.run(), 30_000);
  return cleanup;
};

/** A Cleanup that runs after each test of the surrounding describe. */
export const cleanupAfterEach = (): Cleanup => {
  const cleanup = new Cleanup();
  afterEach(() => cleanup.run(), 30_000);
  return cleanup;
};
