/** The network part of the benchmark: our network back end against others, and against bare loops on a TAP. */
import { type Children, CommandError } from '../children.ts';
import { commandVersion, describeMachine } from '../machine.ts';
import { type Footprint, formatFootprint, type PartResults, type Row } from '../results.ts';
import { measureWorkload, type RoundSettings } from '../rounds.ts';
import { type BackEnd, passtVersion, whyAbsent } from './backends.ts';
import { type FootprintSettings, measureFootprint } from './footprint.ts';
import { buildPrograms, commandsOf, runOnce } from './load.ts';
import { type Contestant, FOOTPRINT, WORKLOADS } from './workloads.ts';

export interface NetOptions {
  rounds: number;
  seconds: number;
  quick: boolean;
  daemonOption: readonly string[];
}

export interface NetResults extends PartResults {
  pings: number;
}

const BACK_ENDS: readonly BackEnd[] = ['ringside', 'ringside-null', 'dpdk', 'passt'];

/** Measures the workloads whose names are wanted. */
export async function measureNet(
  children: Children,
  options: NetOptions,
  isWanted: (name: string) => boolean,
  log: (line: string) => void,
): Promise<NetResults> {
  if (process.getuid?.() !== 0) throw new CommandError('the net part makes interfaces and namespaces: run it as root');
  const settings: FootprintSettings & RoundSettings = {
    programs: await buildPrograms(children),
    rounds: options.rounds,
    seconds: options.seconds,
    warmupSeconds: 2,
    pings: options.quick ? 500 : 2000,
    idleSeconds: options.quick ? 2 : 5,
    starts: options.quick ? 3 : 7,
    daemonOptions: options.daemonOption,
    quietTimeoutMs: options.quick ? 2000 : 20_000,
    ...(options.quick && { repeats: 0 }),
    log,
  };
  const absent = new Set<Contestant>();
  for (const backEnd of BACK_ENDS) {
    const why = whyAbsent(backEnd);
    if (why === undefined) continue;
    log(`${backEnd} is not measured: ${why}`);
    absent.add(backEnd);
  }
  const rows: Row[] = [];
  for (const workload of WORKLOADS) {
    const contestants = workload.contestants.filter((contestant) => !absent.has(contestant));
    if (!isWanted(workload.name) || contestants.length === 0) continue;
    const contest = {
      contestants,
      run: (contestant: Contestant) => runOnce(children, workload, contestant, settings),
      commands: (contestant: Contestant) => commandsOf(workload, contestant, settings),
    };
    rows.push(await measureWorkload(workload, contest, settings));
  }
  const footprints: Footprint[] = [];
  if (isWanted(FOOTPRINT)) {
    log(`\nidle CPU time, memory, start [${FOOTPRINT}]`);
    for (const contestant of ['ringside', 'passt'] as const) {
      if (absent.has(contestant)) continue;
      const footprint = await measureFootprint(children, contestant, settings);
      log(formatFootprint(footprint));
      footprints.push(footprint);
    }
  }
  return {
    machine: describeMachine({
      DPDK: commandVersion('dpkg-query', ['-W', 'dpdk-dev'], /^\S+\s+/),
      passt: passtVersion(),
      iperf3: commandVersion('iperf3', ['--version'], /^iperf /),
    }),
    rounds: settings.rounds,
    seconds: settings.seconds,
    warmupSeconds: settings.warmupSeconds,
    pings: settings.pings,
    rows,
    footprints,
  };
}
