/**
 * A running virtual machine: RAM, buses, what is left of a PC, and virtio-mmio transports in front of back ends. It lives
 * from boot to shutdown; a reset replaces its processors (processors.ts) and keeps the rest, so that back ends stay
 * connected.
 */

import { KVM_CAP_READONLY_MEM, Kvm } from '../../protocol/sys/kvm.ts';
import { noteGuestPaused } from '../../protocol/sys/kvm-vcpu.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { startKernel } from './boot/start-kernel.ts';
import { Bus } from './bus.ts';
import type { CheckedConfig } from './check-config.ts';
import { type CpuidEntry, decodeCpuid, physicalAddressBits } from './cpuid.ts';
import type { DeviceDescription } from './devices/open.ts';
import { VmConfigError } from './errors.ts';
import { buildHardware, type Hardware, type MachineEnvironment, type MachineOrigin } from './hardware.ts';
import { SERIAL_GSI } from './layout.ts';
import type { TapReader } from './legacy/serial-tap.ts';
import type { MachineLayout } from './migration/offer.ts';
import type { PageRange } from './migration/page-set.ts';
import { RamAccess } from './migration/ram-access.ts';
import { Processors } from './processors.ts';
import type { MachineWatch } from './queues/machine-watch.ts';
import type { MachineReport } from './queues/queue-report.ts';
import { planDevice } from './slots/plan.ts';
import { type MachineParts, Standstill } from './state/machine-state.ts';
import type { VcpuEnd } from './vcpu.ts';
import { endVcpuWorkers } from './vcpu-worker.ts';
import type { MachineDevice } from './virtio-slots.ts';

export type { MachineEnvironment, MachineOrigin } from './hardware.ts';

export class Machine {
  readonly #config: CheckedConfig;
  readonly #environment: MachineEnvironment;
  readonly #onEnd: () => void;
  readonly #kvm: Kvm;
  readonly #cpuid: readonly CpuidEntry[];
  readonly #ports = new Bus();
  readonly #memory = new Bus();
  readonly #standstill = new Standstill(() => this.#parts);
  #hardware: Hardware | undefined;
  #processors: Processors | undefined;
  #watch: MachineWatch | undefined;
  #isPaused = false;
  /** Nobody knows whether the guest runs elsewhere. */
  #mayBeElsewhere = false;
  /** It went on where another was, which the world does not know yet. */
  #isUnannounced = false;
  #ending: VcpuEnd | undefined;
  #resets = 0;

  private constructor(config: CheckedConfig, environment: MachineEnvironment, onEnd: () => void) {
    this.#config = config;
    this.#environment = environment;
    this.#onEnd = onEnd;
    this.#kvm = Kvm.open();
    try {
      this.#cpuid = decodeCpuid(this.#kvm.supportedCpuid());
    } catch (error) {
      this.#kvm.close();
      throw error;
    }
  }

