/**
 * A booted test guest: scripts go to it over its console and come back with output and exit status. Knows nothing of
 * how it was booted; uml.ts and qemu.ts do that.
 */

import type { Child } from '../child.ts';

/** What a script in the guest printed, and its exit status. */
export interface GuestResult {
  readonly code: number;
  readonly output: string;
}

const READY = '@@ready@@';

export class Guest {
  readonly child: Child;
  #lastId = 0;
  #bootMark = 0;

  constructor(child: Child) {
    this.child = child;
  }

  /** Resolves when the guest takes scripts. @throws Error - after deadlineMs, or on a kernel panic. */
  async waitUntilReady(deadlineMs: number): Promise<void> {
    const match = await this.child.waitFor(/@@ready@@|Kernel panic[^\n]*|@@error [^@]*@@/, deadlineMs, this.#bootMark);
    if (match[0] !== READY) throw new Error(`the guest did not come up: ${match[0]}\n${this.child.tail()}`);
    this.#bootMark = this.child.mark();
  }

  /** Runs a shell script to its end, whatever its status. */
  async try(script: string, deadlineMs = 30_000): Promise<GuestResult> {
    const id = ++this.#lastId;
    const from = this.child.mark();
    this.child.stdin.write(`${id} ${Buffer.from(script).toString('base64')}\n`);
    const pattern = new RegExp(`@@begin ${id}@@\\r?\\n([^]*?)@@end ${id} (\\d+)@@|Kernel panic[^\\n]*`);
    const match = await this.child.waitFor(pattern, deadlineMs, from);
    if (match[2] === undefined) throw new Error(`the guest's kernel panicked:\n${this.child.tail()}`);
    return { code: Number(match[2]), output: (match[1] ?? '').replaceAll('\r', '').trim() };
  }

  /**
   * Runs a shell script and returns what it printed. The script stops at the first command that fails.
   * @throws Error - when its status is not 0, or it is not done after deadlineMs.
   */
  async run(script: string, deadlineMs = 30_000): Promise<string> {
    const { code, output } = await this.try(`set -e\n${script}`, deadlineMs);
    if (code !== 0) throw new Error(`in the guest, status ${code} of\n${script}\nwith output\n${output}`);
    return output;
  }

  /** Resolves when a condition, a shell command, holds in the guest. @throws Error - when it does not in time. */
  async waitUntil(condition: string, deadlineMs = 15_000): Promise<void> {
    const rounds = Math.ceil(deadlineMs / 50);
    const script = `i=0; until ${condition}; do i=$((i+1)); [ $i -lt ${rounds} ] || exit 1; usleep 50000; done`;
    // The guest's clock may run slower than ours.
    const { code } = await this.try(script, 4 * deadlineMs);
    if (code !== 0) throw new Error(`in the guest, this did not become true within ${deadlineMs} ms: ${condition}`);
  }

  /** Restarts the kernel and waits until it takes scripts again. */
  async reboot(deadlineMs = 60_000): Promise<void> {
    this.#bootMark = this.child.mark();
    this.#send('reboot -f');
    await this.waitUntilReady(deadlineMs);
  }

  /** Waits for a boot that something else has started, such as a reset by QMP. */
  async waitForNextBoot(start: () => Promise<unknown>, deadlineMs = 60_000): Promise<void> {
    this.#bootMark = this.child.mark();
    await start();
    await this.waitUntilReady(deadlineMs);
  }

  /** Flushes, switches the guest off and waits until its process has ended. */
  async powerOff(deadlineMs = 30_000): Promise<void> {
    this.#send('sync; poweroff -f');
    await this.child.waitForExit(deadlineMs);
  }

  #send(script: string): void {
    this.child.stdin.write(`${++this.#lastId} ${Buffer.from(script).toString('base64')}\n`);
  }
}
