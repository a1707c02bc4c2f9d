/**
 * The VMM: at most one virtual machine, its state, and the operations on it, one at a time in the order of their calls.
 *
 *                 create            boot                 pause
 *     (nothing) ----------> Created -----> Running <--------------> Paused
 *         ^                   ^  ^           |  |      resume         |
 *         |      delete       |  +-----------+--|---------------------+   shutdown
 *         +-------------------+    shutdown     | the guest ends
 *                             Shutdown <--------+        (boot starts it again)
 *
 * A reset, by the guest or by `reboot`, keeps the machine and its devices and starts the kernel again.
 */

import type { VmCounters, VmInfo, VmmControl, VmmPing, VmState } from '../api/vmm-control.ts';
import { type CheckedConfig, checkConfig } from './check-config.ts';
import type { VmConfig } from './config.ts';
import { VmStateError } from './errors.ts';
import { Machine, type MachineEnvironment } from './machine.ts';

/** Why the VMM has nothing more to do. */
export type VmmEnd =
  | { readonly reason: 'vmm.shutdown' | 'guest shutdown' }
  | { readonly reason: 'error'; readonly error: Error };

export interface VmmOptions extends MachineEnvironment {
  readonly version: string;
  /** The VMM ends with its guest. Otherwise it waits for the next request. */
  readonly endsWithGuest: boolean;
}

export class Vmm implements VmmControl {
  /** Kept when the VMM has nothing more to do; the machine may still be there: `close`. */
  readonly ended: Promise<VmmEnd>;
  readonly #options: VmmOptions;
  #end: (end: VmmEnd) => void = () => undefined;
  #config: CheckedConfig | undefined;
  #machine: Machine | undefined;
  #state: VmState = 'Created';
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: VmmOptions) {
    this.#options = options;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  ping(): VmmPing {
    const { version } = this.#options;
    return { build_version: version, version, pid: process.pid, features: ['kvm'] };
  }

  /** @throws VmConfigError, VmStateError */
  create(config: VmConfig): Promise<void> {
    return this.#inOrder(() => {
      if (this.#config !== undefined) throw new VmStateError('VM_STATE', 'the VM has been created already');
      this.#config = checkConfig(config);
      this.#state = 'Created';
    });
  }

  boot(): Promise<void> {
    return this.#inOrder(async () => {
      const config = this.#created('boot');
      if (this.#machine !== undefined) throw new VmStateError('VM_STATE', 'the VM runs already');
      this.#machine = await Machine.boot(config, this.#options, () => this.#onGuestEnd());
      this.#state = 'Running';
    });
  }

  // The next two do not wait for an operation that is under way: they tell of what is.

  async info(): Promise<VmInfo> {
    const config = this.#created('be described');
    return { config, state: this.#state, memory_actual_size: config.memory.size };
  }

  async counters(): Promise<VmCounters> {
    return this.#running('be counted').counters();
  }

  pause(): Promise<void> {
    return this.#inOrder(async () => {
      const machine = this.#running('be paused');
      if (this.#state === 'Paused') throw new VmStateError('VM_STATE', 'the VM is paused already');
      await machine.pause();
      this.#state = 'Paused';
    });
  }

  resume(): Promise<void> {
    return this.#inOrder(() => {
      const machine = this.#running('be resumed');
      if (this.#state !== 'Paused') throw new VmStateError('VM_STATE', 'the VM is not paused');
      machine.resume();
      this.#state = 'Running';
    });
  }

  shutdown(): Promise<void> {
    return this.#inOrder(async () => {
      this.#running('be shut down');
      await this.#closeMachine('Created');
    });
  }

  reboot(): Promise<void> {
    return this.#inOrder(async () => {
      const machine = this.#running('be rebooted');
      await this.#reset(machine);
    });
  }

  delete(): Promise<void> {
    return this.#inOrder(async () => {
      await this.#closeMachine('Created');
      this.#config = undefined;
    });
  }

  async shutdownVmm(): Promise<void> {
    await this.delete();
    this.#end({ reason: 'vmm.shutdown' });
  }

  /** Lets a process end that does not wait for `close`: it would wait for the threads of vCPUs, for ever. */
  abandon(): void {
    this.#machine?.abandon();
  }

  /** Ends the machine, if there is one, and resolves when nothing of it is left. Idempotent. */
  close(): Promise<void> {
    return this.#inOrder(() => this.#closeMachine('Created'));
  }

  /** Runs `operation` after those before it, whatever became of them. */
  #inOrder<T>(operation: () => T | Promise<T>): Promise<T> {
    const result = this.#last.then(operation);
    this.#last = result.catch(() => undefined);
    return result;
  }

  #created(what: string): CheckedConfig {
    if (this.#config !== undefined) return this.#config;
    throw new VmStateError('VM_NOT_CREATED', `the VM cannot ${what}: it has not been created`);
  }

  #running(what: string): Machine {
    this.#created(what);
    if (this.#machine !== undefined) return this.#machine;
    throw new VmStateError('VM_STATE', `the VM cannot ${what}: it does not run`);
  }

  async #closeMachine(state: VmState): Promise<void> {
    const machine = this.#machine;
    this.#machine = undefined;
    this.#state = state;
    await machine?.close();
  }

  async #reset(machine: Machine): Promise<void> {
    try {
      await machine.reset();
      this.#state = 'Running';
    } catch (error) {
      await this.#closeMachine('Shutdown');
      throw error;
    }
  }

  /** The guest asked for something, or cannot go on. Told from inside the machine: what is done about it waits its turn. */
  #onGuestEnd(): void {
    const { log, endsWithGuest } = this.#options;
    void this.#inOrder(async () => {
      const machine = this.#machine;
      const end = machine?.ending;
      // Ended or reset by a request that was there first.
      if (machine === undefined || end === undefined) return;
      if (end === 'reset') {
        log.info('the guest resets the machine');
        await this.#reset(machine);
        return;
      }
      if (end === 'shutdown') log.info('the guest has shut down');
      else log.error(end.message);
      await this.#closeMachine('Shutdown');
      if (endsWithGuest) this.#end(end === 'shutdown' ? { reason: 'guest shutdown' } : { reason: 'error', error: end });
    }).catch((error: Error) => {
      log.error(`the machine cannot be started again: ${error.message}`);
      if (endsWithGuest) this.#end({ reason: 'error', error });
    });
  }
}
