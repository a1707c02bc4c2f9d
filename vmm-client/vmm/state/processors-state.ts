/**
 * The state of all that a reset throws away: vCPUs, interrupt controllers, timer and clock. The guest's clocks (TSC, KVM's)
 * go on from where they were; it does not see the time in between.
 *
 * The interrupt controllers come behind the vCPUs: an interrupt that waits in the I/O APIC goes to a local APIC when it is
 * restored. The clock comes before them: what the guest has KVM write to its memory by an MSR is made from it.
 */

import { SysError } from '../../../protocol/sys/errors.ts';
import {
  IRQCHIP_BYTES,
  IRQCHIPS,
  KVM_CAP_TSC_DEADLINE_TIMER,
  type Kvm,
  type KvmVm,
  PIT_BYTES,
} from '../../../protocol/sys/kvm.ts';
import { decodeCpuid } from '../cpuid.ts';
import { VmError } from '../errors.ts';
import { MAX_VCPUS } from '../layout.ts';
import { bigintOf, bytesOf, fieldsOf, listOf } from './codec.ts';
import { checkCpuidFits } from './cpuid-fit.ts';
import { parseVcpuState, restoreVcpu, saveVcpu, type VcpuState } from './vcpu-state.ts';

/** Plain data. */
export interface ProcessorsState {
  /** In order of their index. */
  readonly vcpus: readonly VcpuState[];
  /** Of the two PICs and the I/O APIC: struct kvm_irqchip without its number. */
  readonly irqchips: readonly Uint8Array[];
  /** struct kvm_pit_state2. */
  readonly pit: Uint8Array;
  /** Nanoseconds. */
  readonly clock: bigint;
}

/** A vCPU as far as its state is concerned: its descriptor, and the struct kvm_cpuid2 that it was given. */
export interface StatefulVcpu {
  readonly fd: number;
  readonly cpuid: Uint8Array;
}

/** The state of processors whose vCPUs are all quiet. @throws SysError */
export function saveProcessors(kvm: Kvm, vm: KvmVm, vcpus: readonly StatefulVcpu[]): ProcessorsState {
  return {
    vcpus: vcpus.map(({ fd, cpuid }) => saveVcpu(kvm, fd, cpuid)),
    irqchips: IRQCHIPS.map((chip) => vm.irqchip(chip)),
    pit: vm.pit(),
    clock: vm.clock(),
  };
}

/**
 * A state that came from elsewhere, for a machine of `count` vCPUs on this host.
 * @throws VmError - it is none, or is of other processors than can be had here
 */
export function parseProcessorsState(value: unknown, count: number, kvm: Kvm): ProcessorsState {
  const fields = fieldsOf(value, 'processors');
  const vcpus = listOf(fields.vcpus, 'processors: vcpus', MAX_VCPUS);
  if (vcpus.length !== count)
    throw new VmError(`processors: a state of ${vcpus.length} vCPUs, the machine has ${count}`);
  const irqchips = listOf(fields.irqchips, 'processors: irqchips', IRQCHIPS.length);
  const state = {
    vcpus: vcpus.map((vcpu, index) => parseVcpuState(vcpu, `vCPU ${index}`, kvm)),
    irqchips: IRQCHIPS.map((chip) => bytesOf(irqchips[chip], `processors: irqchip ${chip}`, IRQCHIP_BYTES)),
    pit: bytesOf(fields.pit, 'processors: pit', PIT_BYTES),
    clock: bigintOf(fields.clock, 'processors: clock'),
  };
  const supported = decodeCpuid(kvm.supportedCpuid());
  const hasDeadlineTimer = kvm.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  for (const { cpuid } of state.vcpus) checkCpuidFits(decodeCpuid(cpuid), supported, hasDeadlineTimer);
  return state;
}

/** Sets the state of processors that have not run yet. @throws VmError - this host's KVM does not take it */
export function restoreProcessors(kvm: Kvm, vm: KvmVm, fds: readonly number[], state: ProcessorsState): void {
  const set = (name: string, call: () => void): void => {
    try {
      call();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      throw new VmError(`processors: ${name}: this host's KVM does not take it: ${error.message}`);
    }
  };
  set('clock', () => vm.setClock(state.clock));
  for (const [index, vcpu] of state.vcpus.entries()) restoreVcpu(kvm, fds[index] as number, vcpu, `vCPU ${index}`);
  for (const chip of IRQCHIPS) set(`irqchip ${chip}`, () => vm.setIrqchip(chip, state.irqchips[chip] as Uint8Array));
  set('pit', () => vm.setPit(state.pit));
}
