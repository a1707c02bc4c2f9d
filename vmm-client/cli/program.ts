/**
 * The commands of `ringside`, their options and help. Knows neither the process nor how to exit. What a command does is
 * loaded when it is run: a virtual machine is not to wait for the code of the others.
 */

import { Command, Option } from 'commander';
import { SOCKET, timeoutOption } from './command-options.ts';
import type { CliContext } from './context.ts';

/** The commands in files of their own, in the order of the help. */
const GROUPS: Readonly<Record<string, (context: CliContext, version: string) => Promise<Command>>> = {
  blk: async (context) => (await import('./blk-program.ts')).createBlkCommands(context),
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
