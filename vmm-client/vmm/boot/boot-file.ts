/**
 * A file that the machine boots from (kernel or initramfs): opened, checked to be a file with something in it, and read
 * where it belongs, straight into guest memory. What is wrong with it is said in one sentence that begins with what the
 * file is for and its path.
 */

import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import type { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import { VmConfigError } from '../errors.ts';

/** Bytes of one read or fill: what GuestMemory finds in one window. */
const CHUNK_BYTES = 0x1000_0000;

const OPEN_FAULTS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file',
  ENOTDIR: 'no such file',
  EACCES: 'no permission to read it',
  EISDIR: 'not a regular file',
  ELOOP: 'too many symbolic links',
};

const codeOf = (error: unknown): string =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : String(error);

/** The bytes of guest memory at `address`, at most CHUNK_BYTES of them. */
const viewOf = (memory: GuestMemory, address: number, length: number): Uint8Array => {
  if (!memory.locate(address, length)) throw new RangeError(`no guest memory at 0x${address.toString(16)}`);
  return new Uint8Array(memory.view.buffer, memory.view.byteOffset + memory.offset, length);
};

/** Zeros in guest memory. The caller has checked that `[address, address + length)` is RAM. */
export const fillZeros = (memory: GuestMemory, address: number, length: number): void => {
  for (let done = 0; done < length; done += CHUNK_BYTES) {
    viewOf(memory, address + done, Math.min(CHUNK_BYTES, length - done)).fill(0);
  }
};

export class BootFile {
  /** `kernel /boot/vmlinuz`: how sentences about this file begin. */
  readonly what: string;
  readonly sizeBytes: number;
  readonly #fd: number;

  /** @throws VmConfigError - it cannot be opened, is not a regular file, or is empty */
  constructor(purpose: 'kernel' | 'initramfs', path: string) {
    this.what = `${purpose} ${path}`;
    this.#fd = this.#open(path);
    try {
      const stat = fstatSync(this.#fd);
      if (!stat.isFile()) throw this.fault('not a regular file');
      if (stat.size === 0) throw this.fault('the file is empty');
      this.sizeBytes = stat.size;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #open(path: string): number {
    if (path.includes('\0')) throw this.fault('no such file');
    try {
      // A FIFO would keep open(2) waiting for a writer.
      return openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      const code = codeOf(error);
      throw this.fault(OPEN_FAULTS[code] ?? `cannot be opened (${code})`);
    }
  }

  /** The error for a sentence about this file. */
  fault(sentence: string): VmConfigError {
    return new VmConfigError(`${this.what}: ${sentence}`);
  }

  /** Whether the file has `length` bytes at `offset`, neither of them trusted. */
  holds(offset: number, length: number): boolean {
    return offset <= this.sizeBytes && length <= this.sizeBytes - offset;
  }

  /** `length` bytes at `offset`, or as many as there are. */
  peek(offset: number, length: number): Uint8Array {
    const available = Math.min(length, Math.max(0, this.sizeBytes - offset));
    const bytes = new Uint8Array(available);
    this.#readExactly(bytes, offset);
    return bytes;
  }

  /**
   * Reads a part of the file into guest memory. The caller has checked that it is in the file, and that the target is RAM.
   * @throws VmConfigError - the file became shorter meanwhile, or cannot be read
   */
  readInto(memory: GuestMemory, address: number, offset: number, length: number): void {
    for (let done = 0; done < length; done += CHUNK_BYTES) {
      const step = Math.min(CHUNK_BYTES, length - done);
      this.#readExactly(viewOf(memory, address + done, step), offset + done);
    }
  }

  #readExactly(target: Uint8Array, offset: number): void {
    let done = 0;
    while (done < target.length) {
      const got = this.#readSome(target, done, offset + done);
      if (got === 0) throw this.fault(`the file ends at byte ${offset + done}, while it is read`);
      done += got;
    }
  }

  #readSome(target: Uint8Array, from: number, offset: number): number {
    try {
      return readSync(this.#fd, target, from, target.length - from, offset);
    } catch (error) {
      throw this.fault(`cannot be read (${codeOf(error)})`);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}
