/** Start time, memory and idle CPU time of our socket back end. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Children } from '../children.ts';
import { cpuNanoseconds, type Daemon, residentMegabytes, stopChild } from '../daemons.ts';
import type { Footprint } from '../results.ts';
import { spreadOf } from '../statistics.ts';
import { type LoadSettings, runLoad, withRelay } from './load.ts';
import { WORKLOADS } from './workloads.ts';

export interface FootprintSettings extends LoadSettings {
  idleSeconds: number;
  starts: number;
}

/** V8 collects garbage once more some seconds after a load ended. */
const SETTLE_SECONDS = 20;
const LOAD_SECONDS = 2;
const PORT = 5000;
/** Longer than a run takes: an attached guest that is silent. */
const SILENT_PORT = '1024';

/** Runs `use` while a guest is attached that does nothing. */
async function withSilentGuest<T>(children: Children, daemon: Daemon, use: () => Promise<T>): Promise<T> {
  const line = ['dist/vmm-client/cli/main.js', 'vsock', 'listen', daemon.socket, SILENT_PORT];
  const guest = children.start('node', line);
  try {
    // It says where it listens.
    await new Promise<void>((resolve, reject) => {
      guest.stderr?.once('data', () => resolve());
      guest.once('close', () => reject(new Error('the silent guest ended at once')));
    });
    return await use();
  } finally {
    await stopChild(guest);
  }
}

/** Idle with a guest attached, before and after another one has sent. */
export async function measureFootprint(children: Children, settings: FootprintSettings): Promise<Footprint> {
  const starts: number[] = [];
  for (let start = 0; start < settings.starts; start++) {
    starts.push(await withRelay(children, 'ringside', PORT, settings, async (daemon) => daemon.startMs));
  }
  const [workload] = WORKLOADS;
  if (workload === undefined) throw new RangeError('no workload to load the daemon with');
  const attached = await withRelay(children, 'ringside', PORT, settings, async (daemon, udsPath) => {
    const rssMegabytes = await withSilentGuest(children, daemon, async () => {
      await sleep(1000);
      return residentMegabytes(daemon.pid);
    });
    const places = { relay: daemon.socket, udsPath };
    await runLoad(children, workload, 'ringside', places, { ...settings, seconds: LOAD_SECONDS });
    return withSilentGuest(children, daemon, async () => {
      await sleep(SETTLE_SECONDS * 1000);
      const [cpu, begin] = [cpuNanoseconds(daemon.pid), performance.now()];
      await sleep(settings.idleSeconds * 1000);
      const idleCpuPercent = (cpuNanoseconds(daemon.pid) - cpu) / 1e4 / (performance.now() - begin);
      return { rssMegabytes, idleCpuPercent, rssAfterLoadMegabytes: residentMegabytes(daemon.pid) };
    });
  });
  return { contestant: 'ringside', ...attached, idleSeconds: settings.idleSeconds, startMs: spreadOf(starts) };
}
