/**
 * Survives a peer that truncates shared memory after it was mapped. Touching such a page raises SIGBUS, which no
 * JavaScript handler can see; this module installs a handler of a few dozen machine instructions that puts an anonymous
 * zero page in the place of the missing one and marks the mapping, so that the interrupted instruction completes and the
 * session that owns the mapping can be closed at the next look. Other missing pages stay missing: a system call that is
 * given one fails instead of finding zeros. Each such page splits a mapping, of which the kernel allows some 65,000: after
 * 4096 of them, and where the pages are huge, the whole guarded mapping is replaced. A fault outside every guarded range
 * keeps its default action. See docs/adr/0004-truncated-guest-memory.md.
 *
 * Handler and table are the process's, whichever of its threads came first: this module exists once a thread, and later
 * ones find the table through the handler that is installed. The main thread comes first, before it starts others.
 *
 * Table, read by the handler on any thread:
 *
 *     0   u64  number of slots in use (high-water mark)
 *     8   u32  pages replaced one by one, in all mappings that are guarded
 *     16  struct kernel_sigaction, all zero = SIG_DFL (32 bytes)
 *     64  slot[i] = { start u64, end u64, faulted u32, taken u32, pages u32 replaced one by one, reserved u32 }
 *
 * While a slot changes its range is empty: `end` is set last and cleared first.
 */

import { ENOMEM, SysError } from './errors.ts';
import { viewMemory } from './libc.ts';
import { allocatePinned, PinnedMemory } from './pinned.ts';
import { installedHandler, installMachineCodeHandler, machineCodeHandlersAvailable } from './signal-handler.ts';

const SIGBUS = 7;
const SLOT_BYTES = 32;
const SLOT_START = 64;
const MAX_SLOTS = 2048;
const TABLE_BYTES = SLOT_START + MAX_SLOTS * SLOT_BYTES;
const PAGE_BYTES = 4096;

/** x86-64, System V: handler(rdi = signal, rsi = siginfo). `TABLE` stands for the table's address (8 bytes). */
const TABLE = -1;
const HANDLER_X64: readonly number[] = [
  ...[0x4c, 0x8b, 0x46, 0x10], //                                   mov r8, [rsi+16]       si_addr
  ...[0x49, 0xb9, TABLE], //                                        movabs r9, TABLE
  ...[0x49, 0x8b, 0x09], //                                         mov rcx, [r9]          slots in use
  ...[0x49, 0x83, 0xc1, 0x40], //                                   add r9, 64
  ...[0x48, 0x85, 0xc9, 0x74, 0x6a], //                       next: test rcx, rcx; jz miss
  ...[0x4d, 0x3b, 0x01, 0x72, 0x5c], //                             cmp r8, [r9]; jb skip
  ...[0x4d, 0x3b, 0x41, 0x08, 0x73, 0x56], //                       cmp r8, [r9+8]; jae skip
  ...[0x41, 0xc7, 0x41, 0x10, 0x01, 0x00, 0x00, 0x00], //           mov dword [r9+16], 1   faulted
  ...[0x48, 0xb8, TABLE], //                                        movabs rax, TABLE
  ...[0x81, 0x78, 0x08, 0x00, 0x10, 0x00, 0x00], //                 cmp dword [rax+8], 4096
  ...[0x73, 0x26], //                                               jae whole
  ...[0xf0, 0xff, 0x40, 0x08], //                                   lock inc dword [rax+8]
  ...[0xf0, 0x41, 0xff, 0x41, 0x18], //                             lock inc dword [r9+24]
  ...[0x4c, 0x89, 0xc7], //                                         mov rdi, r8
  ...[0x48, 0x81, 0xe7, 0x00, 0xf0, 0xff, 0xff], //                 and rdi, -4096         addr = the page
  ...[0xbe, 0x00, 0x10, 0x00, 0x00], //                             mov esi, 4096          length
  ...[0x41, 0x51, 0xe8, 0x48, 0x00, 0x00, 0x00, 0x41, 0x59], //      push r9; call map; pop r9
  ...[0x48, 0x85, 0xc0, 0x79, 0x14], //                             test rax, rax; jns done
  ...[0x49, 0x8b, 0x39], //                                   whole: mov rdi, [r9]         addr = start
  ...[0x49, 0x8b, 0x71, 0x08, 0x48, 0x29, 0xfe], //                 mov rsi, [r9+8]; sub rsi, rdi   length
  ...[0xe8, 0x32, 0x00, 0x00, 0x00], //                             call map
  ...[0x48, 0x85, 0xc0, 0x78, 0x0a], //                             test rax, rax; js miss
  ...[0xc3], //                                               done: ret
  ...[0x49, 0x83, 0xc1, 0x20], //                             skip: add r9, 32
  ...[0x48, 0xff, 0xc9, 0xeb, 0x91], //                             dec rcx; jmp next
  ...[0xbf, 0x07, 0x00, 0x00, 0x00], //                       miss: mov edi, SIGBUS
  ...[0x48, 0xbe, TABLE], //                                        movabs rsi, TABLE
  ...[0x48, 0x83, 0xc6, 0x10], //                                   add rsi, 16            SIG_DFL
  ...[0x31, 0xd2, 0x41, 0xba, 0x08, 0x00, 0x00, 0x00], //           xor edx, edx; mov r10d, 8
  ...[0xb8, 0x0d, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xc3], //           mov eax, SYS_rt_sigaction; syscall; ret
  ...[0xba, 0x03, 0x00, 0x00, 0x00], //                       map:  mov edx, PROT_READ|PROT_WRITE
  ...[0x41, 0xba, 0x32, 0x40, 0x00, 0x00], //                       mov r10d, PRIVATE|FIXED|ANONYMOUS|NORESERVE
  ...[0x49, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff], //                 mov r8, -1
  ...[0x45, 0x31, 0xc9], //                                         xor r9d, r9d
  ...[0xb8, 0x09, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xc3], //           mov eax, SYS_mmap; syscall; ret
];

