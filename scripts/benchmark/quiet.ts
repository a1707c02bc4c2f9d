/** Waits for a quiet moment: on a machine that others use, too, a run that begins during their build is lost. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const SAMPLE_MS = 200;
/** Clock ticks of /proc/stat; USER_HZ is 100 on every Linux architecture that Node.js runs on. */
const TICK_MS = 10;
const TOLERATED_BUSY = 0.15;

function busyTicks(): number {
  const [user = 0, nice = 0, system = 0] =
    readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]?.split(/\s+/).slice(1).map(Number) ?? [];
  return user + nice + system;
}

/** Returns as soon as all CPUs together are less than 15 % of one core busy, or after the deadline. */
export async function waitForQuiet(timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  do {
    const [ticks, begin] = [busyTicks(), performance.now()];
    await sleep(SAMPLE_MS);
    const busyMs = (busyTicks() - ticks) * TICK_MS;
    if (busyMs < TOLERATED_BUSY * (performance.now() - begin)) return;
  } while (performance.now() < deadline);
}
