/** What a process holds, as the kernel tells: descriptors, memory. For "it is as it was before". */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

/** What a look into /proc gives; undefined when what it looks at, a process or a thread or a descriptor, is gone. */
export const whileItIsThere = <T>(look: () => T): T | undefined => {
  try {
    return look();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return undefined;
    throw error;
  }
};

/** Open file descriptors of a process. */
export const fdCount = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** Open file descriptors of this process. */
export const countOwnFds = (): number => fdCount(process.pid);

/** What the descriptors of a process are, for messages. */
export const listFds = (pid: number): string[] => readdirSync(`/proc/${pid}/fd`);

/** What the descriptors of a process are of: `/path`, `socket:[7]`, `anon_inode:[eventfd]`. One that is just closed is none. */
export const openFiles = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
  });

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

/**
 * CPU time that a process uses in a span in which it uses next to nothing, in ms. What it did before may take a while to
 * come to its end, threads of its compiler included; one that has nothing to do comes to such a span in the end. Returns
 * what it used in the last one when none had at most `enoughMs` before the deadline.
 */
export const cpuWhenIdle = async (
  pid: number,
  spanMs: number,
  enoughMs: number,
  deadlineMs = 15_000,
): Promise<number> => {
  const end = performance.now() + deadlineMs;
  for (;;) {
    const used = await cpuDuring(pid, spanMs);
    if (used <= enoughMs || performance.now() > end) return used;
  }
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
  deadlineMs = 15_000,
): Promise<T> => {
  const end = performance.now() + deadlineMs;
  for (let pause = 0; ; pause = 5) {
    const value = read();
    if (accept(value)) return value;
    if (performance.now() > end) throw new Error(`${what}: still ${String(value)} after ${deadlineMs} ms`);
    await delay(pause);
  }
};
