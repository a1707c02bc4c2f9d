/** What a reader has to know about the machine to judge the numbers. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Machine } from './results.ts';

function firstLine(command: string, args: readonly string[]): string {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).split('\n')[0] ?? '';
  } catch {
    return 'not installed';
  }
}

/** libblkio tells no version: it is in the name of the library. */
export function libblkioVersion(): string {
  const name = firstLine('sh', ['-c', 'ls .cache/peers/libblkio/usr/lib/*/libblkio.so.*.*.* 2>/dev/null']);
  return /\.so\.(\d+\.\d+\.\d+)$/.exec(path.basename(name))?.[1] ?? 'not installed';
}

function ourVersion(): string {
  const manifest: { version: string } = JSON.parse(readFileSync('package.json', 'utf8'));
  const commit = firstLine('git', ['describe', '--always', '--dirty']);
  return commit === 'not installed' || commit === '' ? manifest.version : `${manifest.version} (${commit})`;
}

/** What a command says of its version, without the words before it. */
export function commandVersion(command: string, args: readonly string[], before: RegExp): string {
  return firstLine(command, args).replace(before, '');
}

export function mountOf(folder: string): string {
  return firstLine('findmnt', ['-no', 'FSTYPE,OPTIONS', '-T', folder]).trim().replace(/\s+/, ' ');
}

/** The machine now; `peers` are the versions of what else took part. */
export function describeMachine(peers: Record<string, string>): Machine {
  const cpus = os.cpus();
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus[0]?.model.trim() ?? 'unknown',
    cores: cpus.length,
    memoryGigabytes: Math.round(os.totalmem() / 2 ** 30),
    kernel: os.release(),
    versions: { ringside: ourVersion(), 'Node.js': process.versions.node, ...peers },
  };
}
