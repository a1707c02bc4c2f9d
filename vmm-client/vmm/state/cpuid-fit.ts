/**
 * Whether a guest that was told one CPUID can go on where KVM supports another: it may use whatever it was told of, so
 * this host has to have all of that, with the same vendor. What is the guest's own (its place among the processors,
 * caches) is not compared.
 */

import { type CpuidEntry, physicalAddressBits } from '../cpuid.ts';
import { CPUID_WORDS, type CpuidRegister } from '../cpuid-features.ts';
import { VmError } from '../errors.ts';

const VENDOR = 0;
const EXTENDED_STATE = 0xd;
const KVM_FEATURES = 0x4000_0001;
/** KVM has a capability of its own for this one, and leaves it out of the entries. */
const TSC_DEADLINE_TIMER = 'tsc_deadline_timer';

function registerOf(entries: readonly CpuidEntry[], leaf: number, index: number, register: CpuidRegister): number {
  return entries.find((entry) => entry.function === leaf && entry.index === index)?.[register] ?? 0;
}

/** The twelve characters in ebx, edx and ecx of leaf 0. */
function vendorOf(entries: readonly CpuidEntry[]): string {
  const registers = (['ebx', 'edx', 'ecx'] as const).map((register) => registerOf(entries, VENDOR, 0, register));
  return Buffer.from(Uint32Array.from(registers).buffer)
    .toString('latin1')
    .replace(/[^ -~]/g, '?');
}

/** Bit numbers that `guest` has and `host` has not. */
function missingBits(guest: number, host: number): number[] {
  const missing = guest & ~host;
  return Array.from({ length: 32 }, (_, bit) => bit).filter((bit) => ((missing >>> bit) & 1) === 1);
}

/**
 * @param supported - what KVM_GET_SUPPORTED_CPUID says here
 * @param tscDeadlineTimer - whether KVM_CAP_TSC_DEADLINE_TIMER is there
 * @throws VmError - the guest was told of something that this host has not got
 */
export function checkCpuidFits(
  told: readonly CpuidEntry[],
  supported: readonly CpuidEntry[],
  tscDeadlineTimer: boolean,
): void {
  const [guestVendor, hostVendor] = [vendorOf(told), vendorOf(supported)];
  if (guestVendor !== hostVendor)
    throw new VmError(`processors: the guest's are of ${guestVendor}, this host's of ${hostVendor}`);
  const [guestBits, hostBits] = [physicalAddressBits(told), physicalAddressBits(supported)];
  if (guestBits > hostBits)
    throw new VmError(`processors: the guest's have addresses of ${guestBits} bits, this host's of ${hostBits}`);
  const missing = CPUID_WORDS.flatMap(({ function: leaf, index, register, bits }) => {
    const [guest, host] = [registerOf(told, leaf, index, register), registerOf(supported, leaf, index, register)];
    const lacking = new Set(missingBits(guest, host));
    return Object.entries(bits).flatMap(([name, bit]) =>
      lacking.has(bit) && (name !== TSC_DEADLINE_TIMER || !tscDeadlineTimer) ? [name] : [],
    );
  });
  for (const register of ['eax', 'edx'] as const) {
    // The components of the extended state are 64 bits, in eax and edx.
    const first = register === 'eax' ? 0 : 32;
    const [guest, host] = [told, supported].map((entries) => registerOf(entries, EXTENDED_STATE, 0, register));
    for (const bit of missingBits(guest as number, host as number)) missing.push(`XCR0 bit ${first + bit}`);
  }
  const kvm = [told, supported].map((entries) => registerOf(entries, KVM_FEATURES, 0, 'eax')) as [number, number];
  for (const bit of missingBits(...kvm)) missing.push(`KVM feature bit ${bit}`);
  if (missing.length > 0)
    throw new VmError(`processors: the guest uses features that this host has not got: ${missing.join(', ')}`);
}
