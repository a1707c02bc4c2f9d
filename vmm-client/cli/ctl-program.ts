/** The `ctl` commands: one for each route of the API, with the names that ch-remote has where it has them. */

import { readFile } from 'node:fs/promises';
import { Command } from 'commander';
import type { LongOperationName } from '../api/vmm-control.ts';
import { duration, option } from './command-options.ts';
import type { CliContext } from './context.ts';
import { createConsoleCommands } from './ctl-console.ts';
import { createDeviceCommands } from './ctl-devices.ts';
import { createMoveCommands } from './ctl-moves.ts';
import type { ApiRequest } from './ctl-request.ts';

/** What a command asks of the VMM. */
export type CtlRequest = Pick<ApiRequest, 'method' | 'name' | 'body'>;

/** What it asks for that takes its time. */
export interface LongRequest {
  readonly operation: LongOperationName;
  readonly body: object;
  /** An interruption cancels it. */
  readonly cancels: boolean;
  /** --timeout is in the body. */
  readonly isTimedByVmm?: boolean;
}

interface CtlOptions {
  readonly apiSocket: string;
  readonly timeout: number;
}

/** Name, route and what help says. */
const COMMANDS: readonly (readonly [name: string, method: ApiRequest['method'], route: string, description: string])[] =
  [
    ['ping', 'GET', 'vmm.ping', 'Asks the VMM who it is.'],
    ['boot', 'PUT', 'vm.boot', 'Starts the machine that was created.'],
    ['info', 'GET', 'vm.info', 'Shows configuration and state of the machine.'],
    ['counters', 'GET', 'vm.counters', 'Shows the counters of the machine.'],
    ['queues', 'GET', 'vm.queues', 'Shows how the queues and vCPUs of the machine do.'],
    ['pause', 'PUT', 'vm.pause', 'Stops the vCPUs.'],
    ['resume', 'PUT', 'vm.resume', 'Lets the vCPUs go on.'],
    ['power-button', 'PUT', 'vm.power-button', 'Asks the guest to shut down.'],
    ['shutdown', 'PUT', 'vm.shutdown', 'Stops the machine; its configuration stays.'],
    ['reboot', 'PUT', 'vm.reboot', 'Starts the machine anew.'],
    ['delete', 'PUT', 'vm.delete', 'Stops the machine and forgets its configuration.'],
    ['shutdown-vmm', 'PUT', 'vmm.shutdown', 'Ends the VMM and the machine.'],
  ];

type CtlContext = Pick<CliContext, 'stdin' | 'stdout' | 'stderr' | 'interrupted'>;

async function readConfiguration({ stdin }: CtlContext, file: string): Promise<string> {
  if (file !== '-') {
    return readFile(file, 'utf8').catch(async (error: NodeJS.ErrnoException) => {
      const { ApiError } = await import('./ctl-request.ts');
      const why = /^[A-Z0-9]+: ([^,]+)/.exec(error.message)?.[1] ?? error.message;
      throw new ApiError(error.code ?? 'FILE', `${file} cannot be read: ${why}`);
    });
  }
  const chunks: Buffer[] = [];
  for await (const chunk of stdin) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks).toString();
}

/** JSON as people read it; what is not JSON as it is. */
function prettify(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), undefined, 2);
  } catch (error) {
    if (error instanceof SyntaxError) return text;
    throw error;
  }
}

export function createCtlCommand(context: CtlContext): Command {
  const ctl = new Command('ctl')
    .description('Controls a running VMM through its API socket.')
    .requiredOption('--api-socket <path>', 'Unix socket of the VMM (its --api-socket)')
    .addOption(
      option(
        '--timeout <time>',
        'how long one answer may take; snapshots and migrations have no limit by default',
        duration,
        60_000,
        '1m',
      ),
    )
    .helpCommand(false);
  const send = async (request: CtlRequest): Promise<void> => {
    const { apiSocket, timeout } = ctl.opts<CtlOptions>();
    const { interrupted } = context;
    const { requestApi } = await import('./ctl-request.ts');
    const answer = await requestApi({ ...request, socketPath: apiSocket, timeoutMs: timeout, interrupted });
    if (answer !== '') context.stdout.write(`${prettify(answer)}\n`);
  };
  const timeoutMs = () =>
    ctl.getOptionValueSource('timeout') === 'default' ? undefined : ctl.opts<CtlOptions>().timeout;
  const sendAtLength = async ({ operation, body, cancels, isTimedByVmm = false }: LongRequest): Promise<void> => {
    const { apiSocket } = ctl.opts<CtlOptions>();
    const { requestAtLength } = await import('./ctl-watch.ts');
    await requestAtLength(
      {
        operation,
        cancels,
        socketPath: apiSocket,
        method: 'PUT',
        name: `vm.${operation}`,
        body: JSON.stringify(body),
        timeoutMs: isTimedByVmm ? undefined : timeoutMs(),
        interrupted: context.interrupted,
      },
      context,
    );
  };
  for (const [command, method, name, description] of COMMANDS) {
    ctl
      .command(command)
      .description(description)
      .action(() => send({ method, name }));
  }
  ctl
    .command('create')
    .description('Gives the VMM the configuration of a machine, in JSON.')
    .argument('[file]', "where from, - is standard input (Cloud Hypervisor's VmConfig)", '-')
    .action(async (file: string) => {
      await send({ method: 'PUT', name: 'vm.create', body: await readConfiguration(context, file) });
    });
  const stream = async (name: string): Promise<void> => {
    const { stdout: output, interrupted } = context;
    const { requestApi } = await import('./ctl-request.ts');
    const { apiSocket: socketPath } = ctl.opts<CtlOptions>();
    await requestApi({ method: 'GET', name, socketPath, timeoutMs: timeoutMs(), interrupted, output });
  };
  for (const command of createConsoleCommands(send, stream)) ctl.addCommand(command);
  for (const command of createDeviceCommands(send)) ctl.addCommand(command);
  for (const command of createMoveCommands({ send, sendAtLength, timeoutMs })) ctl.addCommand(command);
  return ctl;
}
