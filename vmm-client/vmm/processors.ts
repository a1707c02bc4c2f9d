/**
 * The part of a machine that a reset throws away: KVM's virtual machine with its interrupt controllers and vCPUs. Memory
 * and devices outlive it and are connected to each new one.
 */

import type { Kvm, KvmVm } from '../../protocol/sys/kvm.ts';
import { exitName, setCpuid } from '../../protocol/sys/kvm-vcpu.ts';
import { IDENTITY_MAP_ADDRESS, TSS_ADDRESS } from './layout.ts';
import type { ProcessorsState } from './state/processors-state.ts';
import { Throttle } from './throttle.ts';
import { type Buses, Vcpu, type VcpuEnd } from './vcpu.ts';
import { EXIT_REASONS } from './vcpu-channel.ts';

export class Processors {
  readonly vm: KvmVm;
  readonly vcpus: readonly Vcpu[];
  readonly #kvm: Kvm;
  /** What each vCPU was given. */
  #cpuids: readonly Uint8Array[] = [];
  readonly #throttle = new Throttle(this);
  #stopped: Promise<void> | undefined;

  /**
   * Creates the machine and starts the threads of `count` vCPUs, held. `onEnd` is called at most once a vCPU. `kvm` stays
   * the caller's, and open as long as this is used.
   * @throws SysError - the host refuses
   */
  constructor(kvm: Kvm, count: number, buses: Buses, onEnd: (end: VcpuEnd) => void) {
    this.#kvm = kvm;
    this.vm = kvm.createVm();
    const vcpus: Vcpu[] = [];
    this.vcpus = vcpus;
    try {
      this.vm.createInterruptControllers(TSS_ADDRESS, IDENTITY_MAP_ADDRESS);
      for (let index = 0; index < count; index += 1) {
        vcpus.push(new Vcpu(index, this.vm.createVcpu(index), kvm.vcpuMappingBytes, buses, onEnd));
      }
    } catch (error) {
      void this.stop();
      throw error;
    }
  }

  /** Tells each vCPU what its CPUID instruction says: `tableOf` makes a struct kvm_cpuid2. Before the first run. */
  setCpuid(tableOf: (vcpu: number) => Uint8Array): void {
    this.#cpuids = this.vcpus.map(({ index }) => tableOf(index));
    for (const { fd, index } of this.vcpus) setCpuid(fd, this.#cpuids[index] as Uint8Array);
  }

  run(): void {
    for (const vcpu of this.vcpus) vcpu.run();
  }

  /** Resolves when no vCPU is in the guest. */
  async hold(): Promise<void> {
    await Promise.all(this.vcpus.map((vcpu) => vcpu.hold()));
  }

  /** Lets vCPUs that run do so for less of the time: held for `percent` of it, up to 99; 0 is the end of that. */
  async throttle(percent: number): Promise<void> {
    if (percent > 0) {
      this.#throttle.set(percent);
      return;
    }
    await this.#throttle.end();
    this.run();
  }

  /**
   * Holds all vCPUs until each has finished its last instruction, which a device may take its time for and which may write
   * guest memory. They stay held until `run`.
   * @throws VmError - one has ended
   */
  async quiesce(): Promise<void> {
    await this.#throttle.end();
    await Promise.all(this.vcpus.map((vcpu) => vcpu.quiesce()));
  }

  /**
   * The state of everything here, from which the guest goes on after `run`, or elsewhere after `restore`. It is of one
   * moment: interrupts that devices make meanwhile may be in it or not.
   * @throws VmError - a vCPU has ended
   * @throws SysError - the host refuses
   */
  async save(): Promise<ProcessorsState> {
    await this.quiesce();
    if (this.#cpuids.length !== this.vcpus.length) throw new Error('save of vCPUs that were never set up');
    const vcpus = this.vcpus.map(({ fd, index }) => ({ fd, cpuid: this.#cpuids[index] as Uint8Array }));
    const { saveProcessors } = await import('./state/processors-state.ts');
    return saveProcessors(this.#kvm, this.vm, vcpus);
  }

  /**
   * Puts vCPUs that have not run into a state that `save` returned, and which may come from anywhere. Memory is there, with
   * what is in it; devices make no interrupts yet. When it throws, nothing but `stop` is left.
   * @throws VmError - the state is none, or none for this machine or this host
   */
  async restore(state: unknown): Promise<void> {
    const { parseProcessorsState, restoreProcessors } = await import('./state/processors-state.ts');
    const parsed = parseProcessorsState(state, this.vcpus.length, this.#kvm);
    const fds = this.vcpus.map(({ fd }) => fd);
    this.#cpuids = parsed.vcpus.map(({ cpuid }) => cpuid);
    restoreProcessors(this.#kvm, this.vm, fds, parsed);
  }

  /** Makes all threads end, and waits for nothing: for a process that ends. */
  abandon(): void {
    for (const vcpu of this.vcpus) vcpu.abandon();
  }

  /** Ends everything. Resolves when nothing of it touches guest memory. Idempotent. */
  stop(): Promise<void> {
    this.#stopped ??= Promise.all(this.vcpus.map((vcpu) => vcpu.stop())).then(() => this.vm.close());
    return this.#stopped;
  }

  /** Exits of each vCPU by reason; reasons that did not occur are left out, but for those that a reader looks for. */
  counters(): Record<string, Record<string, number>> {
    const all: Record<string, Record<string, number>> = {};
    for (const vcpu of this.vcpus) {
      const one: Record<string, number> = {};
      for (let reason = 0; reason < EXIT_REASONS; reason += 1) {
        const count = vcpu.exits(reason);
        const name = exitName(reason);
        if (count > 0 || name === 'io' || name === 'mmio') one[`exits_${name}`] = count;
      }
      all[`vcpu${vcpu.index}`] = one;
    }
    return all;
  }
}
