/**
 * A postcopy migration from one QEMU to another on the same machine: the guest goes on at the destination when next to
 * nothing of its memory is there, and the rest comes so slowly that the guest and its back ends have to ask for what they need.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cleanup } from '../cleanup.ts';
import { awaitMigration, type QemuGuest, type QemuOptions } from './qemu.ts';

const MiB = 1 << 20;
const POLL_MS = 25;
/** What QEMU traces for each page that a back end asks for. */
const FAULT = 'vhost_user_postcopy_fault_handler_found';

export class Postcopy {
  readonly destination: QemuGuest;
  readonly #source: QemuGuest;
  readonly #trace: string;

  private constructor(source: QemuGuest, destination: QemuGuest, trace: string) {
    this.#source = source;
    this.destination = destination;
    this.#trace = trace;
  }

  /** Starts a QEMU with these options and moves the guest there. Resolves when it runs there. */
  static async start(cleanup: Cleanup, source: QemuGuest, options: QemuOptions): Promise<Postcopy> {
    const directory = cleanup.directory();
    const trace = join(directory, 'trace');
    const extra = [...(options.extra ?? []), '-trace', FAULT, '-D', trace];
    const destination = await awaitMigration(cleanup, { ...options, extra });
    for (const { qmp } of [source, destination]) {
      await qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'postcopy-ram', state: true }] });
    }
    const self = new Postcopy(source, destination, trace);
    await source.qmp.execute('migrate-set-parameters', {
      'max-bandwidth': 8 * MiB,
      'max-postcopy-bandwidth': 4 * MiB,
      'downtime-limit': 1,
    });
    const uri = `unix:${join(directory, 'migration')}`;
    await destination.qmp.execute('migrate-incoming', { uri });
    await source.qmp.execute('migrate', { uri });
    await self.#reaches('active');
    await source.qmp.execute('migrate-start-postcopy');
    await destination.qmp.waitForEvent(({ event }) => event === 'RESUME', 60_000);
    return self;
  }

  /** Pages that back ends have asked for so far, or until all memory was there. @throws Error - the migration failed */
  async pagesAskedFor(): Promise<number> {
    const pages = readFileSync(this.#trace, 'utf8').split(FAULT).length - 1;
    const status = await this.#status();
    if (status !== 'postcopy-active' && status !== 'completed') throw new Error(`the migration is ${status}`);
    return pages;
  }

  /** Lets the rest of the memory come, and resolves when it has. */
  async finish(): Promise<void> {
    await this.#source.qmp.execute('migrate-set-parameters', { 'max-postcopy-bandwidth': 1024 * MiB });
    await this.#reaches('completed');
  }

  async #status(): Promise<string | undefined> {
    return ((await this.#source.qmp.execute('query-migrate')) as { status?: string }).status;
  }

  async #reaches(wanted: string, deadlineMs = 60_000): Promise<void> {
    const end = performance.now() + deadlineMs;
    for (let status = await this.#status(); status !== wanted; status = await this.#status()) {
      if (status === 'failed' || performance.now() > end) {
        const tails = `${this.#source.child.tail()}\n${this.destination.child.tail()}`;
        throw new Error(`the migration is ${status}, not ${wanted}:\n${tails}`);
      }
      await delay(POLL_MS);
    }
  }
}
