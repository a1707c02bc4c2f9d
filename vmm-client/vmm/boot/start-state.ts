/**
 * The registers with which the boot processor starts, by boot protocol, and the tables in memory that they point to. The
 * other processors wait for the startup interrupt of the kernel and need none of it.
 *
 *     linux64  long mode, paging on: the first 4 GiB mapped to themselves; rsi = zero page
 *     pvh      32-bit protected mode, paging off; ebx = hvm_start_info
 *
 * Source: Linux, Documentation/arch/x86/boot.rst, 64-bit Boot Protocol; Xen, docs/misc/pvh.pandoc; Intel SDM volume 3,
 * 3.4.5 Segment Descriptors, 4.5 4-Level Paging; arch/x86 msr-index.h.
 */

import {
  BOOT_STACK_ADDRESS,
  GDT_ADDRESS,
  PAGE_BYTES,
  PAGE_TABLES_ADDRESS,
  PVH_START_INFO_ADDRESS,
  ZERO_PAGE_ADDRESS,
} from '../layout.ts';

/** A segment register with its hidden part. `limit` in bytes; the flags are 0 or 1. */
export interface Segment {
  readonly base: number;
  readonly limit: number;
  readonly selector: number;
  readonly type: number;
  readonly present: number;
  readonly dpl: number;
  readonly db: number;
  readonly s: number;
  readonly l: number;
  readonly g: number;
  readonly unusable: number;
}

export interface TableRegister {
  readonly base: number;
  readonly limit: number;
}

export interface SpecialRegisters {
  readonly cs: Segment;
  /** ds, es, fs, gs and ss alike. */
  readonly data: Segment;
  readonly tr: Segment;
  readonly ldt: Segment;
  readonly gdt: TableRegister;
  readonly idt: TableRegister;
  readonly cr0: number;
  readonly cr3: number;
  readonly cr4: number;
  readonly efer: number;
}

/** What is not named is zero. */
export interface GeneralRegisters {
  readonly rip: number;
  readonly rsp: number;
  readonly rbx: number;
  readonly rsi: number;
  readonly rflags: number;
}

/** Plain numbers throughout: nothing of it reaches 2^53. */
export interface BootState {
  readonly protocol: 'pvh' | 'linux64';
  readonly general: GeneralRegisters;
  readonly special: SpecialRegisters;
}

/**
 * Model-specific registers that firmware leaves set and a kernel relies on, for every processor: fast string operations
 * (IA32_MISC_ENABLE), and memory that is cached unless something else is said (IA32_MTRR_DEF_TYPE: enabled, write-back).
 */
export const START_MSRS: readonly { readonly index: number; readonly value: bigint }[] = [
  { index: 0x1a0, value: 1n },
  { index: 0x2ff, value: 0x806n },
];

const CR0_PE = 0x1;
const CR0_ET = 0x10;
const CR0_PG = 0x8000_0000;
const CR4_PAE = 0x20;
const EFER_LME = 0x100;
const EFER_LMA = 0x400;
/** The bit of RFLAGS that is always set; interrupts are off. */
const RFLAGS_FIXED = 0x2;

/** __BOOT_CS and __BOOT_DS of Linux, which the 64-bit boot protocol prescribes. */
const CODE_SELECTOR = 0x10;
const DATA_SELECTOR = 0x18;
const TSS_SELECTOR = 0x20;
const TYPE_CODE = 0xb;
const TYPE_DATA = 0x3;
const TYPE_BUSY_TSS = 0xb;
const TSS_LIMIT = 0x67;

const FLAT = { base: 0, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, unusable: 0 } as const;
const CODE64: Segment = { ...FLAT, selector: CODE_SELECTOR, type: TYPE_CODE, db: 0, l: 1 };
const CODE32: Segment = { ...FLAT, selector: CODE_SELECTOR, type: TYPE_CODE, db: 1, l: 0 };
const DATA: Segment = { ...FLAT, selector: DATA_SELECTOR, type: TYPE_DATA, db: 1, l: 0 };
const TSS: Segment = {
  ...FLAT,
  limit: TSS_LIMIT,
  selector: TSS_SELECTOR,
  type: TYPE_BUSY_TSS,
  db: 0,
  s: 0,
  l: 0,
  g: 0,
};
const NO_LDT: Segment = { ...TSS, limit: 0, selector: 0, type: 2, present: 0, unusable: 1 };

