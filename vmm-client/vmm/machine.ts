/**
 * A running virtual machine: RAM, buses, what is left of a PC, and virtio-mmio transports in front of back ends. It lives
 * from boot to shutdown; a reset replaces its processors (processors.ts) and keeps the rest, so that back ends stay
 * connected.
 */

import type { Readable, Writable } from 'node:stream';
import { KVM_CAP_READONLY_MEM, KVM_CAP_TSC_DEADLINE_TIMER, Kvm } from '../../protocol/sys/kvm.ts';
import { setMsrs } from '../../protocol/sys/kvm-msrs.ts';
import { changeSpecialRegisters, noteGuestPaused, setRegisters } from '../../protocol/sys/kvm-vcpu.ts';
import { loadKernel } from './boot/kernel.ts';
import { encodeRegs, patchSregs } from './boot/registers.ts';
import { START_MSRS } from './boot/start-state.ts';
import { Bus } from './bus.ts';
import { type CheckedConfig, wantsIommu } from './check-config.ts';
import { type CpuidEntry, decodeCpuid, encodeCpuid, filterCpuid, physicalAddressBits } from './cpuid.ts';
import type { VirtioIommu } from './devices/iommu/iommu.ts';
import type { VirtioMem } from './devices/mem/mem.ts';
import { checkPieces, hotplugRegion } from './devices/mem/region.ts';
import type { DeviceDescription } from './devices/open.ts';
import { VmConfigError } from './errors.ts';
import { GuestRam, type RamRange, ramRanges } from './guest-ram.ts';
import { IOMMU_SLOT, SERIAL_GSI } from './layout.ts';
import { PcDevices } from './legacy/pc-devices.ts';
import type { TapReader } from './legacy/serial-tap.ts';
import type { Log } from './log.ts';
import { MemoryPieces } from './memory-pieces.ts';
import type { MachineLayout } from './migration/offer.ts';
import type { PageRange } from './migration/page-set.ts';
import { RamAccess } from './migration/ram-access.ts';
import { Processors } from './processors.ts';
import type { MachineWatch } from './queues/machine-watch.ts';
import type { MachineReport } from './queues/queue-report.ts';
import { slotAddress } from './slots/filled-slot.ts';
import { type PlannedDevice, type PlannedLocal, placeDevices, planDevice, planDevices } from './slots/plan.ts';
import { type MachineParts, Standstill } from './state/machine-state.ts';
import type { DaemonSupervisor } from './supervisor.ts';
import type { VcpuEnd } from './vcpu.ts';
import { endVcpuWorkers } from './vcpu-worker.ts';
import { type MachineDevice, VirtioSlots } from './virtio-slots.ts';

/** What a machine needs of the process that it runs in. */
export interface MachineEnvironment {
  readonly log: Log;
  /** The other end of a serial port in mode Tty. */
  readonly input: Readable;
  readonly output: Writable;
  /** Starts the daemons of devices that were configured by a file or an interface. */
  readonly supervisor: Pick<DaemonSupervisor, 'start'>;
}

/** A machine that ran before, elsewhere or at another time. */
export interface MachineOrigin {
  readonly layout: MachineLayout;
  /** It still is elsewhere, with its devices: what only one process can have is taken when it goes on here. */
  readonly incoming: boolean;
}

