/** What happened to packets, for the log and for tests. */

import { errnoName, errnoText } from '../../protocol/sys/errors.ts';
import type { Logger } from '../core/logging.ts';

/** Kinds of host errors that get a line in the log; the rest is only counted. */
const MAX_LOGGED_ERRORS = 8;

/** Counts of packets, by name. */
export type Counts = Readonly<Record<string, number>>;

/** What several threads counted together. */
export function sumCounts(all: readonly Counts[]): Counts {
  const sums: Record<string, number> = {};
  for (const counts of all) {
    for (const [name, count] of Object.entries(counts)) sums[name] = (sums[name] ?? 0) + count;
  }
  return sums;
}

export class Counters {
  transmitted = 0;
  received = 0;
  /** Packets of the driver that are too short, too long or not where it says. */
  malformed = 0;
  /** Sent on a disabled ring, or while there was no link. */
  discarded = 0;
  /** The driver's buffers were too small. */
  oversized = 0;
  readonly #log: Logger;
  readonly #errors = new Map<number, number>();

  constructor(log: Logger) {
    this.#log = log;
  }

  /** A packet was lost because a call of the kernel failed. */
  noteError(errno: number): void {
    const before = this.#errors.get(errno) ?? 0;
    this.#errors.set(errno, before + 1);
    if (before > 0 || this.#errors.size > MAX_LOGGED_ERRORS) return;
    this.#log.warn(`a packet was lost: ${errnoText(errno)} (${errnoName(errno)}); further ones are only counted`);
  }

  /** Everything that is not 0, by name. */
  summary(): Counts {
    const { transmitted, received, malformed, discarded, oversized } = this;
    const all = { transmitted, received, malformed, discarded, oversized };
    const errors = [...this.#errors].map(([errno, count]) => [errnoName(errno), count]);
    return Object.fromEntries([...Object.entries(all), ...errors].filter(([, count]) => count !== 0));
  }
}
