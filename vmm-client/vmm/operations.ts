/**
 * The operations on a VMM: one at a time, in the order of their calls. While a long one is under way (a snapshot, a
 * migration), others that change something are refused, and those that end everything end it first.
 */

import type { LongOperationName, VmProgress } from '../api/vmm-control.ts';
import { VmNotFoundError, VmStateError } from './errors.ts';
import { LongOperation } from './long-operation.ts';

export class Operations {
  #last: Promise<unknown> = Promise.resolve();
  /** The long operation that is under way or waits its turn. */
  #operation: LongOperation | undefined;
  /** The last one that began. */
  #begun: LongOperation | undefined;

  /** Of the long operation that is under way, or of the last one. @throws VmNotFoundError - there has been none */
  get progress(): VmProgress {
    if (this.#begun !== undefined) return this.#begun.progress;
    throw new VmNotFoundError('there has been no snapshot, restore or migration');
  }

  /** Tells a long operation that is under way to give up. */
  cancel(why: string): void {
    this.#operation?.cancel(why);
  }

  /** Kept when the migration has ended; it may have succeeded. @throws VmStateError - there is none */
  async cancelMigration(): Promise<void> {
    const operation = this.#operation;
    if (operation?.name !== 'send-migration' && operation?.name !== 'receive-migration') {
      throw new VmStateError('VM_STATE', 'no migration is under way');
    }
    operation.cancel('cancelled by vm.cancel-migration');
    await operation.ended;
  }

  /** Runs `operation` after those before it, whatever became of them. */
  inOrder<T>(operation: () => T | Promise<T>): Promise<T> {
    const result = this.#last.then(operation);
    this.#last = result.catch(() => undefined);
    return result;
  }

  /** Likewise, unless a long operation is under way: what changes the machine is not to wait for minutes. @throws VmStateError */
  async change<T>(what: string, operation: () => T | Promise<T>): Promise<T> {
    this.#checkFree(`the VM cannot ${what}`);
    return this.inOrder(operation);
  }

  /** Likewise, after a long operation that is under way has given up. */
  afterAll<T>(why: string, operation: () => T | Promise<T>): Promise<T> {
    this.#operation?.cancel(why);
    return this.inOrder(operation);
  }

  /** Runs a long operation in its turn, with what `check` makes of the request then. @throws VmStateError - there is one */
  async atLength<T>(
    name: LongOperationName,
    check: () => T | Promise<T>,
    run: (checked: T, operation: LongOperation) => Promise<void>,
  ): Promise<void> {
    this.#checkFree(`there can be no ${name}`);
    const operation = new LongOperation(name);
    this.#operation = operation;
    try {
      await this.inOrder(async () => {
        const checked = await check();
        operation.signal.throwIfAborted();
        this.#begun = operation;
        await run(checked, operation);
      });
      operation.end();
    } catch (error) {
      operation.end(error as Error);
      throw error;
    } finally {
      this.#operation = undefined;
    }
  }

  #checkFree(what: string): void {
    if (this.#operation === undefined) return;
    throw new VmStateError('VM_STATE', `${what}: a ${this.#operation.name} is under way`);
  }
}
