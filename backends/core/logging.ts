/** Logs: pino on stderr (stdout belongs to --print-capabilities); pretty on a terminal, JSON otherwise. */

import { pino } from 'pino';

export type Logger = pino.Logger;

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export const LOG_FORMATS = ['auto', 'json', 'pretty'] as const;

export interface LoggingOptions {
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly logFormat: (typeof LOG_FORMATS)[number];
}

/** The daemon's logger. Synchronous: a line is out before the next thing happens. */
export async function createLogger(name: string, options: LoggingOptions): Promise<Logger> {
  const settings = { name, level: options.logLevel, base: { name, pid: process.pid } };
  const pretty = options.logFormat === 'pretty' || (options.logFormat === 'auto' && process.stderr.isTTY === true);
  if (!pretty) return pino(settings, pino.destination({ fd: 2, sync: true }));
  // Loaded only here: it costs 20 ms of start-up that a service does not need.
  const { default: prettyStream } = await import('pino-pretty');
  return pino(settings, prettyStream({ destination: 2, sync: true, ignore: 'pid,hostname,name', singleLine: true }));
}

/** The logger of a worker thread, whose lines the main thread writes. `bindings` are those of the main thread's logger. */
export function createWorkerLogger(
  { name, ...more }: Record<string, unknown>,
  level: string,
  write: (line: string) => void,
): Logger {
  return pino({ level, base: { name, pid: process.pid, ...more } }, { write });
}

/** Writes a line of a worker thread's logger where `log` writes its own. */
export function writeLogLine(log: Logger, line: string): void {
  const { [pino.symbols.streamSym]: stream } = log as unknown as Record<symbol, { write(line: string): void }>;
  stream?.write(line);
}
