/** What a process holds, as the kernel tells: descriptors, memory. For "it is as it was before". */

import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

/** Open file descriptors of a process. */
export const fdCount = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** Open file descriptors of this process. */
export const countOwnFds = (): number => fdCount(process.pid);

/** What the descriptors of a process are, for messages. */
export const listFds = (pid: number): string[] => readdirSync(`/proc/${pid}/fd`);

/** Resident memory of a process in bytes. */
export const rss = (pid: number): number => {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  if (match?.[1] === undefined) throw new Error(`process ${pid} has no VmRSS`);
  return Number(match[1]) * 1024;
};

/** CPU time that a process has used so far, in ms (the kernel counts hundredths of a second). */
const cpuMs = (pid: number): number => {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // Fields behind the name in parentheses start with the third; utime is the 14th, stime the 15th.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
};

/** CPU time that a process uses in the next `spanMs`, in ms: an observation takes time, nothing is waited for. */
export const cpuDuring = async (pid: number, spanMs: number): Promise<number> => {
  const before = cpuMs(pid);
  await delay(spanMs);
  return cpuMs(pid) - before;
};

/** Mappings of memfds of a name in a process: shared guest memory that it holds. */
export const sharedMappings = (pid: number, name = 'test-ram'): number =>
  readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .filter((line) => line.includes(`/memfd:${name}`)).length;

/**
 * Resolves when `read` gives what `accept` accepts; asks again until the deadline. For state of another process that
 * nothing announces.
 * @throws Error - it did not, with the last value
 */
export const eventually = async <T>(
  what: string,
  read: () => T,
  accept: (value: T) => boolean,
  deadlineMs = 5_000,
): Promise<T> => {
  const end = performance.now() + deadlineMs;
  for (let pause = 0; ; pause = 5) {
    const value = read();
    if (accept(value)) return value;
    if (performance.now() > end) throw new Error(`${what}: still ${String(value)} after ${deadlineMs} ms`);
    await delay(pause);
  }
};
