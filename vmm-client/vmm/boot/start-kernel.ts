/** Processors of a machine that are about to enter a kernel: what CPUID says to them, and where the first of them stands. */

import { KVM_CAP_TSC_DEADLINE_TIMER, type Kvm } from '../../../protocol/sys/kvm.ts';
import { setMsrs } from '../../../protocol/sys/kvm-msrs.ts';
import { changeSpecialRegisters, setRegisters } from '../../../protocol/sys/kvm-vcpu.ts';
import type { CheckedConfig } from '../check-config.ts';
import { type CpuidEntry, encodeCpuid, filterCpuid } from '../cpuid.ts';
import type { Hardware } from '../hardware.ts';
import { IOMMU_SLOT, slotAddress } from '../layout.ts';
import type { Processors } from '../processors.ts';
import { loadKernel } from './kernel.ts';
import { encodeRegs, patchSregs } from './registers.ts';
import { START_MSRS } from './start-state.ts';

/** What a start reads of the rest of the machine. */
export type StartedHardware = Pick<Hardware, 'ram' | 'slots' | 'pc' | 'iommu'>;

/**
 * Loads the kernel into RAM, which new processors have already, and puts them where they enter it. They stay held.
 * @param supported - what KVM can have CPUID say
 * @throws VmConfigError - the kernel cannot be had, or is none @throws SysError - KVM refuses
 */
export function startKernel(
  kvm: Kvm,
  supported: readonly CpuidEntry[],
  { payload, cpus }: CheckedConfig,
  processors: Processors,
  { ram, slots, pc, iommu }: StartedHardware,
): void {
  const boot = processors.vcpus[0];
  if (boot === undefined) throw new Error('start of a machine without processors');
  const cpuCount = cpus.boot_vcpus;
  const tscDeadlineTimer = kvm.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  processors.setCpuid((apicId) =>
    encodeCpuid(filterCpuid(supported, { apicId, cpuCount, hide: cpus.hide, tscDeadlineTimer })),
  );
  const state = loadKernel({
    memory: ram.memory,
    ranges: ram.ranges,
    kernel: payload.kernel,
    initramfs: payload.initramfs,
    cmdline: payload.cmdline ?? '',
    cpuCount,
    hasSerial: pc.serial !== undefined,
    viot: iommu === undefined ? undefined : { iommu: slotAddress(IOMMU_SLOT), endpoints: slots.listEndpoints() },
  });
  for (const { fd } of processors.vcpus) setMsrs(fd, START_MSRS);
  setRegisters(boot.fd, encodeRegs(state));
  changeSpecialRegisters(boot.fd, (current) => patchSregs(current, state));
}
