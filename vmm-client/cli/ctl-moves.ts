/** The `ctl` commands that take their time: snapshots and migrations. */

import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Argument, Command } from 'commander';
import type { RestoredDevice } from '../api/vmm-control.ts';
import { DEFAULTS } from '../vmm/config-limits.ts';
import { duration, listOption, option, parser } from './command-options.ts';
import { absolutePaths } from './ctl-devices.ts';
import type { CtlRequest, LongRequest } from './ctl-program.ts';
import { parseFields, text } from './fields.ts';
import { UsageError } from './quantity.ts';

/** What sends requests, at once and with an eye on their progress. */
interface Senders {
  readonly send: (request: CtlRequest) => Promise<void>;
  readonly sendAtLength: (request: LongRequest) => Promise<void>;
  /** What --timeout says, or undefined where it was not given. */
  readonly timeoutMs: () => number | undefined;
}

/** `DIR` or `file:///DIR` as the latter. */
function toFileUrl(directory: string): string {
  return directory.startsWith('file:') ? directory : pathToFileURL(resolve(directory)).href;
}

/** `unix:PATH` with an absolute path, or `tcp:HOST:PORT`. @throws UsageError */
export function parseUrl(url: string): string {
  if (/^tcp:.+:\d+$/.test(url)) return url;
  if (/^unix:./.test(url)) return `unix:${resolve(url.slice('unix:'.length))}`;
  throw new UsageError(`'${url}' is neither unix:<path> nor tcp:<host>:<port>`);
}

/** `id=_disk0,socket=/run/blk.sock`. @throws UsageError */
export function parseRestored(value: string): RestoredDevice {
  const { id, ...where } = parseFields(value, { id: text, socket: text, path: text, tap: text });
  if (id === undefined) throw new UsageError("the field 'id' is missing");
  if (Object.keys(where).length !== 1) throw new UsageError('one of socket, path and tap is needed');
  return absolutePaths({ id, ...where });
}

interface RestoredOptions {
  readonly device?: readonly RestoredDevice[];
}

interface SendOptions {
  /** Milliseconds. */
  readonly downtime: number;
  readonly local?: true;
  readonly autoConverge: boolean;
}

const deviceOption = () =>
  listOption(
    '--device <fields>',
    'where a device is found here: id, and socket, path or tap; may be repeated',
    parseRestored,
  );
const devicesOf = ({ device }: RestoredOptions) => (device === undefined ? {} : { devices: device });

const EXAMPLES = (...lines: readonly string[]): string =>
  `\nExample${lines.length === 1 ? '' : 's'}:\n${lines.map((line) => `  ringside ctl --api-socket ${line}`).join('\n')}`;

const url = (who: string) =>
  new Argument('<url>', `${who}: unix:<path> or tcp:<host>:<port>`).argParser(parser(parseUrl));

function createSnapshotCommands({ sendAtLength }: Senders): Command[] {
  return [
    new Command('snapshot')
      .description('Saves a paused machine: its memory, its vCPUs and its devices, but not its disks.')
      .argument('<directory>', 'where to; made where there is none')
      .addHelpText('after', EXAMPLES('vm.sock pause', 'vm.sock snapshot /var/tmp/vm1'))
      .action((directory: string) =>
        sendAtLength({ operation: 'snapshot', body: { destination_url: toFileUrl(directory) }, cancels: false }),
      ),
    new Command('restore')
      .description('Makes a machine of a snapshot, where none is created. It is paused.')
      .argument('<directory>', 'of the snapshot')
      .option('--resume', 'let its guest go on at once')
      .addOption(deviceOption())
      .addHelpText(
        'after',
        EXAMPLES('new.sock restore /var/tmp/vm1 --resume', 'new.sock restore vm1 --device id=_disk0,path=copy.img'),
      )
      .action((directory: string, options: RestoredOptions & { readonly resume?: true }) => {
        const { resume = false } = options;
        const body = { source_url: toFileUrl(directory), resume, ...devicesOf(options) };
        return sendAtLength({ operation: 'restore', body, cancels: false });
      }),
  ];
}

/** The commands, in the order of the help. */
export function createMoveCommands(senders: Senders): Command[] {
  const { send, sendAtLength, timeoutMs } = senders;
  return [
    ...createSnapshotCommands(senders),
    new Command('send-migration')
      .description(
        'Moves the machine, which runs meanwhile, to a VMM that waits for it. Ctrl-C cancels: the guest goes on here.',
      )
      .addArgument(url('where that VMM listens'))
      .addOption(
        option(
          '--downtime <time>',
          'for how long the guest may stand still',
          duration,
          DEFAULTS.downtimeMs,
          `${DEFAULTS.downtimeMs}ms`,
        ),
      )
      .option('--no-auto-converge', 'leave a guest alone that writes memory faster than it is sent')
      .option('--local', 'hand the memory over instead of sending it, to a VMM on this host by unix:<path>')
      .addHelpText(
        'after',
        `\n--timeout (without a limit by default) gives the migration up after that time.\n${EXAMPLES(
          'vm.sock send-migration unix:/run/migration.sock',
          'vm.sock --timeout 10m send-migration tcp:192.0.2.7:4444 --downtime 100ms',
          'vm.sock send-migration unix:/run/migration.sock --local',
        )}`,
      )
      .action((destination_url: string, { downtime, local, autoConverge }: SendOptions) => {
        const limit = timeoutMs();
        const body = {
          destination_url,
          downtime_ms: Math.round(downtime),
          ...(limit === undefined ? {} : { timeout_s: Math.max(1, Math.ceil(limit / 1000)) }),
          ...(local === true ? { local } : {}),
          ...(autoConverge ? {} : { auto_converge: false }),
        };
        // The VMM gives up, and says so: we wait for that.
        return sendAtLength({ operation: 'send-migration', body, cancels: true, isTimedByVmm: true });
      }),
    new Command('receive-migration')
      .description('Waits for a machine and takes it over, where none is created. Ctrl-C cancels.')
      .addArgument(url('where to listen'))
      .addOption(deviceOption())
      .addHelpText(
        'after',
        EXAMPLES(
          'new.sock receive-migration unix:/run/migration.sock',
          'new.sock receive-migration tcp:192.0.2.7:4444 --device id=_disk0,socket=blk.sock',
        ),
      )
      .action((receiver_url: string, options: RestoredOptions) =>
        sendAtLength({
          operation: 'receive-migration',
          body: { receiver_url, ...devicesOf(options) },
          cancels: true,
        }),
      ),
    new Command('cancel-migration')
      .description('Ends a migration that is under way, at either side.')
      .addHelpText('after', EXAMPLES('vm.sock cancel-migration'))
      .action(() => send({ method: 'PUT', name: 'vm.cancel-migration' })),
    new Command('progress')
      .description('Shows how far a snapshot, a restore or a migration has come, or how the last one ended.')
      .addHelpText('after', EXAMPLES('vm.sock progress'))
      .action(() => send({ method: 'GET', name: 'vm.progress' })),
  ];
}
