/**
 * What this machine's /dev/kvm can do. Some clouds answer it by a hypervisor that emulates guests: code written for the
 * purpose runs there, and an operating system does not, for want of int3 and iret. So a few instructions are run in long
 * mode, an int3 and its iretq among them, on memory laid out here:
 *
 *     0x1000 PML4   0x2000 page directory pointers   0x3000 page directory (one 2 MiB page)   0x4000 GDT   0x5000 IDT
 *     0x8000 code   0x9000 handler of int3           0x10000 end of the stack
 *
 * Source: AMD64 Architecture Programmer's Manual 2, 5.3 (page tables), 4.8 (descriptors), 8.9 (gates); linux/kvm.h.
 */

import { SysError } from '../../protocol/sys/errors.ts';
import { Kvm } from '../../protocol/sys/kvm.ts';
import {
  changeSpecialRegisters,
  exitName,
  mapVcpu,
  setRegisters,
  unmapVcpu,
  VcpuRun,
} from '../../protocol/sys/kvm-vcpu.ts';
import { allocatePinned, type PinnedMemory } from '../../protocol/sys/pinned.ts';

/** `full` runs operating systems. `why` is the reason that it is not, for people. */
export type KvmAbility = { readonly full: true } | { readonly full: false; readonly why: string };

const MEMORY_BYTES = 0x20000;
const PORT = 0x10;
/** What the handler is to have counted when the guest reports. */
const ROUNDS = 3;

/** mov ecx, ROUNDS; again: int3; dec ecx; jnz again; mov eax, ebx; out PORT, al; hlt */
const CODE = [0xb9, ROUNDS, 0, 0, 0, 0xcc, 0xff, 0xc9, 0x75, 0xfb, 0x89, 0xd8, 0xe6, PORT, 0xf4];
/** inc ebx; iretq */
const HANDLER = [0xff, 0xc3, 0x48, 0xcf];

/** Asks this machine's KVM. */
export const probeKvm = (): KvmAbility => {
  try {
    const kvm = Kvm.open();
    try {
      return runGuest(kvm);
    } finally {
      kvm.close();
    }
  } catch (error) {
    if (error instanceof SysError) return { full: false, why: `/dev/kvm cannot be used: ${error.message}` };
    throw error;
  }
};

const runGuest = (kvm: Kvm): KvmAbility => {
  const memory = allocatePinned(MEMORY_BYTES);
  writeGuest(memory);
  const vm = kvm.createVm();
  try {
    vm.addMemory(0, MEMORY_BYTES, memory.address);
    const vcpu = vm.createVcpu(0);
    const location = mapVcpu(vcpu.fd, kvm.vcpuMappingBytes);
    try {
      changeSpecialRegisters(vcpu.fd, enterLongMode);
      setRegisters(vcpu.fd, generalRegisters());
      const run = new VcpuRun(location);
      const exit = exitName(run.run());
      if (exit !== 'io' || run.ioPort !== PORT) {
        return { full: false, why: `/dev/kvm only emulates: a guest's int3 and iretq end in exit ${exit}` };
      }
      const counted = run.bytes[run.ioDataOffset];
      return counted === ROUNDS ? { full: true } : { full: false, why: `/dev/kvm runs int3 ${counted} times, not 3` };
    } finally {
      unmapVcpu(location);
      vcpu.close();
    }
  } finally {
    vm.close();
  }
};

const writeGuest = (memory: PinnedMemory): void => {
  memory.setU64(0x1000, 0x2000 | 0x7);
  memory.setU64(0x2000, 0x3000 | 0x7);
  // Present, writable, and a page by itself.
  memory.setU64(0x3000, 0x83);
  // Selector 8: 64-bit code; 16: data.
  memory.data.setBigUint64(0x4008, 0x00af_9b00_0000_ffffn, true);
  memory.data.setBigUint64(0x4010, 0x00cf_9300_0000_ffffn, true);
  // Vector 3: an interrupt gate to selector 8, offset 0x9000.
  memory.bytes.set([0x00, 0x90, 0x08, 0x00, 0x00, 0x8e], 0x5000 + 3 * 16);
  memory.bytes.set(CODE, 0x8000);
  memory.bytes.set(HANDLER, 0x9000);
};

/** struct kvm_segment: base @0, limit @8, selector @12, type @14, present @15, db @17, s @18, l @19, g @20. */
const setSegment = (sregs: DataView, offset: number, selector: number, type: number, long: boolean): void => {
  sregs.setBigUint64(offset, 0n, true);
  sregs.setUint32(offset + 8, 0xffff_ffff, true);
  sregs.setUint16(offset + 12, selector, true);
  const flags = [type, 1, 0, long ? 0 : 1, 1, long ? 1 : 0, 1, 0, 0];
  for (const [index, flag] of flags.entries()) sregs.setUint8(offset + 14 + index, flag);
};

/** struct kvm_sregs: cs @0, ds es fs gs ss from @24, gdt @192, idt @208, cr0 @224, cr3 @240, cr4 @248, efer @264. */
const enterLongMode = (bytes: Uint8Array): Uint8Array => {
  const sregs = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  setSegment(sregs, 0, 8, 0xb, true);
  for (let offset = 24; offset <= 120; offset += 24) setSegment(sregs, offset, 16, 3, false);
  sregs.setBigUint64(192, 0x4000n, true);
  sregs.setUint16(200, 0x17, true);
  sregs.setBigUint64(208, 0x5000n, true);
  sregs.setUint16(216, 0xfff, true);
  // PE, MP, ET, NE, WP, AM, PG; PAE; LME and LMA.
  sregs.setBigUint64(224, 0x8005_0033n, true);
  sregs.setBigUint64(240, 0x1000n, true);
  sregs.setBigUint64(248, 0x20n, true);
  sregs.setBigUint64(264, 0x500n, true);
  return bytes;
};

/** struct kvm_regs: rsp @48, rip @128, rflags @136, of which bit 1 is always set. */
const generalRegisters = (): Uint8Array => {
  const regs = Buffer.alloc(144);
  regs.writeUInt32LE(0x10000, 48);
  regs.writeUInt32LE(0x8000, 128);
  regs.writeUInt32LE(2, 136);
  return regs;
};
