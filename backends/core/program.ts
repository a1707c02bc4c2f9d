/** What the main.ts of every daemon does around its device: options, signals, exit statuses, one sentence for each failure. */

import { SysError } from '../../protocol/sys/errors.ts';
import { Daemon } from './daemon.ts';
import { type DataPaths, openDataPaths } from './data-paths.ts';
import type { Device } from './device.ts';
import { createLogger, type Logger } from './logging.ts';
import { type CoreOptions, pumpOptions, toUsageError, UsageError } from './options.ts';
import { obeyStarter } from './supervised.ts';
import { VERSION } from './version.ts';

/** A device, and where it is served. */
export interface Service {
  readonly device: Device;
  readonly options: CoreOptions;
  readonly log: Logger;
}

/** A daemon as a program. */
export interface Program<Options extends CoreOptions> {
  readonly name: string;
  /** What --print-capabilities says, see vhost-user, Backend program conventions. */
  readonly capabilities: { readonly type: string; readonly features: readonly string[] };
  /** Parses the command line without the program's name. @throws UsageError, CommanderError */
  parse(argv: readonly string[], version: string): Options;
  /** Takes hold of what the devices need, and says so in the log. @throws UsageError, SysError */
  open(options: Options, log: Logger): Promise<readonly Service[]>;
}

/** How a program ended: what is left to be printed, and its exit status (2 usage, 1 the host). */
export interface Outcome {
  readonly output: string;
  readonly complaint: string;
  readonly status: number;
}

/** The hooks a main.ts installs for signals. */
export interface SignalHandlers {
  /** SIGTERM and SIGINT. */
  readonly stop: () => void;
  /** SIGHUP. */
  readonly reload: () => void;
}

type Install = (handlers: SignalHandlers) => void;

/** Runs a daemon from its command line to its end; `install` attaches the signal handlers. Other errors are our mistakes. */
export async function runProgram<O extends CoreOptions>(
  program: Program<O>,
  argv: readonly string[],
  install: Install,
): Promise<Outcome> {
  const quiet: Outcome = { output: '', complaint: '', status: 0 };
  if (argv.includes('--print-capabilities')) return { ...quiet, output: `${JSON.stringify(program.capabilities)}\n` };
  try {
    const options = parseOptions(program, argv);
    if (options !== undefined) await serve(program, options, install);
    return quiet;
  } catch (error) {
    if (!(error instanceof UsageError) && !(error instanceof SysError)) throw error;
    const status = error instanceof UsageError ? 2 : 1;
    return { ...quiet, complaint: `${program.name}: ${error.message}\n`, status };
  }
}

/** The options; undefined when only help or the version was asked for. */
function parseOptions<O extends CoreOptions>(program: Program<O>, argv: readonly string[]): O | undefined {
  try {
    return program.parse(argv, VERSION);
  } catch (error) {
    const usage = toUsageError(error);
    if (usage !== undefined) throw usage;
    return undefined;
  }
}

/**
 * A device is closed only when nothing of it is in flight: otherwise its locks must last until the kernel is done. When one
 * of several cannot be served, or has no more to do, all of them end.
 */
async function serve<O extends CoreOptions>(program: Program<O>, options: O, install: Install): Promise<void> {
  const log = await createLogger(program.name, options);
  const services = await program.open(options, log);
  const served: { device: Device; paths: DataPaths; daemon: Daemon }[] = [];
  for (const { device, options: own, log: ownLog } of services) {
    const paths = await openDataPaths(device, own.threads ?? 1, pumpOptions(own), ownLog);
    served.push({ device, paths, daemon: new Daemon(device, paths, own, ownLog, services.length === 1) });
  }
  const reload = (): void => {
    for (const { device } of services) reloadDevice(device, log);
  };
  const stop = (): void => {
    for (const { daemon } of served) void daemon.stop();
  };
  install({ stop, reload });
  try {
    for (const { daemon } of served) daemon.start();
  } catch (error) {
    // Those that were started leave no socket behind.
    stop();
    for (const { device, paths } of served) await close(device, paths);
    throw error;
  }
  if (options.supervised === true) obeyStarter(stop);
  const ends = served.map(async ({ device, paths, daemon }) => {
    if (await daemon.finished) await close(device, paths);
    stop();
  });
  await Promise.all(ends);
  log.info('stopped');
}

async function close(device: Device, paths: DataPaths): Promise<void> {
  await paths.shutDown();
  device.close();
}

function reloadDevice(device: Device, log: Logger): void {
  try {
    device.reload();
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    log.error(error.message);
  }
}
