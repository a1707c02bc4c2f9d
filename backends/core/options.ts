/** Options that every daemon has, and how bad ones are told. Source: vhost-user, Backend program conventions. */

import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { LOG_FORMATS, LOG_LEVELS, type LoggingOptions } from './logging.ts';
import type { PumpOptions } from './pump.ts';

/** More threads than any host has use for; each costs 8 MB. */
const MAX_THREADS = 64;

/** The user asked for something that cannot be: one line on stderr, exit status 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  readonly code = 'USAGE';
}

export interface CoreOptions extends LoggingOptions {
  readonly socketPath?: string;
  readonly fd?: number;
  readonly client?: boolean;
  readonly supervised?: boolean;
  readonly pollUs: number;
  readonly poll?: boolean;
  readonly threads?: number;
  readonly iommu?: boolean;
  readonly inBand?: boolean;
}

/** Parses a whole number within bounds, for commander. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max) {
      throw new InvalidArgumentError(`a whole number from ${min} to ${max} is expected.`);
    }
    return value;
  };
}

/** The option of daemons whose rings can be served by several threads. */
export function threadsOption(): Option {
  return new Option('--threads <count>', 'threads that virtqueues are spread over')
    .argParser(wholeNumber(1, MAX_THREADS))
    .default(1);
}

/** A command with the options of every daemon. Commander throws instead of exiting. */
export function createCommand(name: string, description: string, version: string): Command {
  return new Command(name)
    .description(description)
    .version(version, '--version', 'print the version and exit')
    .helpOption('--help', 'print this help and exit')
    .option('--socket-path <path>', 'listen on this Unix socket (with --client: connect to it)')
    .addOption(
      new Option('--fd <number>', 'use this inherited socket, listening or connected')
        .argParser(wholeNumber(0, 0x7fff_ffff))
        .conflicts(['socketPath', 'client']),
    )
    .option('--client', 'connect to a front end that listens, and again when it goes away')
    .option('--supervised', 'say "ready" on standard output when serving; stop when standard input ends')
    .option('--print-capabilities', 'print the capabilities as JSON and exit')
    .addOption(
      new Option('--poll-us <microseconds>', 'poll this long for more work before sleeping; 0 sleeps at once')
        .argParser(wholeNumber(0, 1_000_000))
        .default(100),
    )
    .option('--iommu', 'let the front end put an IOMMU before the device (offer ACCESS_PLATFORM)')
    .option('--in-band', 'let the front end notify by messages (offer INBAND_NOTIFICATIONS, for simulated time)')
    .option('--poll', 'never sleep while a guest is attached (one core is busy all the time)')
    .addOption(new Option('--log-level <level>', 'least level to log').choices(LOG_LEVELS).default('info'))
    .addOption(
      new Option('--log-format <format>', 'auto is pretty on a terminal, JSON lines otherwise')
        .choices(LOG_FORMATS)
        .default('auto'),
    )
    .allowExcessArguments(false)
    .exitOverride()
    .configureOutput({ outputError: () => undefined });
}

/** What commander and we found wrong, as a UsageError; undefined when it only printed help or the version. */
export function toUsageError(error: unknown): UsageError | undefined {
  if (error instanceof UsageError) return error;
  if (!(error instanceof CommanderError)) throw error;
  if (error.exitCode === 0) return undefined;
  return new UsageError(error.message.replace(/^error: /, ''));
}

/** @throws UsageError - neither or both of --socket-path and --fd */
export function checkCoreOptions(options: CoreOptions): void {
  if (options.socketPath === undefined && options.fd === undefined) {
    throw new UsageError('one of --socket-path and --fd is needed');
  }
}

/** The pump's part of the options. */
export function pumpOptions(options: CoreOptions): PumpOptions {
  return { pollUs: options.pollUs, alwaysPoll: options.poll === true };
}