  /**
   * Builds the machine that `config` describes and starts the guest. `onEnd` is called once a start, when the guest ends
   * or resets itself or cannot go on (`ending` says which); `reset` or `close` is the answer.
   * @throws VmConfigError - what was configured cannot be had here
   * @throws SysError, VmError - the host or a back end refuses
   */
  static async boot(config: CheckedConfig, environment: MachineEnvironment, onEnd: () => void): Promise<Machine> {
    const machine = new Machine(config, environment, onEnd);
    try {
      await machine.#build(undefined);
      machine.#start(false);
      return machine;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /**
   * Builds a machine as it was laid out elsewhere, or at another time. Its RAM is zero, or the one that it is given, and
   * its vCPUs are held: `memory` is to be filled, then `restoreProcessors` and `restoreDevices` called, then `resume`. `onEnd` is as for `boot`.
   * @throws VmConfigError, SysError, VmError - as `boot`
   */
  static async open(
    config: CheckedConfig,
    origin: MachineOrigin,
    environment: MachineEnvironment,
    onEnd: () => void,
  ): Promise<Machine> {
    const machine = new Machine(config, environment, onEnd);
    try {
      await machine.#build(origin);
      machine.#connect();
      machine.#isPaused = true;
      return machine;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /** Devices, RAM and held processors, which know nothing of each other yet. */
  async #build(origin: MachineOrigin | undefined): Promise<void> {
    // Threads take longest to start, so they come first.
    this.#createProcessors();
    this.#hardware = await buildHardware(this.#config, origin, {
      ...this.#environment,
      addressLimit: 2 ** physicalAddressBits(this.#cpuid),
      ports: this.#ports,
      memory: this.#memory,
      onReset: () => this.#guestEnds('reset'),
      onShutdown: () => this.#guestEnds('shutdown'),
    });
  }

  get #parts(): MachineParts & Hardware {
    const [processors, hardware] = [this.#processors, this.#hardware];
    if (processors === undefined || hardware === undefined) throw new Error('use of a machine that is not built');
    return { processors, ...hardware };
  }

  /** The end or the reset that the guest has asked for since its last start. */
  get ending(): VcpuEnd | undefined {
    return this.#ending;
  }

  /**
   * Starts the kernel again, with devices as new; the guest runs at once or, `paused`, after `resume`. When it throws, what
   * `boot` throws, the machine is to be closed.
   */
  async reset(paused = false): Promise<void> {
    const { processors, slots, pc, pieces, mem } = this.#parts;
    await processors.stop();
    pieces.disconnect();
    this.#createProcessors();
    await slots.reset();
    await mem?.systemReset();
    pc.reset();
    this.#mayBeElsewhere = false;
    await this.#standstill.reset();
    this.#resets += 1;
    this.#start(paused);
  }

  /** Resolves when no vCPU is in the guest. Back ends finish what they have. */
  async pause(): Promise<void> {
    this.#isPaused = true;
    await this.#processors?.hold();
  }

  /** Has a guest that runs do so for less of the time: held for `percent` of it, or with 0 as before. */
  async throttle(percent: number): Promise<void> {
    if (!this.#isPaused) await this.#processors?.throttle(percent);
  }

  /** Lets the guest run after `pause` or `restore`, with its devices where those stand still. Idempotent. */
  async resume(): Promise<void> {
    this.#isPaused = false;
    this.#mayBeElsewhere = false;
    await this.goOn();
    await this.stopDirtyLog();
    if (!this.#isUnannounced) return;
    this.#isUnannounced = false;
    void this.#hardware?.slots.announce();
  }

  /** All of RAM, for who saves or fills it. */
  get memory(): RamAccess {
    return new RamAccess(this.#parts.ram);
  }

  /** Duplicates of the descriptors of RAM, which are the caller's, in the order of `layout`. */
  duplicateMemory(): OwnedFd[] {
    return this.#parts.ram.regions.map(({ memfd }) => memfd.duplicate());
  }

  /** What a boot of the configuration would not lay out again. */
  get layout(): MachineLayout {
    return { ranges: this.memory.ranges, slots: new Map(this.devices().map(({ id, slot }) => [id, slot])) };
  }

  /**
   * Holds the vCPUs and suspends the devices: nothing touches guest memory any more, until `goOn` or `resume`.
   * @throws VmError - a vCPU has ended, or a device cannot; `goOn` is to be called
   */
  suspend(): Promise<void> {
    return this.#standstill.suspend();
  }

  /** Of a suspended machine, as plain data. */
  state(): Promise<unknown> {
    return this.#standstill.state();
  }

  /** Of a suspended machine whose guest may run elsewhere by now: neither it nor its devices go on before `resume`. */
  keepSuspended(): void {
    this.#isPaused = true;
    this.#mayBeElsewhere = true;
  }

  /** Goes on after `suspend`: the devices, and the guest where it was not paused. */
  async goOn(): Promise<void> {
    if (this.#mayBeElsewhere) return;
    await this.#standstill.resume();
    if (this.#isPaused) return;
    for (const { fd } of this.#processors?.vcpus ?? []) noteGuestPaused(fd);
    this.#processors?.run();
  }

  /** Puts the processors of a machine that was only opened where others stood still. @throws VmError - it is to be closed */
  restoreProcessors(state: unknown): Promise<void> {
    return this.#standstill.restoreProcessors(state);
  }

  /** Lets its devices go on, from here on with the memory. After the processors. @throws VmError - it is to be closed */
  async restoreDevices(state: unknown): Promise<void> {
    await this.#standstill.restoreDevices(state);
    this.#isUnannounced = true;
  }

  /** From now on what the devices write is noted, and what the guest writes if wanted. @throws VmError - a device cannot */
  startDirtyLog(ofGuest: boolean): Promise<void> {
    return this.#standstill.startDirtyLog(ofGuest);
  }

  /** What was written since `startDirtyLog` or the last call. */
  takeDirty(): readonly PageRange[] {
    return this.#standstill.takeDirty();
  }

  /** Idempotent. */
  stopDirtyLog(): Promise<void> {
    return this.#standstill.stopDirtyLog();
  }

  /** While it is on no memory comes or goes, so that `layout` stays as it is. */
  async holdMemory(on: boolean): Promise<void> {
    await this.#hardware?.mem?.holdStill(on);
  }

  /**
   * Opens a device and puts it into a free slot, where the guest finds it.
   * @throws VmConflictError, VmConfigError, VmError, SysError - see `VirtioSlots.add`
   */
  addDevice(device: DeviceDescription): Promise<{ readonly id: string; readonly slot: number }> {
    return this.#parts.slots.add(planDevice(device));
  }

  /** Asks the guest to let go of a device. @throws VmNotFoundError, VmConfigError - see `VirtioSlots.requestRemoval` */
  async removeDevice(id: string): Promise<void> {
    this.#parts.slots.requestRemoval(id);
  }

  /** Asks the guest to shut down. It does, or does not. */
  pressPowerButton(): void {
    this.#parts.slots.pressPowerButton();
  }

  /** What is in the slots, in their order. One that the guest has ejected is not. */
  devices(): readonly MachineDevice[] {
    return this.#hardware?.slots.devices() ?? [];
  }

  /** @throws VmNotFoundError, VmConfigError, VmError - see `VirtioSlots.resizeDisk` */
  resizeDisk(id: string, bytes: number): Promise<void> {
    return this.#parts.slots.resizeDisk(id, bytes);
  }

  /**
   * Asks the guest to have so many bytes of RAM altogether, from `memory.size` to `hotplug_size` more. Resolves when it has
   * been asked: it takes and gives back blocks as it can.
   * @throws VmConfigError - the machine has no memory device @throws VmError - there is no such memory
   */
  async resizeMemory(bytes: number): Promise<void> {
    const { size } = this.#config.memory;
    const { mem } = this.#parts;
    if (mem !== undefined) return mem.resize(bytes - size);
    if (bytes !== size) throw new VmConfigError(`memory: hotplug_size is 0, so that it stays ${size} bytes`);
  }

  /** Bytes of RAM that the guest has now. */
  get memoryBytes(): number {
    return this.#config.memory.size + (this.#hardware?.mem?.pluggedBytes ?? 0);
  }

  /** By vCPU and device. Those of vCPUs count from the last reset. */
  counters(): Record<string, Record<string, number>> {
    return { vm: { resets: this.#resets }, ...this.#processors?.counters(), ...this.#hardware?.slots.counters() };
  }

  /** What can be seen of queues and vCPUs. The first call starts a watch, which ends some seconds after the last. */
  async queues(): Promise<MachineReport> {
    const { MachineWatch } = await import('./queues/machine-watch.ts');
    this.#watch ??= new MachineWatch(() => this.#parts);
    return this.#watch.report();
  }

  /** See `PcDevices.listenIn`. */
  console(): TapReader {
    return this.#parts.pc.listenIn();
  }

  /** See `PcDevices.type`. */
  consoleInput(text: string): void {
    this.#parts.pc.type(text);
  }

  /** Makes the vCPUs end and waits for nothing, for a process that ends: it would wait for them for ever. */
  abandon(): void {
    this.#processors?.abandon();
  }

  /** Ends everything and resolves when nothing of it is left. Idempotent. */
  async close(): Promise<void> {
    this.#watch?.close();
    await this.#processors?.stop();
    this.#hardware?.pieces.disconnect();
    await endVcpuWorkers();
    await this.#hardware?.slots.close();
    this.#hardware?.pc.close();
    this.#hardware?.ram.close();
    this.#hardware = undefined;
    this.#kvm.close();
  }

  #createProcessors(): void {
    this.#ending = undefined;
    const processors: Processors = new Processors(
      this.#kvm,
      this.#config.cpus.boot_vcpus,
      { ports: this.#ports, memory: this.#memory },
      (end) => {
        // Those of before a reset have nothing to say any more.
        if (this.#processors === processors) this.#guestEnds(end);
      },
    );
    this.#processors = processors;
  }

  #guestEnds(end: VcpuEnd): void {
    if (this.#ending !== undefined) return;
    this.#ending = end;
    this.#onEnd();
  }

  /** Shows RAM and devices to new processors. */
  #connect(): void {
    const { processors, slots, pc, pieces } = this.#parts;
    const { vm } = processors;
    pieces.connect(vm);
    vm.addIrqFd(pc.serialInterrupt.fd, SERIAL_GSI);
    slots.connect(vm, this.#kvm.extension(KVM_CAP_READONLY_MEM) > 0);
  }

  /** Gives new processors memory, devices and a kernel, and lets them run where the guest is not paused. */
  #start(paused: boolean): void {
    const { processors } = this.#parts;
    this.#connect();
    this.#isPaused = paused;
    startKernel(this.#kvm, this.#cpuid, this.#config, processors, this.#parts);
    if (!paused) processors.run();
  }
}
