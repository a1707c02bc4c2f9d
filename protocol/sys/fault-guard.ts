/**
 * Survives a peer that truncates shared memory after it was mapped. Touching such a page raises SIGBUS, which no
 * JavaScript handler can see; this module installs a handler of a few dozen machine instructions that replaces the whole
 * guarded mapping by anonymous zero pages and marks it, so that the interrupted instruction completes and the session
 * that owns the mapping can be closed at the next look. A fault outside every guarded range keeps its default action.
 * See docs/adr/0004-truncated-guest-memory.md.
 *
 * Table, one page, read by the handler:
 *
 *     0   u64  number of slots in use (high-water mark)
 *     16  struct kernel_sigaction, all zero = SIG_DFL (32 bytes)
 *     64  slot[i] = { start u64, end u64, faulted u32, reserved u32, reserved u64 }
 */

import { ENOMEM, SysError } from './errors.ts';
import { allocatePinned, type PinnedMemory } from './pinned.ts';
import { installMachineCodeHandler, machineCodeHandlersAvailable } from './signal-handler.ts';

const SIGBUS = 7;
const SLOT_BYTES = 32;
const SLOT_START = 64;
const MAX_SLOTS = 2048;

/** x86-64, System V: handler(rdi = signal, rsi = siginfo). `TABLE` stands for the table's address (8 bytes). */
const TABLE = -1;
const HANDLER_X64: readonly number[] = [
  ...[0x4c, 0x8b, 0x46, 0x10], //                    mov r8, [rsi+16]       si_addr
  ...[0x49, 0xb9, TABLE], //                         movabs r9, TABLE
  ...[0x49, 0x8b, 0x09], //                          mov rcx, [r9]          slots in use
  ...[0x49, 0x83, 0xc1, 0x40], //                    add r9, 64
  ...[0x48, 0x85, 0xc9, 0x74, 0x48], //        next: test rcx, rcx; jz miss
  ...[0x4d, 0x3b, 0x01, 0x72, 0x3a], //              cmp r8, [r9]; jb skip
  ...[0x4d, 0x3b, 0x41, 0x08, 0x73, 0x34], //        cmp r8, [r9+8]; jae skip
  ...[0x49, 0x8b, 0x39], //                          mov rdi, [r9]          addr = start
  ...[0x49, 0x8b, 0x71, 0x08, 0x48, 0x29, 0xfe], //  mov rsi, [r9+8]; sub rsi, rdi   length
  ...[0x41, 0xc7, 0x41, 0x10, 0x01, 0, 0, 0], //     mov dword [r9+16], 1   faulted
  ...[0xba, 0x03, 0, 0, 0], //                       mov edx, PROT_READ|PROT_WRITE
  ...[0x41, 0xba, 0x32, 0x40, 0, 0], //              mov r10d, PRIVATE|FIXED|ANONYMOUS|NORESERVE
  ...[0x49, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff], //  mov r8, -1
  ...[0x45, 0x31, 0xc9], //                          xor r9d, r9d
  ...[0xb8, 0x09, 0, 0, 0, 0x0f, 0x05], //           mov eax, SYS_mmap; syscall
  ...[0x48, 0x85, 0xc0, 0x78, 0x0a, 0xc3], //        test rax, rax; js miss; ret
  ...[0x49, 0x83, 0xc1, 0x20], //              skip: add r9, 32
  ...[0x48, 0xff, 0xc9, 0xeb, 0xb3], //              dec rcx; jmp next
  ...[0xbf, 0x07, 0, 0, 0], //                 miss: mov edi, SIGBUS
  ...[0x48, 0xbe, TABLE], //                         movabs rsi, TABLE
  ...[0x48, 0x83, 0xc6, 0x10], //                    add rsi, 16            SIG_DFL
  ...[0x31, 0xd2, 0x41, 0xba, 0x08, 0, 0, 0], //     xor edx, edx; mov r10d, 8
  ...[0xb8, 0x0d, 0, 0, 0, 0x0f, 0x05, 0xc3], //     mov eax, SYS_rt_sigaction; syscall; ret
];

let table: PinnedMemory | undefined;
const freeSlots: number[] = [];
let slotsUsed = 0;

function encodeHandler(tableAddress: number): Uint8Array {
  const address = new Uint8Array(new BigUint64Array([BigInt(tableAddress)]).buffer);
  return Uint8Array.from(HANDLER_X64.flatMap((byte) => (byte === TABLE ? [...address] : [byte])));
}

/** Whether this machine's architecture has a handler; where not, a truncated region ends the daemon. */
export const faultGuardAvailable = machineCodeHandlersAvailable;

/** Installs the SIGBUS handler of the process, once. A no-op where the architecture has none. */
export function installFaultGuard(): void {
  if (table !== undefined || !faultGuardAvailable) return;
  table = allocatePinned(SLOT_START + MAX_SLOTS * SLOT_BYTES);
  installMachineCodeHandler(SIGBUS, encodeHandler(table.address), 'SIGBUS');
}

/**
 * Guards `[address, address + length)`. Returns a slot for `hasFaulted` and `unguard`, or -1 where there is no guard.
 * @throws SysError - ENOMEM: all slots are taken
 */
export function guard(address: number, length: number): number {
  if (table === undefined) return -1;
  const slot = freeSlots.pop() ?? slotsUsed;
  if (slot >= MAX_SLOTS) throw new SysError('mmap', ENOMEM, `of more than ${MAX_SLOTS} shared mappings at once`);
  const offset = SLOT_START + slot * SLOT_BYTES;
  table.setU64(offset, address);
  table.setU64(offset + 8, address + length);
  table.data.setUint32(offset + 16, 0, true);
  if (slot === slotsUsed) {
    slotsUsed += 1;
    table.setU64(0, slotsUsed);
  }
  return slot;
}

/** Whether a page of the guarded range was found missing since `guard`. */
export function hasFaulted(slot: number): boolean {
  return slot !== -1 && table !== undefined && table.data.getUint32(SLOT_START + slot * SLOT_BYTES + 16, true) !== 0;
}

/** Ends the guard of a slot. The mapping must be gone or anonymous by now. */
export function unguard(slot: number): void {
  if (slot === -1 || table === undefined) return;
  const offset = SLOT_START + slot * SLOT_BYTES;
  table.setU64(offset, 0);
  table.setU64(offset + 8, 0);
  freeSlots.push(slot);
}
