/**
 * A machine with a KVM that runs operating systems: this one, or one that QEMU emulates, processor and all, where this
 * one's /dev/kvm cannot. Both have the same programs and files under the same paths, so a test does not care.
 */

import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath, projectDirectory } from '../peers.ts';
import { Guest } from './guest.ts';

export interface KvmHost {
  /** Which machine it is and why, for people. */
  readonly description: string;
  /** Runs a shell script there. @throws Error - when its status is not 0, or it is not done after deadlineMs */
  run(script: string, deadlineMs?: number): Promise<string>;
  /** A new directory there, which goes away with the test. */
  directory(): Promise<string>;
  /**
   * Starts `ringside vm run`, or another of its commands, there with the console of the virtual machine and the VMM's own
   * words as the child's output. The child ends as the VMM does.
   */
  startVm(args: readonly string[], command?: 'run' | 'serve'): Promise<Guest>;
}

export interface KvmHostContents {
  /** Programs that scripts call; by their paths. */
  readonly programs?: readonly PeerName[];
  /** Files and directories that scripts name. Absolute paths. */
  readonly files?: readonly string[];
  /** Kernel modules, in the order in which they need each other, that are loaded if that machine is emulated. */
  readonly modules?: readonly string[];
}

/** The command line that starts `ringside`, the same on both machines. */
export const RINGSIDE: readonly string[] = [process.execPath, join(projectDirectory, 'dist/vmm-client/cli/main.js')];

/** Quotes words for a shell. */
export const shellWords = (words: readonly string[]): string =>
  words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ');

/** This machine. */
export class LocalKvmHost implements KvmHost {
  readonly description = "this machine's /dev/kvm";
  readonly #cleanup: Cleanup;

  constructor(cleanup: Cleanup) {
    this.#cleanup = cleanup;
  }

  async run(script: string, deadlineMs = 30_000): Promise<string> {
    // The same shell as in the emulated machine.
    const words = ['sh', '-e', '-c', script];
    const { stdout } = await promisify(execFile)(peerPath('static busybox'), words, { timeout: deadlineMs });
    return stdout.trim();
  }

  async directory(): Promise<string> {
    return this.#cleanup.directory();
  }

  async startVm(args: readonly string[], command: 'run' | 'serve' = 'run'): Promise<Guest> {
    const [node, ...program] = RINGSIDE;
    const child = new Child(node ?? '', [...program, 'vm', command, ...args]);
    this.#cleanup.add(() => child.stop());
    return new Guest(child);
  }
}
