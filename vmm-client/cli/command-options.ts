/** What the commands of `ringside` make their options of. */

import { InvalidArgumentError, Option } from 'commander';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { parseDuration, parseInteger, parseSize, UsageError } from './quantity.ts';

export const SOCKET = 'Unix socket that the back end listens on';

/** Lets commander name the option that a value was wrong for. */
export function parser<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      if (error instanceof UsageError) throw new InvalidArgumentError(error.message);
      throw error;
    }
  };
}

export const size = parser(parseSize);
export const duration = parser(parseDuration);
export const integer = (min: number, max: number) => parser(parseInteger(min, max));

/** An option with a value; `shown` is its default as help has it. */
export function option<T>(flags: string, text: string, parse: (text: string) => T, value?: T, shown?: string): Option {
  const made = new Option(flags, text).argParser(parse);
  return value === undefined ? made : made.default(value, shown);
}

/** An option whose values are collected, however they are spelt: `--disk A --disk B` or `--disk A B`. */
export function listOption<T>(flags: string, text: string, parse: (text: string) => T): Option {
  const parseOne = parser(parse);
  return new Option(flags, text).argParser((value, previous: readonly T[] | undefined) => [
    ...(previous ?? []),
    parseOne(value),
  ]);
}

export const timeoutOption = () => option('--timeout <time>', 'how long one answer may take', duration, 10_000, '10s');

/** Options of every command that runs queues. */
export const queueOptions = () => [
  option(
    '--queue-size <entries>',
    'entries of each queue, a power of two unless --packed',
    integer(4, VIRTQ_MAX_SIZE),
    256,
  ),
  new Option('--packed', 'packed rings instead of split ones (RING_PACKED)'),
  new Option('--in-order', 'have buffers back in the order of their submission (IN_ORDER)'),
  timeoutOption(),
  option('--reconnect <time>', 'how long to dial a back end that went away, 0: not', duration, 10_000, '10s'),
];
