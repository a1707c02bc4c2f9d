/** CPU time of a thread of this process. Source: proc_pid_stat(5), fields 14 utime (guest time included) and 15 stime. */

import { readFileSync } from 'node:fs';

/** The kernel tells times in hundredths of a second on x86 (USER_HZ). */
const TICK_MS = 10;

/** Milliseconds so far; undefined where the thread is gone. */
export function threadCpuMs(thread: number): number | undefined {
  try {
    return parseCpuMs(readFileSync(`/proc/self/task/${thread}/stat`, 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' || (error as NodeJS.ErrnoException).code === 'ESRCH')
      return undefined;
    throw error;
  }
}

/** The name of the thread is between parentheses, and may have some itself. */
export function parseCpuMs(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}
