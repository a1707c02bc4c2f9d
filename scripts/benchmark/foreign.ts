/**
 * CPU time of processes that are no part of the benchmark, from /proc: those that are not this process or a descendant of it. Kernel
 * threads are left out, because most of what they do here is the benchmark's.
 */
import { readdirSync, readFileSync } from 'node:fs';

interface Process {
  parent: number;
  /** User and system time in clock ticks, that of children it has waited for included. */
  ticks: number;
}

/** USER_HZ is 100 on every Linux architecture that Node.js runs on. */
const TICK_MS = 10;
const KTHREADD = 2;

function readProcess(pid: number): Process | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined; // It has just ended.
  }
  // The name in parentheses may hold anything; state is the first field after it, ppid the second, utime the twelfth.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = fields.slice(11, 15).map(Number);
  return { parent: Number(fields[1]), ticks: utime + stime + cutime + cstime };
}

function stolenTicks(): number {
  return Number(readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]?.split(/\s+/)[8] ?? 0);
}

function foreignTicks(): number {
  const processes = new Map<number, Process>();
  for (const name of readdirSync('/proc')) {
    const found = /^\d+$/.test(name) ? readProcess(Number(name)) : undefined;
    if (found !== undefined) processes.set(Number(name), found);
  }
  const isOurs = (pid: number): boolean => {
    if (pid === process.pid) return true;
    const parent = processes.get(pid)?.parent;
    return parent !== undefined && parent > 1 && isOurs(parent);
  };
  let ticks = 0;
  for (const [pid, { parent, ticks: own }] of processes) {
    if (pid !== KTHREADD && parent !== KTHREADD && !isOurs(pid)) ticks += own;
  }
  return ticks + stolenTicks();
}

/**
 * Begins to watch.
 * @returns a function that tells what others took since, as a share of one core
 */
export function watchForeignCpu(): () => number {
  const [ticks, begin] = [foreignTicks(), performance.now()];
  return () => Math.max(0, (foreignTicks() - ticks) * TICK_MS) / (performance.now() - begin);
}