interface Table {
  readonly memory: PinnedMemory;
  /** The same as 32-bit words, for what threads compete for. */
  readonly words: Int32Array;
}

let table: Table | undefined;

function encodeHandler(tableAddress: number): Uint8Array {
  const address = new Uint8Array(new BigUint64Array([BigInt(tableAddress)]).buffer);
  return Uint8Array.from(HANDLER_X64.flatMap((byte) => (byte === TABLE ? [...address] : [byte])));
}

/** Whether this machine's architecture has a handler; where not, a truncated region ends the daemon. */
export const faultGuardAvailable = machineCodeHandlersAvailable;

/** The table of the handler that another thread of this process installed. */
function findTable(): PinnedMemory | undefined {
  const handler = installedHandler(SIGBUS);
  // Ours lies at the beginning of a page; whatever lies there, a handler's page can be read.
  if (handler < PAGE_BYTES || handler % PAGE_BYTES !== 0) return undefined;
  const code = new Uint8Array(viewMemory(handler, PAGE_BYTES));
  const address = Number(new DataView(code.buffer).getBigUint64(HANDLER_X64.indexOf(TABLE), true));
  if (!encodeHandler(address).every((byte, i) => byte === code[i])) return undefined;
  return new PinnedMemory(address, viewMemory(address, TABLE_BYTES), 0, TABLE_BYTES);
}

function installTable(): PinnedMemory {
  const memory = allocatePinned(TABLE_BYTES);
  installMachineCodeHandler(SIGBUS, encodeHandler(memory.address), 'SIGBUS');
  return memory;
}

/** Installs the SIGBUS handler of the process, once. A no-op where the architecture has none. */
export function installFaultGuard(): void {
  if (table !== undefined || !faultGuardAvailable) return;
  const memory = findTable() ?? installTable();
  table = { memory, words: new Int32Array(memory.bytes.buffer, memory.bytes.byteOffset, TABLE_BYTES / 4) };
}

const startOf = (slot: number): number => SLOT_START + slot * SLOT_BYTES;
const faultedWord = (slot: number): number => (startOf(slot) + 16) / 4;
const takenWord = (slot: number): number => (startOf(slot) + 20) / 4;
const pagesWord = (slot: number): number => (startOf(slot) + 24) / 4;
const SINGLE_PAGES_WORD = 2;

function takeSlot({ words }: Table): number {
  for (let slot = 0; slot < MAX_SLOTS; slot += 1) {
    if (Atomics.compareExchange(words, takenWord(slot), 0, 1) === 0) return slot;
  }
  throw new SysError('mmap', ENOMEM, `of more than ${MAX_SLOTS} shared mappings at once`);
}

/**
 * Guards `[address, address + length)`. Returns a slot for `hasFaulted` and `unguard`, or -1 where there is no guard.
 * @throws SysError - ENOMEM: all slots are taken
 */
export function guard(address: number, length: number): number {
  if (table === undefined) return -1;
  const { memory, words } = table;
  const slot = takeSlot(table);
  words[faultedWord(slot)] = 0;
  memory.setU64(startOf(slot), address);
  memory.setU64(startOf(slot) + 8, address + length);
  for (let used = Atomics.load(words, 0); used <= slot; used = Atomics.load(words, 0)) {
    Atomics.compareExchange(words, 0, used, slot + 1);
  }
  return slot;
}

/** Whether a page of the guarded range was found missing since `guard`, on whichever thread. */
export function hasFaulted(slot: number): boolean {
  return slot !== -1 && table !== undefined && table.words[faultedWord(slot)] !== 0;
}

/** Ends the guard of a slot. The mapping must be gone or anonymous by now. */
export function unguard(slot: number): void {
  if (slot === -1 || table === undefined) return;
  table.memory.setU64(startOf(slot) + 8, 0);
  table.memory.setU64(startOf(slot), 0);
  Atomics.sub(table.words, SINGLE_PAGES_WORD, Atomics.exchange(table.words, pagesWord(slot), 0));
  Atomics.store(table.words, takenWord(slot), 0);
}
