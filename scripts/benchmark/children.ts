/**
 * Child processes and temporary files of a run, and their end: whatever way the program leaves (finished, failed, Ctrl-C), no
 * daemon keeps running and no image stays on the disk.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

export class CommandError extends Error {
  readonly code = 'COMMAND_FAILED';
}

export interface Finished {
  stdout: string;
  stderr: string;
}

export class Children {
  /** Sockets go here: a short path, because sun_path ends at 108 bytes. */
  readonly socketFolder: string;
  private readonly folders: string[];
  private readonly running = new Set<ChildProcess>();
  private socketCount = 0;

  constructor() {
    this.socketFolder = mkdtempSync(path.join(tmpdir(), 'ringside-bench-'));
    this.folders = [this.socketFolder];
    process.on('exit', () => this.close());
    for (const [signal, status] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
      ['SIGHUP', 129],
    ] as const) {
      process.on(signal, () => process.exit(status));
    }
  }

  /** A folder that vanishes with the run, inside one that is made where it is missing. */
  makeFolder(parent: string): string {
    mkdirSync(parent, { recursive: true });
    const folder = mkdtempSync(path.join(parent, 'bench-'));
    this.folders.push(folder);
    return folder;
  }

  newSocketPath(): string {
    return path.join(this.socketFolder, `${this.socketCount++}.sock`);
  }

  /** Starts a command that has no children of its own; the caller waits for its end. */
  start(command: string, args: readonly string[]): ChildProcess {
    // DPDK keeps files of each process in that folder.
    const env = { ...process.env, RUNTIME_DIRECTORY: this.socketFolder };
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
    this.running.add(child);
    child.once('close', () => this.running.delete(child));
    child.once('error', () => this.running.delete(child));
    return child;
  }

  /**
   * Runs a command to its end.
   * @throws COMMAND_FAILED - it cannot be started or its exit status is not 0
   */
  run(command: string, args: readonly string[]): Promise<Finished> {
    return new Promise((resolve, reject) => {
      const child = this.start(command, args);
      const output = collectOutput(child);
      child.once('error', (error) => reject(new CommandError(`${command}: ${error.message}`)));
      child.once('close', (status, signal) => {
        if (status === 0) resolve({ stdout: output.stdout, stderr: output.stderr });
        else {
          const reason = signal === null ? `status ${status}` : signal;
          reject(new CommandError(`${command} ended with ${reason}: ${output.stderr.trim() || output.stdout.trim()}`));
        }
      });
    });
  }

  close(): void {
    for (const child of this.running) child.kill('SIGKILL');
    this.running.clear();
    for (const folder of this.folders) rmSync(folder, { recursive: true, force: true });
  }
}

export function collectOutput(child: ChildProcess): Finished {
  const output: Finished = { stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    output.stdout += text;
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    output.stderr += text;
  });
  return output;
}
