/** Start time, memory and idle CPU time of a network back end. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Children } from '../children.ts';
import { cpuNanoseconds, residentMegabytes } from '../daemons.ts';
import type { Footprint } from '../results.ts';
import { spreadOf } from '../statistics.ts';
import { BACK_END_CPU } from './backends.ts';
import { type LoadSettings, withBackEnd } from './load.ts';
import { inNamespace } from './namespace.ts';
import { guestLine, startGuest, transfer } from './tcp.ts';

export interface FootprintSettings extends LoadSettings {
  idleSeconds: number;
  starts: number;
}

/** V8 collects garbage once more some seconds after a load ended. */
const SETTLE_SECONDS = 20;
const LOAD_SECONDS = 2;

async function measureStart(
  children: Children,
  contestant: 'ringside' | 'passt',
  settings: FootprintSettings,
): Promise<number> {
  // Not pinned: a start uses more than one thread, and nothing else runs.
  const options = { cpu: undefined, extra: settings.daemonOptions };
  return inNamespace(children, (host) =>
    withBackEnd(children, host, contestant, options, async (daemon) => daemon.startMs),
  );
}

/** Idle with a guest attached, before and after it has sent. */
export async function measureFootprint(
  children: Children,
  contestant: 'ringside' | 'passt',
  settings: FootprintSettings,
): Promise<Footprint> {
  const starts: number[] = [];
  for (let start = 0; start < settings.starts; start++) starts.push(await measureStart(children, contestant, settings));
  const options = { cpu: BACK_END_CPU, extra: settings.daemonOptions };
  const attached = await inNamespace(children, (host) =>
    withBackEnd(children, host, contestant, options, (daemon) =>
      inNamespace(children, async (guest) => {
        await startGuest(guest, guestLine(settings.programs.tapGuest, daemon.socket), contestant);
        await sleep(1000);
        const rssMegabytes = residentMegabytes(daemon.pid);
        await transfer(host, guest, 'tcp-transmit', LOAD_SECONDS);
        await sleep(SETTLE_SECONDS * 1000);
        const [cpu, begin] = [cpuNanoseconds(daemon.pid), performance.now()];
        await sleep(settings.idleSeconds * 1000);
        const idleCpuPercent = (cpuNanoseconds(daemon.pid) - cpu) / 1e4 / (performance.now() - begin);
        return { rssMegabytes, idleCpuPercent, rssAfterLoadMegabytes: residentMegabytes(daemon.pid) };
      }),
    ),
  );
  return { contestant, ...attached, idleSeconds: settings.idleSeconds, startMs: spreadOf(starts) };
}
