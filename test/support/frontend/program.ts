/** The vhost-user-blk program run with any arguments and inherited descriptors, for tests of its command line. */

import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { Cleanup } from '../cleanup.ts';
import { projectDirectory } from '../peers.ts';
import { forgetGroup, watchGroup } from '../watchdog.ts';
import { eventually } from './process-probe.ts';

export const BLK_MAIN = join(projectDirectory, 'dist/backends/blk/main.js');

export interface ProgramExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export class Program {
  readonly #process: ChildProcess;
  readonly #exited: Promise<ProgramExit>;
  stdout = '';
  stderr = '';
  ended = false;

  /** Starts it; the first of `fds` becomes descriptor 3 of the child, and so on. `cleanup` kills it at the latest. */
  constructor(cleanup: Cleanup, args: readonly string[], fds: readonly OwnedFd[] = [], command = process.execPath) {
    const argv = command === process.execPath ? [BLK_MAIN, ...args] : args;
    this.#process = spawn(command, argv, {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe', ...fds.map((fd) => fd.fd)],
    });
    const group = this.#process.pid;
    if (group !== undefined) watchGroup(group);
    this.#process.stdout?.on('data', (text: Buffer) => {
      this.stdout += text.toString();
    });
    this.#process.stderr?.on('data', (text: Buffer) => {
      this.stderr += text.toString();
    });
    // 'close' comes when the output was read to its end, too.
    this.#exited = new Promise((resolve) => {
      this.#process.once('close', (code, signal) => {
        this.ended = true;
        if (group !== undefined) forgetGroup(group);
        resolve({ code, signal });
      });
    });
    cleanup.add(async () => {
      this.kill('SIGKILL');
      await this.#exited;
    });
  }

  get pid(): number {
    if (this.#process.pid === undefined) throw new Error('the program did not start');
    return this.#process.pid;
  }

  kill(signal: NodeJS.Signals): void {
    if (!this.ended) this.#process.kill(signal);
  }

  /** @throws Error - it has not ended within deadlineMs */
  async waitForExit(deadlineMs = 10_000): Promise<ProgramExit> {
    await eventually(
      'whether the program ended',
      () => this.ended,
      (ended) => ended,
      deadlineMs,
    );
    return this.#exited;
  }

  /** @throws Error - stderr does not match within deadlineMs */
  waitForLog(pattern: RegExp, deadlineMs = 10_000): Promise<string> {
    return eventually(
      `log of the program (${pattern})`,
      () => this.stderr,
      (text) => pattern.test(text),
      deadlineMs,
    );
  }
}
