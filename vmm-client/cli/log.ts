/**
 * The log of a machine: pino on standard error or in a file; pretty on a terminal, JSON lines otherwise. Both packages
 * are loaded when the first line is written: they cost 15 and 20 ms that a guest would wait for.
 */

import { openSync } from 'node:fs';
import { createRequire } from 'node:module';
import type { pino as Pino } from 'pino';
import type PinoPretty from 'pino-pretty';
import type { Log } from '../vmm/log.ts';
import { LOG_LEVELS, type LogLevel } from './log-levels.ts';
import { FileError } from './sink.ts';

export interface LogOptions {
  readonly level: LogLevel;
  /** A file to append to, in the place of standard error. */
  readonly file?: string;
  /** Whether standard error is a terminal. */
  readonly isTTY: boolean;
}

const STDERR = 2;

type Written = 'info' | 'warn' | 'error';

class LazyLog implements Log {
  readonly #threshold: number;
  readonly #open: () => Pino.Logger;
  #logger: Pino.Logger | undefined;

  constructor(level: LogLevel, open: () => Pino.Logger) {
    this.#threshold = LOG_LEVELS.indexOf(level);
    this.#open = open;
  }

  info(...line: [string] | [object, string]): void {
    this.#write('info', line);
  }

  warn(...line: [string] | [object, string]): void {
    this.#write('warn', line);
  }

  error(...line: [string] | [object, string]): void {
    this.#write('error', line);
  }

  #write(level: Written, line: [string] | [object, string]): void {
    if (LOG_LEVELS.indexOf(level) < this.#threshold) return;
    this.#logger ??= this.#open();
    const [details, message] = line.length === 1 ? [{}, line[0]] : line;
    this.#logger[level](details, message);
  }
}

/** Lines are out when the call returns. @throws FileError - the file is not to be had */
export function createLog({ level, file, isTTY }: LogOptions): Log {
  const fd = file === undefined ? STDERR : openLog(file);
  return new LazyLog(level, () => {
    const require = createRequire(import.meta.url);
    const { pino } = require('pino') as { pino: typeof Pino };
    const settings = { name: 'ringside', level, base: { name: 'ringside', pid: process.pid } };
    if (file !== undefined || !isTTY) return pino(settings, pino.destination({ fd, sync: true }));
    const pretty = require('pino-pretty') as typeof PinoPretty;
    return pino(settings, pretty({ destination: fd, sync: true, ignore: 'pid,hostname,name', singleLine: true }));
  });
}

function openLog(file: string): number {
  try {
    return openSync(file, 'a');
  } catch (error) {
    throw new FileError(file, error as NodeJS.ErrnoException);
  }
}
