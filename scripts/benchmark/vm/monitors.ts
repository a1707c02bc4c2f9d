/** The virtual machine monitors under test: their command lines, and machines that run the guest. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { Children } from '../children.ts';
import { CommandError } from '../children.ts';
import { stopChild } from '../daemons.ts';
import { guestCommandLine, SerialOutput } from './guest.ts';
import type { Contestant } from './workloads.ts';

export const OUR_MONITOR = path.join('dist', 'vmm-client', 'cli', 'main.js');

const MEMORY = '128M';

export interface MachineOptions {
  kernel: string;
  parameters: Readonly<Record<string, string | number>>;
  cpus?: number;
  /** Socket of a vhost-user-blk back end. */
  disk?: string | undefined;
  /** A file for which the monitor starts a daemon: ours only. */
  diskPath?: string | undefined;
  /** Where the API is served: ours only. */
  api?: string;
  /** The core it is pinned to; undefined: the scheduler's choice. */
  cpu?: number;
}

/** PC devices that the guest has no use for are left out; its transports are filled from the last one down. */
const MICROVM =
  'microvm,acpi=on,auto-kernel-cmdline=off,isa-serial=on,rtc=off,pic=off,pit=off,ioapic2=off,memory-backend=m';
/** Where the guest finds microvm's transports, which it cannot know. */
const MICROVM_PARAMETERS = { mmio: '0xfeb00000,0x200,8', last: 1, gsi: 16 };

function qemuLine({ kernel, parameters, cpus = 1, disk }: MachineOptions): string[] {
  const chardev = `socket,id=d,path=${disk}`;
  return [
    'qemu-system-x86_64',
    ...['-machine', MICROVM, '-object', `memory-backend-memfd,id=m,size=${MEMORY},share=on`, '-m', MEMORY],
    // Without that feature: its register cannot be set on every host that says it has it.
    ...['-accel', 'kvm', '-cpu', 'host,-arch-capabilities', '-smp', String(cpus)],
    ...['-global', 'virtio-mmio.force-legacy=false', '-nodefaults', '-no-user-config'],
    ...['-display', 'none', '-serial', 'stdio', '-kernel', kernel],
    ...['-append', guestCommandLine({ ...parameters, ...MICROVM_PARAMETERS })],
    ...(disk === undefined ? [] : ['-chardev', chardev, '-device', 'vhost-user-blk,chardev=d,num-queues=1']),
  ];
}

function ourLine({ kernel, parameters, cpus = 1, disk, diskPath, api }: MachineOptions): string[] {
  return [
    ...[process.execPath, OUR_MONITOR, 'vm', 'run', '--kernel', kernel, '--cmdline', guestCommandLine(parameters)],
    ...['--cpus', String(cpus), '--memory', `size=${MEMORY}`],
    // Queues as large as the other one has.
    ...(disk === undefined ? [] : ['--disk', `socket=${disk},queue_size=128`]),
    ...(diskPath === undefined ? [] : ['--disk', `path=${diskPath}`]),
    ...(api === undefined ? [] : ['--api-socket', api]),
  ];
}

export function monitorLine(contestant: Contestant, options: MachineOptions): string[] {
  const line = contestant === 'qemu' ? qemuLine(options) : ourLine(options);
  return options.cpu === undefined ? line : ['taskset', '-c', String(options.cpu), ...line];
}

/** A monitor and what its guest says. */
export interface RunningMachine {
  pid: number;
  serial: SerialOutput;
}

/**
 * Runs `use` with a freshly started machine.
 * @throws COMMAND_FAILED - it cannot be started
 */
export async function withMachine<T>(
  children: Children,
  contestant: Contestant,
  options: MachineOptions,
  use: (machine: RunningMachine) => Promise<T>,
): Promise<T> {
  const [command = '', ...args] = monitorLine(contestant, options);
  const child = children.start(command, args);
  const serial = new SerialOutput(child);
  if (child.pid === undefined) throw new CommandError(`${command}: cannot be started`);
  try {
    return await use({ pid: child.pid, serial });
  } finally {
    await stopChild(child);
  }
}

/** Why a contestant cannot take part here; undefined: it can. */
export async function whyAbsent(
  children: Children,
  contestant: Contestant,
  kernel: string,
): Promise<string | undefined> {
  if (contestant === 'ringside' && !existsSync(OUR_MONITOR)) return `${OUR_MONITOR} is not there`;
  try {
    const options = { kernel, parameters: { job: 'serial', end: 'halt' } };
    await withMachine(children, contestant, options, ({ serial }) => serial.line('end'));
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return error.message;
  }
  return undefined;
}
