/**
 * A running virtual machine: RAM, buses, what is left of a PC, and virtio-mmio transports in front of back ends. It lives
 * from boot to shutdown; a reset replaces its processors (processors.ts) and keeps the rest, so that back ends stay
 * connected.
 */

import { createWriteStream, openSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { KVM_CAP_READONLY_MEM, KVM_CAP_TSC_DEADLINE_TIMER, Kvm } from '../../protocol/sys/kvm.ts';
import { changeSpecialRegisters, noteGuestPaused, setMsrs, setRegisters } from '../../protocol/sys/kvm-vcpu.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { loadKernel } from './boot/kernel.ts';
import { encodeRegs, patchSregs } from './boot/registers.ts';
import { START_MSRS } from './boot/start-state.ts';
import { Bus } from './bus.ts';
import type { CheckedConfig } from './check-config.ts';
import { type CpuidEntry, decodeCpuid, encodeCpuid, filterCpuid, physicalAddressBits } from './cpuid.ts';
import { VmConfigError } from './errors.ts';
import { GuestRam } from './guest-ram.ts';
import {
  ACPI_POWER_PORT,
  ACPI_POWER_PORT_COUNT,
  I8042_PORT,
  I8042_PORT_COUNT,
  SERIAL_GSI,
  SERIAL_PORT,
  SERIAL_PORT_COUNT,
} from './layout.ts';
import { AcpiPower } from './legacy/acpi-power.ts';
import { I8042 } from './legacy/i8042.ts';
import { Serial } from './legacy/serial.ts';
import { feedSerial, SerialOutput } from './legacy/serial-stream.ts';
import type { Log } from './log.ts';
import { Processors } from './processors.ts';
import type { DaemonSupervisor } from './supervisor.ts';
import type { VcpuEnd } from './vcpu.ts';
import { endVcpuWorkers } from './vcpu-worker.ts';
import { VirtioSlots } from './virtio-slots.ts';

/** What a machine needs of the process that it runs in. */
export interface MachineEnvironment {
  readonly log: Log;
  /** The other end of a serial port in mode Tty. */
  readonly input: Readable;
  readonly output: Writable;
  /** Starts the daemons of devices that were configured by a file or an interface. */
  readonly supervisor: Pick<DaemonSupervisor, 'start'>;
}

export class Machine {
  readonly #config: CheckedConfig;
  readonly #environment: MachineEnvironment;
  readonly #onEnd: () => void;
  readonly #kvm: Kvm;
  readonly #cpuid: readonly CpuidEntry[];
  readonly #ports = new Bus();
  readonly #memory = new Bus();
  readonly #serialInterrupt: OwnedFd;
  readonly #closers: (() => void)[] = [];
  #ram: GuestRam | undefined;
  #slots: VirtioSlots | undefined;
  #processors: Processors | undefined;
  #serial: Serial | undefined;
  #ending: VcpuEnd | undefined;
  #resets = 0;

  private constructor(config: CheckedConfig, environment: MachineEnvironment, onEnd: () => void) {
    this.#config = config;
    this.#environment = environment;
    this.#onEnd = onEnd;
    this.#kvm = Kvm.open();
    try {
      this.#cpuid = decodeCpuid(this.#kvm.supportedCpuid());
      this.#serialInterrupt = createEventFd();
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
      // Threads take longest to start, so they come first.
      machine.#createProcessors();
      machine.#ram = GuestRam.allocate(config.memory, 2 ** physicalAddressBits(machine.#cpuid));
      machine.#addPcDevices();
      machine.#slots = await VirtioSlots.open(config, machine.#ram, machine.#memory, environment);
      machine.#start(machine.#ram, machine.#slots);
      return machine;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /** The end or the reset that the guest has asked for since its last start. */
  get ending(): VcpuEnd | undefined {
    return this.#ending;
  }

  /** Starts the kernel again, with devices as new. When it throws, what `boot` throws, the machine is to be closed. */
  async reset(): Promise<void> {
    const [ram, slots] = [this.#ram, this.#slots];
    if (ram === undefined || slots === undefined) throw new Error('reset of a machine that was not built');
    await this.#processors?.stop();
    this.#createProcessors();
    await slots.reset();
    this.#serial?.reset();
    this.#resets += 1;
    this.#start(ram, slots);
  }

  /** Resolves when no vCPU is in the guest. Back ends finish what they have. */
  async pause(): Promise<void> {
    await this.#processors?.hold();
  }

  resume(): void {
    for (const { fd } of this.#processors?.vcpus ?? []) noteGuestPaused(fd);
    this.#processors?.run();
  }

  /** By vCPU and device. Those of vCPUs count from the last reset. */
  counters(): Record<string, Record<string, number>> {
    return { vm: { resets: this.#resets }, ...this.#processors?.counters(), ...this.#slots?.counters() };
  }

  /** Makes the vCPUs end and waits for nothing, for a process that ends: it would wait for them for ever. */
  abandon(): void {
    this.#processors?.abandon();
  }

  /** Ends everything and resolves when nothing of it is left. Idempotent. */
  async close(): Promise<void> {
    await this.#processors?.stop();
    await endVcpuWorkers();
    await this.#slots?.close();
    this.#slots = undefined;
    for (const close of this.#closers.splice(0)) close();
    this.#ram?.close();
    this.#serialInterrupt.close();
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

  #addPcDevices(): void {
    const onReset = () => this.#guestEnds('reset');
    const onShutdown = () => this.#guestEnds('shutdown');
    this.#ports.add(I8042_PORT, I8042_PORT_COUNT, new I8042(onReset));
    this.#ports.add(ACPI_POWER_PORT, ACPI_POWER_PORT_COUNT, new AcpiPower({ onReset, onShutdown }));
    if (this.#hasSerial) this.#addSerial();
  }

  get #hasSerial(): boolean {
    return this.#config.serial.mode !== 'Off';
  }

  #addSerial(): void {
    const { mode, file } = this.#config.serial;
    const { output, log } = this.#environment;
    const interrupt = new Notifier(this.#serialInterrupt.duplicate());
    this.#closers.push(() => interrupt.close());
    let transmit: (byte: number) => void | Promise<void> = () => undefined;
    if (mode !== 'Null') {
      const target = mode === 'File' && file !== undefined ? openSerialFile(file, log) : output;
      const serialOutput = new SerialOutput(target);
      transmit = (byte) => serialOutput.write(byte);
      this.#closers.push(() => {
        serialOutput.close();
        if (target !== output) target.end();
      });
    }
    const serial = new Serial({ raise: () => interrupt.signal(), transmit });
    this.#serial = serial;
    this.#ports.add(SERIAL_PORT, SERIAL_PORT_COUNT, serial);
    if (mode === 'Tty') this.#closers.push(feedSerial(this.#environment.input, serial));
  }

  /** Gives new processors memory, devices and a kernel, and lets them run. */
  #start(ram: GuestRam, slots: VirtioSlots): void {
    const processors = this.#processors;
    const boot = processors?.vcpus[0];
    if (processors === undefined || boot === undefined) throw new Error('start of a machine without processors');
    const { payload, cpus } = this.#config;
    const { vm } = processors;
    for (const { start, length } of ram.ranges) {
      const address = ram.hostAddress(start, length);
      if (address === undefined) throw new Error('a range of RAM is not mapped');
      vm.addMemory(start, length, address);
    }
    vm.addIrqFd(this.#serialInterrupt.fd, SERIAL_GSI);
    slots.connect(vm, this.#kvm.extension(KVM_CAP_READONLY_MEM) > 0);
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
      devices: slots.locations,
      hasSerial: this.#hasSerial,
    });
    for (const { fd } of processors.vcpus) setMsrs(fd, START_MSRS);
    setRegisters(boot.fd, encodeRegs(state));
    changeSpecialRegisters(boot.fd, (current) => patchSregs(current, state));
    processors.run();
  }
}

function openSerialFile(file: string, log: Log): Writable {
  let fd: number;
  try {
    fd = openSync(file, 'w');
  } catch (error) {
    throw new VmConfigError(`serial: ${(error as Error).message}`);
  }
  const stream = createWriteStream('', { fd });
  // To the last byte, which is written after the machine is gone.
  stream.on('error', (error) =>
    log.error(`serial: ${file}: what the guest writes from here on is lost: ${error.message}`),
  );
  return stream;
}
