/**
 * A live migration from one QEMU to another on the same machine, in the steps that a test looks at: it begins slowly,
 * is held while the guest works and its dirty pages are asked for again and again, and then is let go.
 *
 * What proves a back end's dirty log: a page that was sent in the first round and that the back end, and nobody else,
 * has written since. Without the log the destination has the old content.
 */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cleanup } from '../cleanup.ts';
import type { QemuGuest } from './qemu.ts';

const MiB = 1 << 20;
const POLL_MS = 25;
/** What the guest writes again and again, so that there is always a dirty page. */
const BUSY_BYTES = 4 * MiB;

interface MigrationStatus {
  readonly status?: string;
  readonly 'error-desc'?: string;
  readonly downtime?: number;
  readonly ram?: { readonly 'dirty-sync-count': number; readonly remaining: number };
}

/** What QEMU says about a migration that is over. */
export interface MigrationReport {
  /** How often QEMU has asked for the dirty pages. */
  readonly rounds: number;
  readonly downtimeMs: number;
}

export class Migration {
  readonly #source: QemuGuest;
  readonly #destination: QemuGuest;

  private constructor(source: QemuGuest, destination: QemuGuest) {
    this.#source = source;
    this.#destination = destination;
  }

  /**
   * Starts it. It does not end by itself as long as a page is dirty, and the guest sees to that until `finish`: QEMU is
   * told that the last round would take longer than it may, whatever it has measured. (At less than a byte a round it
   * would not look for dirty pages again.)
   */
  static async start(cleanup: Cleanup, source: QemuGuest, destination: QemuGuest): Promise<Migration> {
    await source.run(`head -c ${BUSY_BYTES} /dev/urandom >/tmp/busy
      (until [ -e /tmp/calm ]; do dd if=/tmp/busy of=/tmp/busy-copy bs=64k conv=notrunc 2>/dev/null; done) &`);
    const uri = `unix:${join(cleanup.directory(), 'migration')}`;
    await destination.qmp.execute('migrate-incoming', { uri });
    await source.qmp.execute('migrate-set-parameters', {
      'max-bandwidth': 200 * MiB,
      'downtime-limit': 1,
      'avail-switchover-bandwidth': MiB,
    });
    await source.qmp.execute('migrate', { uri });
    return new Migration(source, destination);
  }

  /**
   * Resolves when every page has been sent once and dirty ones were asked for since; sends next to nothing from then on.
   * @throws Error - it has ended, or does not come so far in time
   */
  async hold(deadlineMs = 60_000): Promise<void> {
    await this.#until(({ ram }) => (ram?.['dirty-sync-count'] ?? 0) >= 2, deadlineMs);
    await this.#source.qmp.execute('migrate-set-parameters', { 'max-bandwidth': MiB });
    await this.expectHeld();
  }

  /** @throws Error - unless it is still under way */
  async expectHeld(): Promise<void> {
    const { status } = await this.#query();
    if (status !== 'active') throw new Error(`the migration is not held, it is ${status}`);
  }

  /** Lets it go, and resolves when the guest runs at the destination. @throws Error - with QEMU's reason if it failed */
  async finish(deadlineMs = 60_000): Promise<MigrationReport> {
    await this.#source.qmp.execute('migrate-set-parameters', {
      'max-bandwidth': 1024 * MiB,
      'downtime-limit': 2_000,
      'avail-switchover-bandwidth': 0,
    });
    const { ram, downtime } = await this.#until(({ status }) => status === 'completed', deadlineMs);
    await this.#destination.qmp.waitForEvent(({ event }) => event === 'RESUME', deadlineMs);
    await this.#destination.run('touch /tmp/calm');
    return { rounds: ram?.['dirty-sync-count'] ?? 0, downtimeMs: downtime ?? 0 };
  }

  async #query(): Promise<MigrationStatus> {
    return (await this.#source.qmp.execute('query-migrate')) as MigrationStatus;
  }

  async #until(reached: (status: MigrationStatus) => boolean, deadlineMs: number): Promise<MigrationStatus> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      const status = await this.#query();
      if (reached(status)) return status;
      const over = status.status === 'completed' || status.status === 'failed';
      if (over || performance.now() > end) {
        const tails = `${this.#source.child.tail()}\n${this.#destination.child.tail()}`;
        throw new Error(`the migration has come to ${JSON.stringify(status)} and not further:\n${tails}`);
      }
      await delay(POLL_MS);
    }
  }
}
