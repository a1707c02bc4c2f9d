/** The socket part of the benchmark: our socket back end against a relay between plain Unix sockets. */
import type { Children } from '../children.ts';
import { describeMachine } from '../machine.ts';
import { type Footprint, formatFootprint, type PartResults, type Row } from '../results.ts';
import { measureWorkload, type RoundSettings } from '../rounds.ts';
import { peerVersions, whyAbsent } from './backends.ts';
import { type FootprintSettings, measureFootprint } from './footprint.ts';
import { buildUnixLoad, commandsOf, runOnce } from './load.ts';
import { type Contestant, FOOTPRINT, WORKLOADS } from './workloads.ts';

export interface VsockOptions {
  rounds: number;
  seconds: number;
  quick: boolean;
  daemonOption: readonly string[];
}

export type VsockResults = PartResults;

const CONTESTANTS: readonly Contestant[] = ['ringside', 'vhost-device', 'socat'];

/** Measures the workloads whose names are wanted. */
export async function measureVsock(
  children: Children,
  options: VsockOptions,
  isWanted: (name: string) => boolean,
  log: (line: string) => void,
): Promise<VsockResults> {
  const settings: FootprintSettings & RoundSettings = {
    unixLoad: await buildUnixLoad(children),
    rounds: options.rounds,
    seconds: options.seconds,
    warmupSeconds: 1,
    idleSeconds: options.quick ? 2 : 5,
    starts: options.quick ? 3 : 7,
    daemonOptions: options.daemonOption,
    quietTimeoutMs: options.quick ? 2000 : 20_000,
    ...(options.quick && { repeats: 0 }),
    log,
  };
  const absent = new Set<Contestant>();
  for (const contestant of CONTESTANTS) {
    const why = whyAbsent(contestant);
    if (why === undefined) continue;
    log(`${contestant} is not measured: ${why}`);
    absent.add(contestant);
  }
  const rows: Row[] = [];
  for (const workload of WORKLOADS) {
    const contestants = workload.contestants.filter((contestant) => !absent.has(contestant));
    if (!isWanted(workload.name)) continue;
    const contest = {
      contestants,
      run: (contestant: Contestant) => runOnce(children, workload, contestant, settings),
      commands: (contestant: Contestant) => commandsOf(workload, contestant, settings),
    };
    rows.push(await measureWorkload(workload, contest, settings));
  }
  const footprints: Footprint[] = [];
  if (isWanted(FOOTPRINT) && !absent.has('ringside')) {
    log(`\nidle CPU time, memory, start [${FOOTPRINT}]`);
    const footprint = await measureFootprint(children, settings);
    log(formatFootprint(footprint));
    footprints.push(footprint);
  }
  return {
    machine: describeMachine(peerVersions()),
    rounds: settings.rounds,
    seconds: settings.seconds,
    warmupSeconds: settings.warmupSeconds,
    rows,
    footprints,
  };
}
