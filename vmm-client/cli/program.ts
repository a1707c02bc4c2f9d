/**
 * The commands of `ringside`, their options and help. Knows neither the process nor how to exit. What a command does is
 * loaded when it is run: a virtual machine is not to wait for the code of the others.
 */

import { Command, Option } from 'commander';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { ACCESS_PATTERNS } from './bench-choices.ts';
import type { BenchOptions } from './blk-bench.ts';
import type { ReadOptions, WriteOptions } from './blk-transfer.ts';
import type { VerifyOptions } from './blk-verify.ts';
import { duration, integer, option, queueOptions, SOCKET, size, timeoutOption } from './command-options.ts';
import type { CliContext } from './context.ts';

/** A command on a disk: its own options, then those that all of them have. */
function diskCommand(name: string, description: string, options: readonly Option[]): Command {
  const command = new Command(name).description(description).argument('<socket>', SOCKET);
  const queues = option('--queues <number>', 'request queues to use', integer(1, 256), 1);
  for (const each of [...options, queues, ...queueOptions()]) command.addOption(each);
  return command;
}

/** The commands in files of their own, in the order of the help. */
const GROUPS: Readonly<Record<string, (context: CliContext, version: string) => Promise<Command>>> = {
  net: async (context) => (await import('./net-program.ts')).createNetCommands(context),
  vsock: async (context) => (await import('./vsock-program.ts')).createVsockCommands(context),
  vm: async (context, version) => (await import('./vm-program.ts')).createVmCommands(context, version),
  ctl: async (context) => (await import('./ctl-program.ts')).createCtlCommand(context),
  ui: async (context) => (await import('./ui-program.ts')).createUiCommand(context),
};

/**
 * Builds the command line. Actions reject with errors; `version` is what --version prints. Where `first`, the first argument,
 * is one of the groups, the others are not loaded.
 */
export async function createProgram(context: CliContext, version: string, first = ''): Promise<Command> {
  const program = new Command('ringside')
    .description(
      'Runs virtual machines whose devices are vhost-user back ends. Talks to back ends without one, too: asks what they ' +
        'are, reads, writes, verifies and measures disks, pings and captures, connects and listens by vsock.',
    )
    .version(version, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false)
    .addHelpText(
      'after',
      '\nSizes are in bytes and take the suffixes k, M, G, T (powers of 1024). Times are in seconds and take ms, s, m, h.' +
        '\nExit codes: 0 done, 1 it failed, 2 wrong usage, 130 interrupted, 143 terminated.',
    );

  program
    .command('info')
    .description('Shows features, queues, memory slots and configuration of any back end.')
    .argument('<socket>', SOCKET)
    .addOption(
      new Option('--type <device>', 'what to read it as').choices(['auto', 'blk', 'net', 'vsock']).default('auto'),
    )
    .addOption(timeoutOption())
    .option('--json', 'print JSON')
    .action(async (socket, options) => {
      const { infoToJson, queryBackend, renderInfo } = await import('./info.ts');
      const info = await queryBackend(socket, { type: options.type, timeoutMs: options.timeout });
      const text = options.json === true ? JSON.stringify(infoToJson(info), undefined, 2) : renderInfo(info);
      context.stdout.write(`${text}\n`);
    });

  const offset = (what: string) => option('--offset <bytes>', what, size, 0);
  const length = () => option('--length <bytes>', 'how much (default: to the end of the disk)', size);
  const blk = program.command('blk').description('Reads, writes, verifies or measures a disk.').helpCommand(false);
  blk.addCommand(
    diskCommand('read', 'Copies a disk, or a part of it, to a file.', [
      offset('where to begin'),
      length(),
      new Option('-o, --output <file>', 'where to, - is standard output').default('-'),
    ]).action(async (socket, options) => {
      const { readDisk } = await import('./blk-transfer.ts');
      return readDisk(context, socket, options as ReadOptions);
    }),
  );
  blk.addCommand(
    diskCommand('write', 'Copies a file onto a disk, and flushes.', [
      offset('where to begin, a multiple of the block size'),
      new Option('-i, --input <file>', 'where from, - is standard input').default('-'),
    ]).action(async (socket, options) => {
      const { writeDisk } = await import('./blk-transfer.ts');
      return writeDisk(context, socket, options as WriteOptions);
    }),
  );
  blk.addCommand(
    diskCommand('verify', 'OVERWRITES a range with a pattern, reads it back and compares.', [
      offset('where to begin, a multiple of the block size'),
      length(),
      option('--seed <number>', 'which pattern', integer(0, 0xffff_ffff), 1),
      new Option('--read-only-pass', 'only compare, with what an earlier run wrote'),
    ]).action(async (socket, options) => {
      const { verifyDisk } = await import('./blk-verify.ts');
      return verifyDisk(context, socket, options as VerifyOptions);
    }),
  );
  blk.addCommand(
    diskCommand('bench', 'Measures a disk. Patterns with "write" OVERWRITE it.', [
      new Option('--rw <pattern>', 'access pattern').choices(ACCESS_PATTERNS).default('randread'),
      option('--bs <bytes>', 'size of one request', size, 4096, '4k'),
      option('--qd <number>', 'requests in flight on each queue', integer(1, VIRTQ_MAX_SIZE), 32),
      option('--time <time>', 'how long to measure', duration, 5000, '5s'),
      option('--ramp <time>', 'how long to run before measuring', duration, 500, '500ms'),
      offset('where the range begins'),
      option('--size <bytes>', 'length of the range (default: to the end of the disk)', size),
      option('--poll <us>', 'microseconds to poll in vain before sleeping', integer(0, 10_000_000), 200),
      new Option('--json', 'print JSON'),
    ]).action(async (socket, options) => {
      const { benchDisk } = await import('./blk-bench.ts');
      return benchDisk(context, socket, options as BenchOptions);
    }),
  );
  const groups = Object.hasOwn(GROUPS, first) ? [first] : Object.keys(GROUPS);
  const loaded = await Promise.all(groups.map((group) => GROUPS[group]?.(context, version)));
  for (const group of loaded) if (group !== undefined) program.addCommand(group);
  settle(program, context);
  return program;
}

/** What commander does not hand down to commands below. Errors are thrown and not exits; help after an error would bury its sentence. */
function settle(command: Command, context: CliContext): void {
  command
    .exitOverride()
    .showHelpAfterError(false)
    .allowExcessArguments(false)
    .configureOutput({
      writeOut: (text) => context.stdout.write(text),
      writeErr: (text) => context.stderr.write(text),
      outputError: (text, write) => write(`ringside: ${text.replace(/^error: /, '')}`),
    });
  for (const each of command.commands) settle(each, context);
}
