/** The `ctl` commands that change a machine: devices and memory that come and go. */

import { resolve } from 'node:path';
import { Argument, Command } from 'commander';
import type { DiskConfig, FsConfig, NetConfig, VsockConfig } from '../vmm/config.ts';
import { option, parser, size } from './command-options.ts';
import type { CtlRequest } from './ctl-program.ts';
import { parseDisk, parseFs, parseNet, parseVsock } from './vm-options.ts';

type Send = (request: CtlRequest) => Promise<void>;
type Device = DiskConfig | NetConfig | FsConfig | VsockConfig;

/** Fields that are paths. The VMM has another working directory. */
const PATHS: ReadonlySet<string> = new Set(['path', 'socket', 'vhost_socket']);

/** The same with absolute paths. */
export function absolutePaths<T extends object>(fields: T): T {
  const entries = Object.entries(fields).map(([name, value]) => [name, PATHS.has(name) ? resolve(value) : value]);
  return Object.fromEntries(entries);
}

/** Command, route, parser of its fields, what help says, an example. */
type Addition = readonly [
  name: string,
  route: string,
  parse: (text: string) => Device,
  description: string,
  fields: string,
  example: string,
];

const ADDITIONS: readonly Addition[] = [
  [
    'add-disk',
    'vm.add-disk',
    parseDisk,
    'Adds a disk.',
    'path (a file or block device) or socket (of a vhost-user back end), readonly, direct, serial (of path),\n' +
      '  num_queues (default 1), queue_size (entries, default 128), iommu, packed, id',
    'path=data.img,id=data',
  ],
  [
    'add-net',
    'vm.add-net',
    parseNet,
    'Adds a network interface.',
    'tap or socket, mac, mtu (bytes), num_queues (rings, default 2), queue_size (entries, default 256), iommu, packed, id',
    'tap=vm1b,mac=52:54:00:12:34:57',
  ],
  [
    'add-fs',
    'vm.add-fs',
    parseFs,
    'Adds a shared file system.',
    'tag, socket, num_queues (default 1), queue_size (entries, default 1024), iommu, packed, id',
    'tag=home,socket=fs.sock',
  ],
  [
    'add-vsock',
    'vm.add-vsock',
    parseVsock,
    'Adds virtual sockets, where there are none.',
    'cid (from 3), socket, queue_size (entries, default 256), iommu, packed, id',
    'cid=3,socket=vsock.sock',
  ],
];

const ID = ['<id>', 'id of the device, as info shows it'] as const;

function createAddition([name, route, parse, description, fields, example]: Addition, send: Send): Command {
  return new Command(name)
    .description(`${description} Prints its id and slot where the machine runs.`)
    .addArgument(new Argument('<fields>', 'as for vm run').argParser(parser(parse)))
    .addHelpText(
      'after',
      `\nFields, on or off where no unit is said:\n  ${fields}\n` +
        `\nExample:\n  ringside ctl --api-socket vm.sock ${name} ${example}`,
    )
    .action((device: Device) => send({ method: 'PUT', name: route, body: JSON.stringify(absolutePaths(device)) }));
}

/** The commands; `send` sends what they ask for. */
export function createDeviceCommands(send: Send): Command[] {
  return [
    ...ADDITIONS.map((addition) => createAddition(addition, send)),
    new Command('remove-device')
      .description('Asks the guest to let go of a device; info shows when it has.')
      .argument(...ID)
      .addHelpText('after', '\nExample:\n  ringside ctl --api-socket vm.sock remove-device data')
      .action((id: string) => send({ method: 'PUT', name: 'vm.remove-device', body: JSON.stringify({ id }) })),
    new Command('resize')
      .description('Asks the guest to use more or less memory; info shows what it has.')
      .addOption(
        option(
          '--memory <bytes>',
          'altogether, with k, M, G, T: what the machine booted with, and up to hotplug_size more',
          size,
        ).makeOptionMandatory(),
      )
      .addHelpText('after', '\nExample:\n  ringside ctl --api-socket vm.sock resize --memory 3G')
      .action(({ memory }: { readonly memory: number }) =>
        send({ method: 'PUT', name: 'vm.resize', body: JSON.stringify({ desired_ram: memory }) }),
      ),
    new Command('resize-disk')
      .description('Gives the image of a disk another size and tells the guest.')
      .argument(...ID)
      .addArgument(new Argument('<bytes>', 'with k, M, G, T; a multiple of 512').argParser(size))
      .addHelpText('after', '\nExample:\n  ringside ctl --api-socket vm.sock resize-disk data 20G')
      .action((id: string, desired_size: number) =>
        send({ method: 'PUT', name: 'vm.resize-disk', body: JSON.stringify({ id, desired_size }) }),
      ),
  ];
}
