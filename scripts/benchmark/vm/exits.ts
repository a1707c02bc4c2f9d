/** What kicks and interrupts cost in exits: the VMM's own counters, for two lengths of the same work. */
import { request } from 'node:http';
import { withDaemon } from '../blk/daemons.ts';
import { type Children, CommandError } from '../children.ts';
import { awaitApi } from './api.ts';
import { type RunningMachine, withMachine } from './monitors.ts';
import type { TaskSettings } from './tasks.ts';

export interface Exits {
  kicks: number;
  /** Exits of all vCPUs for devices' registers, in the longer run beyond the shorter one. */
  memoryExits: number;
}

type Counters = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** What GET vm.counters answers. @throws COMMAND_FAILED */
function readCounters(api: string): Promise<Counters> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error) => reject(new CommandError(`vm.counters: ${error.message}`));
    const sent = request({ socketPath: api, path: '/api/v1/vm.counters' }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => resolve(JSON.parse(Buffer.concat(chunks).toString())));
    });
    sent.on('error', fail).end();
  });
}

/** Exits of all vCPUs to the VMM for an address. */
export function memoryExits(counters: Counters): number {
  const vcpus = Object.entries(counters).filter(([name]) => /^vcpu\d+$/.test(name));
  return vcpus.reduce((sum, [, values]) => sum + (values.exits_mmio ?? 0), 0);
}

const SHORT = 1000;
const LONG = 11_000;

/**
 * A read with a kick, an interrupt and its acknowledgement, again and again. What the driver needs to set the device up is
 * in both runs.
 */
export async function countExits(children: Children, settings: TaskSettings): Promise<Exits> {
  const { kernel, image, daemonOptions } = settings;
  const options = { kind: 'ringside', image, direct: false, cpu: undefined, extra: daemonOptions } as const;
  const count = (kicks: number) =>
    withDaemon(children, options, ({ socket }) => {
      const api = children.newSocketPath();
      const parameters = { job: 'kicks', n: kicks, end: 'halt' };
      const use = async ({ serial }: RunningMachine) => {
        const done = await serial.line('kicks.done');
        if (done.value !== String(kicks)) throw new CommandError(`${done.value} of ${kicks} kicks were answered`);
        await serial.line('end');
        await awaitApi(api);
        return memoryExits(await readCounters(api));
      };
      return withMachine(children, 'ringside', { kernel, parameters, disk: socket, api }, use);
    });
  const short = await count(SHORT);
  return { kicks: LONG - SHORT, memoryExits: (await count(LONG)) - short };
}
