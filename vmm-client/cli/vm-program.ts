/** The `vm` commands, their options and help. */

import { Command, Option } from 'commander';
import { listOption, option, parser } from './command-options.ts';
import type { CliContext } from './context.ts';
import { LOG_LEVELS, type LogLevel } from './log-levels.ts';
import {
  type MachineOptions,
  parseApiSocket,
  parseConsole,
  parseCpus,
  parseDisk,
  parseFs,
  parseMemory,
  parseNet,
  parseSerial,
  parseVsock,
} from './vm-options.ts';

/** Options of both commands. */
export interface HostOptions {
  readonly apiSocket?: string;
  readonly logLevel: LogLevel;
  readonly logFile?: string;
}

export type RunOptions = MachineOptions & HostOptions;
export type ServeOptions = HostOptions & { readonly apiSocket: string };

const apiSocket = () => option('--api-socket <path>', 'serve the HTTP API at this Unix socket', parser(parseApiSocket));

const logOptions = (level: LogLevel) => [
  new Option('--log-level <level>', 'least level to log').choices(LOG_LEVELS).default(level),
  new Option('--log-file <path>', 'append the log to this file, as JSON lines (default: standard error)'),
];

const RUN_HELP = `
Fields, on or off where no unit is said; Cloud Hypervisor's names and spelling:
  --cpus    boot (vCPUs), max (the same number), hide (CPUID features joined by +, such as cx16+xsave)
  --memory  size (bytes), hotplug_size (bytes that ctl resize may add, default 0), hotplugged_size (of them from the start
            on, default 0), shared (always on), hugepages, file (a file, or a directory for one without a name)
  --disk    path (a file or block device) or socket (of a vhost-user back end), readonly, direct, serial (of path),
            num_queues (default 1), queue_size (entries, default 128), iommu, packed, id
  --net     tap (made where there is none) or socket, mac, mtu (bytes), num_queues (rings, default 2),
            queue_size (entries, default 256), iommu, packed, id
  --fs      tag, socket, num_queues (default 1), queue_size (entries, default 1024), iommu, packed, id
  --vsock   cid (from 3), socket, queue_size (entries, default 256), iommu, packed, id

A vhost-user-blk or vhost-user-net is started for each path and tap, and ends with the machine. A value with commas goes
between double quotes. A virtio-iommu is there when a device has iommu=on. On a terminal, Ctrl-A x ends the machine.

Exit codes: 0 the guest has shut down or migrated away, 1 it failed, 2 wrong usage, 130 interrupted, 143 terminated.

Examples:
  ringside vm run --kernel vmlinux --initramfs initrd --cmdline "console=ttyS0"
  ringside vm run --kernel bzImage --cmdline "console=ttyS0 root=/dev/vda" --cpus 2 --memory 4G \\
    --disk path=root.img --net tap=vm1,mac=52:54:00:12:34:56
  ringside vm run --kernel bzImage --memory size=1G,hotplug_size=3G --disk path=root.img,iommu=on \\
    --api-socket /run/vm1.sock
  ringside vm run --kernel vmlinux --disk socket=/run/spdk/vhost.1,num_queues=4 --fs tag=home,socket=/run/home.sock \\
    --serial file=guest.log --api-socket /run/vm1.sock
`;

const SERVE_HELP = `
Ends at vmm.shutdown or a signal. A guest that shuts down leaves its configuration: vm.boot starts it again.

Exit codes: 0 vmm.shutdown, 1 it failed, 2 wrong usage, 130 interrupted, 143 terminated.

Examples:
  ringside vm serve --api-socket /run/vm1.sock
  curl --unix-socket /run/vm1.sock http://localhost/api/v1/vmm.ping
`;

export function createVmCommands(context: CliContext, version: string): Command {
  const vm = new Command('vm')
    .description('Runs virtual machines on KVM whose devices are vhost-user back ends.')
    .helpCommand(false);
  const run = new Command('run').description('Runs a virtual machine until its guest shuts down.');
  for (const each of [
    new Option('--kernel <path>', 'kernel: vmlinux (ELF) or bzImage').makeOptionMandatory(),
    new Option('--initramfs <path>', 'initial file system of the guest'),
    new Option('--cmdline <text>', 'command line of the kernel'),
    option('--cpus <fields>', 'vCPUs: a number, or fields (default: 1)', parser(parseCpus)),
    option('--memory <fields>', 'memory: bytes with k, M, G, T, or fields (default: 512M)', parser(parseMemory)),
    listOption('--disk <fields...>', 'a disk; may be repeated', parseDisk),
    listOption('--net <fields...>', 'a network interface; may be repeated', parseNet),
    listOption('--fs <fields...>', 'a shared file system; may be repeated', parseFs),
    option('--vsock <fields>', 'virtual sockets', parser(parseVsock)),
    option(
      '--serial <where>',
      'serial port: tty, off, null or file=<path>',
      parser(parseSerial),
      parseSerial('tty'),
      'tty',
    ),
    option(
      '--console <where>',
      'virtio console, which is not there: off or null',
      parser(parseConsole),
      parseConsole('off'),
      'off',
    ),
    apiSocket(),
    ...logOptions('warn'),
  ]) {
    run.addOption(each);
  }
  vm.addCommand(
    run.addHelpText('after', RUN_HELP).action(async (options) => {
      const { endVcpuWorkers, startVcpuWorker } = await import('../vmm/vcpu-worker.ts');
      startVcpuWorker();
      try {
        const { disk, net, fs, vsock } = options as RunOptions;
        const hasDevices = [disk, net, fs, vsock].some((devices) => devices !== undefined);
        // What only devices need would be loaded by the machine, one after the other.
        const [{ runVm }] = await Promise.all([
          import('./vm-run.ts'),
          ...(hasDevices
            ? [
                import('../vmm/devices/open.ts'),
                import('../vmm/slots/open-device.ts'),
                import('../vmm/slots/filled-slot.ts'),
                import('../vmm/virtio-mmio/transport.ts'),
              ]
            : []),
        ]);
        return await runVm(context, version, options as RunOptions);
      } finally {
        await endVcpuWorkers();
      }
    }),
  );
  const serve = new Command('serve').description('Waits for a virtual machine to be created over the HTTP API.');
  for (const each of [apiSocket().makeOptionMandatory(), ...logOptions('info')]) serve.addOption(each);
  vm.addCommand(
    serve.addHelpText('after', SERVE_HELP).action(async (options) => {
      const { serveVms } = await import('./vm-serve.ts');
      return serveVms(context, version, options as ServeOptions);
    }),
  );
  return vm;
}
