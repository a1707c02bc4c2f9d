/**
 * The part of a machine that a reset throws away: KVM's virtual machine with its interrupt controllers and vCPUs. Memory
 * and devices outlive it and are connected to each new one.
 */

import type { Kvm, KvmVm } from '../../protocol/sys/kvm.ts';
import { exitName, setCpuid } from '../../protocol/sys/kvm-vcpu.ts';
import { IDENTITY_MAP_ADDRESS, TSS_ADDRESS } from './layout.ts';
import { type Buses, Vcpu, type VcpuEnd } from './vcpu.ts';
import { EXIT_REASONS } from './vcpu-channel.ts';

export class Processors {
  readonly vm: KvmVm;
  readonly vcpus: readonly Vcpu[];
  #stopped: Promise<void> | undefined;

  /**
   * Creates the machine and starts the threads of `count` vCPUs, held. `onEnd` is called at most once a vCPU.
   * @throws SysError - the host refuses
   */
  constructor(kvm: Kvm, count: number, buses: Buses, onEnd: (end: VcpuEnd) => void) {
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
    for (const vcpu of this.vcpus) setCpuid(vcpu.fd, tableOf(vcpu.index));
  }

  run(): void {
    for (const vcpu of this.vcpus) vcpu.run();
  }

  /** Resolves when no vCPU is in the guest. */
  async hold(): Promise<void> {
    await Promise.all(this.vcpus.map((vcpu) => vcpu.hold()));
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
