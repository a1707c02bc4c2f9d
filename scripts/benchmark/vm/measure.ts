/** The part of the benchmark on virtual machines: our monitor against QEMU's microvm, on the same KVM, with the same guest. */
import path from 'node:path';
import { writeImage } from '../blk/load.ts';
import { type Children, CommandError } from '../children.ts';
import { commandVersion, describeMachine } from '../machine.ts';
import { buildProgram } from '../programs.ts';
import type { PartResults, Row } from '../results.ts';
import { measureWorkload, type RoundSettings } from '../rounds.ts';
import { countExits, type Exits } from './exits.ts';
import { buildGuest } from './guest.ts';
import { whyAbsent } from './monitors.ts';
import { commandOf, runTask, type TaskSettings } from './tasks.ts';
import { type Contestant, EXITS, WORKLOADS } from './workloads.ts';

export interface VmOptions {
  rounds: number;
  seconds: number;
  quick: boolean;
  dir: string;
  imageWriteBytes: number;
  daemonOption: readonly string[];
}

export interface VmResults extends PartResults {
  starts: number;
  idleSeconds: number;
  imageBytes: number;
  /** Who could not take part, and why. */
  absent: Partial<Record<Contestant, string>>;
  exits: Exits | undefined;
}

const IMAGE_BYTES = 256 * 2 ** 20;

/** Measures the workloads whose names are wanted. */
export async function measureVm(
  children: Children,
  options: VmOptions,
  isWanted: (name: string) => boolean,
  log: (line: string) => void,
): Promise<VmResults> {
  const image = path.join(children.makeFolder(path.resolve(options.dir)), 'image');
  const settings: TaskSettings & RoundSettings = {
    kernel: await buildGuest(children),
    image,
    firstByteProgram: await buildProgram(children, path.join('vm', 'first-byte.c'), []),
    rounds: options.rounds,
    seconds: options.seconds,
    warmupSeconds: options.quick ? 0.5 : 1,
    idleSeconds: options.quick ? 2 : 5,
    settleSeconds: options.quick ? 2 : 10,
    starts: 5,
    daemonOptions: options.daemonOption,
    quietTimeoutMs: options.quick ? 2000 : 20_000,
    ...(options.quick && { repeats: 0 }),
    log,
  };
  const absent: VmResults['absent'] = {};
  for (const contestant of ['ringside', 'qemu'] as const) {
    const why = await whyAbsent(children, contestant, settings.kernel);
    if (why === undefined) continue;
    if (contestant === 'ringside') throw new CommandError(`the vm part cannot run: ${why}`);
    log(`${contestant} is not measured: ${why}`);
    absent[contestant] = why;
  }
  await writeImage(children, image, IMAGE_BYTES, options.imageWriteBytes);

  const rows: Row[] = [];
  for (const workload of WORKLOADS) {
    if (!isWanted(workload.name)) continue;
    const { task } = workload;
    const contest = {
      contestants: workload.contestants.filter((contestant) => absent[contestant] === undefined),
      run: (contestant: Contestant) => runTask(children, contestant, task, settings),
      commands: (contestant: Contestant) => [commandOf(contestant, task, settings)],
    };
    rows.push(await measureWorkload(workload, contest, settings));
  }
  let exits: Exits | undefined;
  if (isWanted(EXITS)) {
    exits = await countExits(children, settings);
    log(`\n${exits.kicks} kicks, interrupts and acknowledgements: ${exits.memoryExits} exits [${EXITS}]`);
  }
  return {
    machine: describeMachine({ QEMU: commandVersion('qemu-system-x86_64', ['--version'], /^QEMU emulator version /) }),
    rounds: settings.rounds,
    seconds: settings.seconds,
    warmupSeconds: settings.warmupSeconds,
    starts: settings.starts,
    idleSeconds: settings.idleSeconds,
    imageBytes: IMAGE_BYTES,
    absent,
    rows,
    footprints: [],
    exits,
  };
}
