/**
 * Signal handlers in machine code, for signals that JavaScript cannot handle: they run in the thread that is hit, at once.
 * x86-64 only.
 */

import { checked, libc, viewMemory } from './libc.ts';
import { allocatePinned, mappedAddress } from './pinned.ts';

const PROT_READ_WRITE = 3;
const PROT_READ_EXEC = 5;
const PAGE_BYTES = 4096;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const SA_SIGINFO = 4;

/** Whether handlers can be had on this architecture. */
export const machineCodeHandlersAvailable = process.arch === 'x64';

/** Address of the process's handler of a signal; 0 is its default action, 1 that it is ignored. @throws SysError */
export function installedHandler(signal: number): number {
  const action = allocatePinned(152);
  checked(libc.sigaction(signal, 0, action.address), 'sigaction', `${signal}`);
  return Number(action.data.getBigUint64(0, true));
}

/**
 * Makes `code` (at most a page, System V: rdi = signal, rsi = siginfo) the handler of `signal` in this process, for good.
 * @throws SysError - memory cannot be made executable here
 */
export function installMachineCodeHandler(signal: number, code: Uint8Array, name: string): void {
  const address = mappedAddress(libc.mmap(0, PAGE_BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0));
  new Uint8Array(viewMemory(address, PAGE_BYTES)).set(code);
  checked(libc.mprotect(address, PAGE_BYTES, PROT_READ_EXEC), 'mprotect', `${name} handler`);
  // glibc's struct sigaction: handler @0, mask @8 (128 bytes), flags @136, restorer @144.
  const action = allocatePinned(152);
  action.setU64(0, address);
  action.data.setUint32(136, SA_SIGINFO, true);
  checked(libc.sigaction(signal, action.address, 0), 'sigaction', name);
}
