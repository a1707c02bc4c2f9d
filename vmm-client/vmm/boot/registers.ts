/**
 * The start state of a processor as KVM takes it: struct kvm_regs for KVM_SET_REGS, and struct kvm_sregs, of which what
 * the boot protocols say nothing about (the APIC base, pending interrupts) stays as KVM_GET_SREGS returned it.
 *
 *     kvm_regs  (144): rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags, 8 bytes each
 *     kvm_sregs (312): cs ds es fs gs ss tr ldt (24 each) | gdt idt (16 each) | cr0 cr2 cr3 cr4 cr8 efer apic_base | bitmap
 *     kvm_segment: 0 base, 8 limit, 12 selector, 14 type, 15 present, dpl, db, s, l, g, avl, 22 unusable
 *
 * Source: asm/kvm.h.
 */

import type { BootState, Segment, TableRegister } from './start-state.ts';

export const KVM_REGS_BYTES = 144;
export const KVM_SREGS_BYTES = 312;
const SEGMENT_BYTES = 24;

/** Byte offsets in struct kvm_regs of what a start state has. */
export const KVM_REGS = { rbx: 8, rsi: 32, rsp: 48, rip: 128, rflags: 136 } as const;

/** Byte offsets in struct kvm_sregs. */
export const KVM_SREGS = {
  cs: 0,
  ds: 24,
  es: 48,
  fs: 72,
  gs: 96,
  ss: 120,
  tr: 144,
  ldt: 168,
  gdt: 192,
  idt: 208,
  cr0: 224,
  cr2: 232,
  cr3: 240,
  cr4: 248,
  cr8: 256,
  efer: 264,
  apic_base: 272,
  interrupt_bitmap: 280,
} as const;

/** struct kvm_regs of 144 bytes. Registers that the state does not name are zero. */
export const encodeRegs = ({ general }: BootState): Uint8Array => {
  const bytes = new Uint8Array(KVM_REGS_BYTES);
  const view = new DataView(bytes.buffer);
  for (const name of ['rbx', 'rsi', 'rsp', 'rip', 'rflags'] as const) {
    view.setBigUint64(KVM_REGS[name], BigInt(general[name]), true);
  }
  return bytes;
};

const putSegment = (view: DataView, offset: number, segment: Segment): void => {
  view.setBigUint64(offset, BigInt(segment.base), true);
  view.setUint32(offset + 8, segment.limit, true);
  view.setUint16(offset + 12, segment.selector, true);
  const { type, present, dpl, db, s, l, g, unusable } = segment;
  for (const [index, field] of [type, present, dpl, db, s, l, g, 0, unusable, 0].entries()) {
    view.setUint8(offset + 14 + index, field);
  }
};

const putTable = (view: DataView, offset: number, table: TableRegister): void => {
  view.setBigUint64(offset, BigInt(table.base), true);
  view.setUint16(offset + 8, table.limit, true);
};

/** A copy of `current`, the 312 bytes that KVM_GET_SREGS returned, with the registers of the start state in it. */
export const patchSregs = (current: Uint8Array, { special }: BootState): Uint8Array => {
  const bytes = current.slice(0, KVM_SREGS_BYTES);
  const view = new DataView(bytes.buffer);
  putSegment(view, KVM_SREGS.cs, special.cs);
  for (let offset = KVM_SREGS.ds; offset <= KVM_SREGS.ss; offset += SEGMENT_BYTES) {
    putSegment(view, offset, special.data);
  }
  putSegment(view, KVM_SREGS.tr, special.tr);
  putSegment(view, KVM_SREGS.ldt, special.ldt);
  putTable(view, KVM_SREGS.gdt, special.gdt);
  putTable(view, KVM_SREGS.idt, special.idt);
  view.setBigUint64(KVM_SREGS.cr2, 0n, true);
  for (const name of ['cr0', 'cr3', 'cr4', 'efer'] as const) {
    view.setBigUint64(KVM_SREGS[name], BigInt(special[name]), true);
  }
  return bytes;
};
