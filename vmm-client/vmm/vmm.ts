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
 * A reset, by the guest or by `reboot`, keeps the machine and its devices and starts the kernel again. A guest that was
 * paused in the middle of its reset is paused afterwards, one that was rebooted runs. `restore` and
 * `receiveMigration` lead from nothing to Paused or Running, a migration that succeeds from there to nothing. While one of
 * these long operations is under way, nothing else changes the machine: what would is refused, and what ends it ends the
 * operation first.
 */

import type {
  AddedDevice,
  ConsoleStream,
  ReceiveMigrationData,
  RestoreConfig,
  RestoredDevice,
  SendMigrationData,
  VmConsoleInput,
  VmCounters,
  VmInfo,
  VmmControl,
  VmmPing,
  VmProgress,
  VmRemoveDevice,
  VmResize,
  VmResizeDisk,
  VmSnapshotConfig,
} from '../api/vmm-control.ts';
import type { NewDevice } from './change-config.ts';
import { type CheckedConfig, checkConfig } from './check-config.ts';
import type { DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig } from './config.ts';
import { DEFAULTS } from './config-limits.ts';
import { CurrentVm } from './current-vm.ts';
import { VmConfigError, VmStateError } from './errors.ts';
import { Machine, type MachineEnvironment } from './machine.ts';
import { Operations } from './operations.ts';
import type { MachineReport } from './queues/queue-report.ts';
import { dropDevices } from './slots/plan.ts';