/** The eight bytes of a descriptor: base 0, and the rest as in the hidden part. */
const descriptor = ({ limit, type, present, dpl, db, s, l, g }: Segment): bigint => {
  const units = g === 1 ? Math.floor(limit / PAGE_BYTES) : limit;
  const access = type | (s << 4) | (dpl << 5) | (present << 7);
  const flags = (l << 1) | (db << 2) | (g << 3);
  return (
    BigInt(units & 0xffff) | (BigInt(access) << 40n) | (BigInt((units >> 16) & 0xf) << 48n) | (BigInt(flags) << 52n)
  );
};

/** Two null descriptors, code, data, and a TSS of two entries, as long mode has them. */
const encodeGdt = (code: Segment): Uint8Array =>
  new Uint8Array(new BigUint64Array([0n, 0n, descriptor(code), descriptor(DATA), descriptor(TSS), 0n]).buffer);

const PAGE_PRESENT_WRITABLE = 0x3;
const PAGE_LARGE = 0x80;
const TABLE_ENTRIES = 512;
const LARGE_PAGE_BYTES = 0x20_0000;
const DIRECTORIES = 4;

/**
 * Page tables that map the first 4 GiB to themselves with 2 MiB pages (1 GiB pages may not exist): one level-4 table, one
 * of directory pointers, four directories. Six pages, to be put at `base`.
 */
export const encodePageTables = (base: number): Uint8Array => {
  const entries = new BigUint64Array((2 + DIRECTORIES) * TABLE_ENTRIES);
  const tableAt = (page: number): bigint => BigInt(base + page * PAGE_BYTES + PAGE_PRESENT_WRITABLE);
  entries[0] = tableAt(1);
  for (let n = 0; n < DIRECTORIES; n += 1) entries[TABLE_ENTRIES + n] = tableAt(2 + n);
  for (let n = 0; n < DIRECTORIES * TABLE_ENTRIES; n += 1) {
    entries[2 * TABLE_ENTRIES + n] = BigInt(n * LARGE_PAGE_BYTES + PAGE_PRESENT_WRITABLE + PAGE_LARGE);
  }
  return new Uint8Array(entries.buffer);
};

/** Something to be put into guest memory. */
export interface Placed {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** The tables in guest memory that the registers of `startState` point to. */
export const startTables = (protocol: BootState['protocol']): Placed[] =>
  protocol === 'pvh'
    ? [{ address: GDT_ADDRESS, bytes: encodeGdt(CODE32) }]
    : [
        { address: GDT_ADDRESS, bytes: encodeGdt(CODE64) },
        { address: PAGE_TABLES_ADDRESS, bytes: encodePageTables(PAGE_TABLES_ADDRESS) },
      ];

/** The registers of the boot processor for a kernel entered at `entry`. */
export const startState = (protocol: BootState['protocol'], entry: number): BootState => {
  const general = { rip: entry, rsp: BOOT_STACK_ADDRESS, rbx: 0, rsi: 0, rflags: RFLAGS_FIXED };
  const gdt = { base: GDT_ADDRESS, limit: encodeGdt(CODE64).length - 1 };
  const common = { data: DATA, tr: TSS, ldt: NO_LDT, gdt, idt: { base: 0, limit: 0 } };
  if (protocol === 'pvh') {
    return {
      protocol,
      general: { ...general, rbx: PVH_START_INFO_ADDRESS },
      special: { ...common, cs: CODE32, cr0: CR0_PE + CR0_ET, cr3: 0, cr4: 0, efer: 0 },
    };
  }
  return {
    protocol,
    general: { ...general, rsi: ZERO_PAGE_ADDRESS },
    special: {
      ...common,
      cs: CODE64,
      cr0: CR0_PG + CR0_PE + CR0_ET,
      cr3: PAGE_TABLES_ADDRESS,
      cr4: CR4_PAE,
      efer: EFER_LME + EFER_LMA,
    },
  };
};