export class Machine {
  readonly #config: CheckedConfig;
  readonly #environment: MachineEnvironment;
  readonly #onEnd: () => void;
  readonly #kvm: Kvm;
  readonly #cpuid: readonly CpuidEntry[];
  readonly #ports = new Bus();
  readonly #memory = new Bus();
  readonly #standstill = new Standstill(() => this.#parts);
  #pc: PcDevices | undefined;
  #ram: GuestRam | undefined;
  #pieces: MemoryPieces | undefined;
  #mem: VirtioMem | undefined;
  #slots: VirtioSlots | undefined;
  #iommu: VirtioIommu | undefined;
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
      machine.#start();
      return machine;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /**
   * Builds a machine as it was laid out elsewhere, or at another time. Its RAM is zero and its vCPUs are held: `memory` is
   * to be filled, then `restore` called, then `resume`. `onEnd` is as for `boot`.
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

  /** RAM, devices and held processors, which know nothing of each other yet. */
  async #build(origin: MachineOrigin | undefined): Promise<void> {
    // Threads take longest to start, so they come first.
    this.#createProcessors();
    const config = this.#config;
    const addressLimit = 2 ** physicalAddressBits(this.#cpuid);
    const ram = GuestRam.allocate(config.memory, addressLimit, piecesOf(config, origin, addressLimit));
    this.#ram = ram;
    const pieces = new MemoryPieces(ram, this.#environment.log);
    this.#pieces = pieces;
    this.#pc = new PcDevices(this.#ports, {
      ...this.#environment,
      serial: config.serial,
      isContinued: origin !== undefined,
      onReset: () => this.#guestEnds('reset'),
      onShutdown: () => this.#guestEnds('shutdown'),
    });
    // A guest that goes on keeps its IOMMU, also when the last device behind it is gone.
    const hasIommu = wantsIommu(config) || origin?.layout.slots.has('__iommu') === true;
    const local = hasIommu ? await this.#planIommu(ram) : [];
    if (config.memory.hotplug_size > 0)
      local.push(await this.#planMem(ram, pieces, addressLimit, origin !== undefined));
    const planned: readonly PlannedDevice[] = [...planDevices(config, origin?.incoming), ...local];
    this.#slots = await VirtioSlots.open(origin === undefined ? planned : placeDevices(planned, origin.layout.slots), {
      ...this.#environment,
      ram,
      bus: this.#memory,
      iommu: this.#iommu,
    });
    pieces.tell(this.#slots);
    // Of pieces that were there before the slots were, the devices hear from their drivers' start on, but for the IOMMU.
    for (const region of ram.regions) await this.#iommu?.memoryAdded(region);
  }

  get #parts(): MachineParts & { readonly ram: GuestRam } {
    const [processors, ram, slots, pc] = [this.#processors, this.#ram, this.#slots, this.#pc];
    if (processors === undefined || ram === undefined || slots === undefined || pc === undefined) {
      throw new Error('use of a machine that is not built');
    }
    return { processors, ram, slots, pc };
  }

  /** The end or the reset that the guest has asked for since its last start. */
  get ending(): VcpuEnd | undefined {
    return this.#ending;
  }

  /** Starts the kernel again, with devices as new. When it throws, what `boot` throws, the machine is to be closed. */
  async reset(): Promise<void> {
    const { slots, pc } = this.#parts;
    await this.#processors?.stop();
    this.#pieces?.disconnect();
    this.#createProcessors();
    await slots.reset();
    await this.#mem?.systemReset();
    pc.reset();
    this.#mayBeElsewhere = false;
    await this.#standstill.reset();
    this.#resets += 1;
    this.#start();
  }

  /** Resolves when no vCPU is in the guest. Back ends finish what they have. */
  async pause(): Promise<void> {
    this.#isPaused = true;
    await this.#processors?.hold();
  }

  /** Lets the guest run after `pause` or `restore`, with its devices where those stand still. Idempotent. */
  async resume(): Promise<void> {
    this.#isPaused = false;
    this.#mayBeElsewhere = false;
    await this.goOn();
    await this.stopDirtyLog();
    if (!this.#isUnannounced) return;
    this.#isUnannounced = false;
    void this.#slots?.announce();
  }

  /** All of RAM, for who saves or fills it. */
  get memory(): RamAccess {
    return new RamAccess(this.#parts.ram);
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

  /** Puts a machine that was only opened where another stood still. @throws VmError - it cannot; it is to be closed */
  async restore(state: unknown): Promise<void> {
    await this.#standstill.restore(state);
    this.#isUnannounced = true;
  }

  /** From now on what the guest and its devices write is noted. @throws VmError - a device cannot do that */
  startDirtyLog(): Promise<void> {
    return this.#standstill.startDirtyLog();
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
    await this.#mem?.holdStill(on);
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

  /** What is in the slots, in their order. One that the guest has ejected is not. */
  devices(): readonly MachineDevice[] {
    return this.#slots?.devices() ?? [];
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
    if (this.#mem !== undefined) return this.#mem.resize(bytes - size);
    if (bytes !== size) throw new VmConfigError(`memory: hotplug_size is 0, so that it stays ${size} bytes`);
  }

  /** Bytes of RAM that the guest has now. */
  get memoryBytes(): number {
    return this.#config.memory.size + (this.#mem?.pluggedBytes ?? 0);
  }

  /** By vCPU and device. Those of vCPUs count from the last reset. */
  counters(): Record<string, Record<string, number>> {
    return { vm: { resets: this.#resets }, ...this.#processors?.counters(), ...this.#slots?.counters() };
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
    this.#pieces?.disconnect();
    await endVcpuWorkers();
    await this.#slots?.close();
    this.#slots = undefined;
    this.#pc?.close();
    this.#ram?.close();
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

  async #planIommu(ram: GuestRam): Promise<PlannedLocal[]> {
    const { planIommu } = await import('./devices/iommu/plan.ts');
    const { iommu, planned } = planIommu(ram, this.#environment.log);
    this.#iommu = iommu;
    return [planned];
  }

  async #planMem(
    ram: GuestRam,
    pieces: MemoryPieces,
    addressLimit: number,
    isContinued: boolean,
  ): Promise<PlannedLocal> {
    const { planMem } = await import('./devices/mem/plan.ts');
    const { memory: config } = this.#config;
    const { log } = this.#environment;
    const { mem, planned } = planMem({ ram, pieces, config, addressLimit, isContinued, log });
    this.#mem = mem;
    return planned;
  }

  /** Shows RAM and devices to new processors. */
  #connect(): void {
    const { processors, slots, pc } = this.#parts;
    const { vm } = processors;
    this.#pieces?.connect(vm);
    vm.addIrqFd(pc.serialInterrupt.fd, SERIAL_GSI);
    slots.connect(vm, this.#kvm.extension(KVM_CAP_READONLY_MEM) > 0);
  }

  /** Gives new processors memory, devices and a kernel, and lets them run. */
  #start(): void {
    this.#connect();
    this.#isPaused = false;
    const { processors, ram, slots, pc } = this.#parts;
    const boot = processors.vcpus[0];
    if (boot === undefined) throw new Error('start of a machine without processors');
    const { payload, cpus } = this.#config;
    const cpuCount = cpus.boot_vcpus;
    const tscDeadlineTimer = this.#kvm.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    processors.setCpuid((apicId) =>
      encodeCpuid(filterCpuid(this.#cpuid, { apicId, cpuCount, hide: cpus.hide, tscDeadlineTimer })),
    );
    const state = loadKernel({
      memory: ram.memory,
      ranges: ram.ranges,
      kernel: payload.kernel,
      initramfs: payload.initramfs,
      cmdline: payload.cmdline ?? '',
      cpuCount,
      hasSerial: pc.serial !== undefined,
      viot:
        this.#iommu === undefined ? undefined : { iommu: slotAddress(IOMMU_SLOT), endpoints: slots.listEndpoints() },
    });
    for (const { fd } of processors.vcpus) setMsrs(fd, START_MSRS);
    setRegisters(boot.fd, encodeRegs(state));
    changeSpecialRegisters(boot.fd, (current) => patchSregs(current, state));
    processors.run();
  }
}

/** Where memory was that had been plugged into a machine. @throws VmError - there can be none here */
function piecesOf(
  { memory }: CheckedConfig,
  origin: MachineOrigin | undefined,
  addressLimit: number,
): readonly RamRange[] {
  if (origin === undefined) return [];
  const booted = ramRanges(memory.size);
  const ranges = origin.layout.ranges.map(({ guestAddress, length }) => ({ start: guestAddress, length }));
  const added = ranges.filter(({ start }) => !booted.some((range) => range.start === start));
  return checkPieces(added, memory.hotplug_size > 0 ? hotplugRegion(memory, addressLimit) : undefined);
}