/** Why the VMM has nothing more to do. */
export type VmmEnd =
  | { readonly reason: 'vmm.shutdown' | 'guest shutdown' | 'migrated' }
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
  readonly #vm = new CurrentVm();
  readonly #operations = new Operations();

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
    return this.#operations.change('be created', () => {
      this.#vm.needNothing('created');
      this.#vm.config = checkConfig(config);
      this.#vm.state = 'Created';
    });
  }

  boot(): Promise<void> {
    return this.#operations.change('boot', async () => {
      const config = this.#vm.needCreated('boot');
      if (this.#vm.machine !== undefined) throw new VmStateError('VM_STATE', 'the VM runs already');
      this.#vm.machine = await Machine.boot(config, this.#options, () => this.#onGuestEnd());
      this.#vm.state = 'Running';
    });
  }

  // The next ones do not wait for an operation that is under way: they tell of what is.

  async info(): Promise<VmInfo> {
    return this.#vm.describe();
  }

  async counters(): Promise<VmCounters> {
    return this.#vm.needRunning('be counted').counters();
  }

  async queues(): Promise<MachineReport> {
    return this.#vm.needRunning('be watched').queues();
  }

  async console(): Promise<ConsoleStream> {
    return this.#vm.needRunning('be listened to').console();
  }

  async consoleInput({ text }: VmConsoleInput): Promise<void> {
    this.#vm.needRunning('be typed at').consoleInput(text);
  }

  progress(): VmProgress {
    return this.#operations.progress;
  }

  pause(): Promise<void> {
    return this.#operations.change('be paused', async () => {
      const machine = this.#vm.needRunning('be paused');
      if (this.#vm.state === 'Paused') throw new VmStateError('VM_STATE', 'the VM is paused already');
      await machine.pause();
      this.#vm.state = 'Paused';
    });
  }

  resume(): Promise<void> {
    return this.#operations.change('be resumed', async () => {
      const machine = this.#vm.needPaused('be resumed');
      await machine.resume();
      this.#vm.state = 'Running';
    });
  }

  readonly addDisk = (config: DiskConfig) => this.#addDevice({ kind: 'disk', config });
  readonly addNet = (config: NetConfig) => this.#addDevice({ kind: 'net', config });
  readonly addFs = (config: FsConfig) => this.#addDevice({ kind: 'fs', config });
  readonly addVsock = (config: VsockConfig) => this.#addDevice({ kind: 'vsock', config });

  /** @throws VmNotFoundError */
  removeDevice({ id }: VmRemoveDevice): Promise<void> {
    return this.#operations.change('lose a device', async () => {
      const { findDevice } = await import('./change-config.ts');
      const config = this.#vm.needCreated('lose a device');
      findDevice(config, id);
      if (this.#vm.machine !== undefined) await this.#vm.machine.removeDevice(id);
      else this.#vm.config = dropDevices(config, (other) => other === id);
    });
  }

  /** @throws VmConfigError */
  resize(request: VmResize): Promise<void> {
    return this.#operations.change('be resized', async () => {
      const { resizeMemory } = await import('./change-config.ts');
      const config = resizeMemory(this.#vm.needCreated('be resized'), request);
      const { size, hotplugged_size } = config.memory;
      if (request.desired_ram !== undefined) await this.#vm.machine?.resizeMemory(size + hotplugged_size);
      this.#vm.config = config;
    });
  }

  /** @throws VmNotFoundError, VmConfigError */
  resizeDisk(request: VmResizeDisk): Promise<void> {
    return this.#operations.change('be resized', async () => {
      const { checkDiskResize } = await import('./change-config.ts');
      checkDiskResize(this.#vm.needCreated('be resized'), request);
      await this.#vm.needRunning('be resized').resizeDisk(request.id, request.desired_size);
    });
  }

  snapshot({ destination_url }: VmSnapshotConfig): Promise<void> {
    const check = async () => {
      const { parseFileUrl } = await import('./urls.ts');
      return {
        machine: this.#vm.needPaused('be saved'),
        config: this.#vm.needCreated('be saved'),
        directory: parseFileUrl('destination_url', destination_url),
      };
    };
    return this.#operations.atLength('snapshot', check, async ({ machine, config, directory }, operation) => {
      const { saveSnapshot } = await import('./migration/snapshot.ts');
      await saveSnapshot(machine, config, directory, operation);
    });
  }

  restore({ source_url, resume = false, devices = [] }: RestoreConfig): Promise<void> {
    const check = async () => {
      const { parseFileUrl } = await import('./urls.ts');
      this.#vm.needNothing('restored');
      return parseFileUrl('source_url', source_url);
    };
    return this.#operations.atLength('restore', check, async (directory, operation) => {
      const { restoreSnapshot } = await import('./migration/snapshot.ts');
      const { machine, config } = await restoreSnapshot(directory, ...(await this.#arrival(devices)), operation);
      this.#vm.takeOver(machine, config, 'Paused');
      if (!resume) return;
      await machine.resume();
      this.#vm.state = 'Running';
    });
  }

  sendMigration(request: SendMigrationData): Promise<void> {
    const { destination_url, downtime_ms, timeout_s, local = false, auto_converge: autoConverge = true } = request;
    const check = async () => {
      const { parsePeerUrl } = await import('./urls.ts');
      const to = parsePeerUrl('destination_url', destination_url);
      if (local && to.kind !== 'unix') {
        throw new VmConfigError(
          `local: memory is handed over by unix:PATH alone, and destination_url is ${destination_url}`,
        );
      }
      return {
        machine: this.#vm.needRunning('migrate'),
        config: this.#vm.needCreated('migrate'),
        to,
      };
    };
    return this.#operations.atLength('send-migration', check, async ({ machine, config, to }, operation) => {
      const { sendMachine } = await import('./migration/send.ts');
      const { UndecidedError } = await import('./migration/undecided.ts');
      const downtimeMs = downtime_ms ?? DEFAULTS.downtimeMs;
      const timeoutMs = timeout_s === undefined ? undefined : timeout_s * 1000;
      const paused = this.#vm.state === 'Paused';
      const options = { downtimeMs, timeoutMs, autoConverge, isMemoryShared: local, paused };
      try {
        await sendMachine(machine, config, to, options, operation);
      } catch (error) {
        // Nobody here knows where the guest is: somebody has to say that it is here, by vm.resume.
        if (error instanceof UndecidedError) {
          machine.keepSuspended();
          this.#vm.state = 'Paused';
        }
        throw error;
      }
      this.#options.log.info('the guest has migrated away');
      await this.#vm.closeMachine('Created');
      this.#vm.config = undefined;
      if (this.#options.endsWithGuest) this.#end({ reason: 'migrated' });
    });
  }

  receiveMigration({ receiver_url, devices = [] }: ReceiveMigrationData): Promise<void> {
    const check = async () => {
      const { parsePeerUrl } = await import('./urls.ts');
      this.#vm.needNothing('received');
      return parsePeerUrl('receiver_url', receiver_url);
    };
    return this.#operations.atLength('receive-migration', check, async (from, operation) => {
      const { receiveMachine } = await import('./migration/receive.ts');
      const { machine, config, running } = await receiveMachine(from, ...(await this.#arrival(devices)), operation);
      this.#vm.takeOver(machine, config, running ? 'Running' : 'Paused');
    });
  }

  cancelMigration(): Promise<void> {
    return this.#operations.cancelMigration();
  }

  shutdown(): Promise<void> {
    const shutdown = async () => {
      this.#vm.needRunning('be shut down');
      await this.#vm.closeMachine('Created');
    };
    // Where nothing runs yet, it is not the moment to end what is being received.
    if (this.#vm.machine === undefined) return this.#operations.change('be shut down', shutdown);
    return this.#operations.afterAll('the VM is shut down', shutdown);
  }

  pressPowerButton(): Promise<void> {
    return this.#operations.change('be asked to shut down', () => {
      this.#vm.needRunning('be asked to shut down').pressPowerButton();
    });
  }

  reboot(): Promise<void> {
    return this.#operations.change('be rebooted', async () => {
      const machine = this.#vm.needRunning('be rebooted');
      await this.#reset(machine, 'Running');
    });
  }

  delete(): Promise<void> {
    return this.#operations.afterAll('the VM is deleted', async () => {
      await this.#vm.closeMachine('Created');
      this.#vm.config = undefined;
    });
  }

  async shutdownVmm(): Promise<void> {
    await this.delete();
    this.#end({ reason: 'vmm.shutdown' });
  }

  /** Tells a long operation that is under way to give up, as the VMM ends. */
  cancel(): void {
    this.#operations.cancel('the VMM ends');
  }

  /** Lets a process end that does not wait for `close`: it would wait for the threads of vCPUs, for ever. */
  abandon(): void {
    this.#vm.machine?.abandon();
  }

  /** Ends the machine, if there is one, and resolves when nothing of it is left. Idempotent. */
  close(): Promise<void> {
    return this.#operations.afterAll('the VMM ends', () => this.#vm.closeMachine('Created'));
  }

  #addDevice(device: NewDevice): Promise<AddedDevice | undefined> {
    return this.#operations.change('get a device', async () => {
      const { addDevice } = await import('./change-config.ts');
      const { config, added } = addDevice(this.#vm.needCreated('get a device'), device);
      const machine = this.#vm.machine;
      if (added.config.iommu && machine !== undefined && !machine.devices().some(({ kind }) => kind === 'iommu')) {
        throw new VmConfigError('iommu: the VM has no virtio-iommu; it gets one at vm.boot when a device wants it');
      }
      const place = await machine?.addDevice(added);
      this.#vm.config = config;
      return place;
    });
  }

  /** What a machine that comes from elsewhere is made with: its configuration's changes, surroundings, whom it tells. */
  async #arrival(devices: readonly RestoredDevice[]) {
    const { addressDevices } = await import('./change-config.ts');
    const adjust = (config: CheckedConfig) => addressDevices(config, devices);
    return [adjust, this.#options, () => this.#onGuestEnd()] as const;
  }

  async #reset(machine: Machine, state: 'Running' | 'Paused'): Promise<void> {
    try {
      await machine.reset(state === 'Paused');
      this.#vm.state = state;
    } catch (error) {
      await this.#vm.closeMachine('Shutdown');
      throw error;
    }
  }

  /** The guest asked for something, or cannot go on. Told from inside the machine: what is done about it waits its turn. */
  #onGuestEnd(): void {
    const { log, endsWithGuest } = this.#options;
    // Of this machine: one that is being received is not ours yet.
    if (this.#vm.machine !== undefined) this.#operations.cancel('the guest has ended or reset the machine');
    void this.#operations
      .inOrder(async () => {
        const machine = this.#vm.machine;
        const end = machine?.ending;
        // Ended or reset by a request that was there first.
        if (machine === undefined || end === undefined) return;
        if (end === 'reset') {
          log.info('the guest resets the machine');
          // It may have been paused meanwhile: then it is its first instruction that waits.
          await this.#reset(machine, this.#vm.state === 'Paused' ? 'Paused' : 'Running');
          return;
        }
        if (end === 'shutdown') log.info('the guest has shut down');
        else log.error(end.message);
        await this.#vm.closeMachine('Shutdown');
        if (endsWithGuest)
          this.#end(end === 'shutdown' ? { reason: 'guest shutdown' } : { reason: 'error', error: end });
      })
      .catch((error: Error) => {
        log.error(`the machine cannot be started again: ${error.message}`);
        if (endsWithGuest) this.#end({ reason: 'error', error });
      });
  }
}
