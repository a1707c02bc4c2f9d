/**
 * A snapshot as files of one directory, named as Cloud Hypervisor's:
 *
 *     config.json     the configuration
 *     state.json      layout, processors, devices: as `encodeState` writes it. There last: where it is, all is
 *     memory-ranges   RAM, one range after the other; holes and pages of zeros are holes
 *
 * What is in them is the guest's memory: they are for the owner of this process alone (mode 0600).
 */

import { type FileHandle, mkdir, open, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { nextFileData } from '../../../protocol/sys/sparse-file.ts';
import { VmConfigError, VmError } from '../errors.ts';
import { PAGE_BYTES } from '../layout.ts';
import type { TargetMemory } from './memory-receiver.ts';
import { isZero, type SourceMemory } from './memory-sender.ts';

export const CONFIG_FILE = 'config.json';
export const STATE_FILE = 'state.json';
export const MEMORY_FILE = 'memory-ranges';
/** In the order in which they get their names. */
const FILES = [MEMORY_FILE, CONFIG_FILE, STATE_FILE] as const;
const PARTIAL = '.partial';

const MAX_CONFIG_BYTES = 1024 * 1024;
const MAX_STATE_BYTES = 64 * 1024 * 1024;
/** Of one write or read, and how many are under way at the same time. */
const PIECE_BYTES = 1024 * 1024;
const PIECES = 4;

/** Of a snapshot, what is not memory. */
export interface SnapshotTexts {
  readonly config: Buffer;
  readonly state: Buffer;
}

/** Hears of every piece of memory that is done, and throws to end it. */
export type OnPiece = (bytes: number) => void;

/** At most PIECES promises at a time; the first failure is everybody's. */
class Pieces {
  readonly #underWay = new Set<Promise<void>>();
  #failure: Error | undefined;

  async start(piece: () => Promise<void>): Promise<void> {
    while (this.#underWay.size >= PIECES) await Promise.race(this.#underWay);
    if (this.#failure !== undefined) throw this.#failure;
    const promise = piece()
      .catch((error: Error) => {
        this.#failure ??= error;
      })
      .finally(() => this.#underWay.delete(promise));
    this.#underWay.add(promise);
  }

  /** Nothing is under way afterwards, whatever happened. */
  async settle(): Promise<void> {
    await Promise.all(this.#underWay);
  }

  async finish(): Promise<void> {
    await this.settle();
    if (this.#failure !== undefined) throw this.#failure;
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/**
 * Makes a directory that a power failure leaves there: its name is in the parent, and files that were synced are lost
 * with the name of the directory that has them. One that is there already is somebody else's, and as durable as they made it.
 */
async function makeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return;
    throw new VmConfigError(`the snapshot's directory cannot be made: ${message}`);
  }
  try {
    await syncDirectory(dirname(path));
  } catch (error) {
    await rmdir(path);
    throw new VmConfigError(`the snapshot's directory cannot be made for good: ${(error as Error).message}`);
  }
}

/** A directory that is to become a snapshot. Nothing of it is there under its name until `commit`. */
export class SnapshotWriter {
  readonly #directory: string;
  /** Files that have their names. */
  readonly #named: string[] = [];

  private constructor(directory: string) {
    this.#directory = directory;
  }

  /**
   * Makes the directory where it is not there.
   * @throws VmConfigError - it has a snapshot already, or cannot be had
   */
  static async create(directory: string): Promise<SnapshotWriter> {
    await makeDirectory(directory);
    const isThere = await stat(join(directory, STATE_FILE)).then(
      () => true,
      () => false,
    );
    if (isThere) throw new VmConfigError(`${directory} has a snapshot already (${STATE_FILE})`);
    return new SnapshotWriter(directory);
  }

  /** @throws VmError - it cannot be written, for want of space for instance */
  async writeMemory(memory: SourceMemory, onPiece: OnPiece): Promise<void> {
    await this.#write(MEMORY_FILE, (file) => writeMemory(file, memory, onPiece));
  }

  /** @throws VmError */
  async writeTexts({ config, state }: SnapshotTexts): Promise<void> {
    await this.#write(CONFIG_FILE, (file) => file.writeFile(config));
    await this.#write(STATE_FILE, (file) => file.writeFile(state));
  }

  async #write(name: string, write: (file: FileHandle) => Promise<void>): Promise<void> {
    const path = join(this.#directory, name);
    let file: FileHandle | undefined;
    try {
      file = await open(path + PARTIAL, 'w', 0o600);
      await write(file);
      await file.sync();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
      throw new VmError(`snapshot: ${path} is not written: ${(error as Error).message}`, { cause: error });
    } finally {
      await file?.close();
    }
  }

  /** Gives the files their names, for good. @throws VmError */
  async commit(): Promise<void> {
    try {
      for (const name of FILES) {
        await rename(join(this.#directory, name + PARTIAL), join(this.#directory, name));
        this.#named.push(name);
      }
      await syncDirectory(this.#directory);
    } catch (error) {
      throw new VmError(`snapshot: ${(error as Error).message}`, { cause: error });
    }
  }

  /** Takes away what was written; the directory stays, with what was in it before. */
  async discard(): Promise<void> {
    for (const name of this.#named.splice(0).reverse()) await rm(join(this.#directory, name), { force: true });
    for (const name of FILES) await rm(join(this.#directory, name + PARTIAL), { force: true });
  }
}

async function writeMemory(file: FileHandle, memory: SourceMemory, onPiece: OnPiece): Promise<void> {
  const pieces = new Pieces();
  const size = memory.ranges.reduce((sum, { length }) => sum + length, 0);
  await file.truncate(size);
  let base = 0;
  try {
    for (const range of memory.ranges) {
      for (const data of memory.dataRanges(range)) {
        const end = data.guestAddress + data.length;
        for (let at = data.guestAddress; at < end; at += PIECE_BYTES) {
          const length = Math.min(PIECE_BYTES, end - at);
          const bytes = memory.bytes({ guestAddress: at, length });
          const offset = base + at - range.guestAddress;
          await pieces.start(async () => {
            await writePages(file, bytes, offset);
            onPiece(length);
          });
        }
      }
      base += range.length;
    }
    await pieces.finish();
  } finally {
    await pieces.settle();
  }
}

/** Writes runs of pages that are not all zero. */
async function writePages(file: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let start = 0; start < bytes.length; ) {
    if (isZero(bytes, start, PAGE_BYTES)) {
      start += PAGE_BYTES;
      continue;
    }
    let end = start + PAGE_BYTES;
    while (end < bytes.length && !isZero(bytes, end, PAGE_BYTES)) end += PAGE_BYTES;
    for (let at = start; at < end; ) at += (await file.write(bytes, at, end - at, offset + at)).bytesWritten;
    start = end;
  }
}

async function readText(directory: string, name: string, maximum: number): Promise<Buffer> {
  const path = join(directory, name);
  try {
    const file = await open(path, 'r');
    try {
      const { size } = await file.stat();
      if (size > maximum) throw new VmError(`${path} has ${size} bytes, at most ${maximum} are possible`);
      return await file.readFile();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof VmError) throw error;
    if (name === STATE_FILE && (error as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new VmConfigError(`${directory} has no whole snapshot: there is no ${name}`);
    }
    throw new VmConfigError(`snapshot: ${(error as Error).message}`);
  }
}

/** @throws VmConfigError - there is no whole snapshot @throws VmError - a file is too large to be one of it */
export async function readTexts(directory: string): Promise<SnapshotTexts> {
  const state = await readText(directory, STATE_FILE, MAX_STATE_BYTES);
  return { state, config: await readText(directory, CONFIG_FILE, MAX_CONFIG_BYTES) };
}

/** Fills RAM, which is zero, from a snapshot. @throws VmConfigError, VmError - the file is not this RAM's, or cannot be read */
export async function readMemory(directory: string, memory: TargetMemory, onPiece: OnPiece): Promise<void> {
  const path = join(directory, MEMORY_FILE);
  let file: FileHandle | undefined;
  try {
    file = await open(path, 'r');
    const { size } = await file.stat();
    const wanted = memory.ranges.reduce((sum, { length }) => sum + length, 0);
    if (size !== wanted) throw new VmError(`${path} has ${size} bytes, and the guest's RAM has ${wanted}`);
    await fillMemory(file, memory, onPiece);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new VmError(`snapshot: ${path} is not read: ${(error as Error).message}`, { cause: error });
  } finally {
    await file?.close();
  }
}

async function fillMemory(file: FileHandle, memory: TargetMemory, onPiece: OnPiece): Promise<void> {
  const pieces = new Pieces();
  let base = 0;
  try {
    for (const { guestAddress, length } of memory.ranges) {
      const end = base + length;
      for (let data = nextFileData(file.fd, base, end); data !== undefined; ) {
        const dataEnd = data.start + data.length;
        for (let at = data.start; at < dataEnd; at += PIECE_BYTES) {
          const pieceBytes = Math.min(PIECE_BYTES, dataEnd - at);
          const bytes = memory.bytes({ guestAddress: guestAddress + at - base, length: pieceBytes });
          const offset = at;
          await pieces.start(async () => {
            await readFully(file, bytes, offset);
            onPiece(pieceBytes);
          });
        }
        data = nextFileData(file.fd, dataEnd, end);
      }
      base = end;
    }
    await pieces.finish();
  } finally {
    await pieces.settle();
  }
}

async function readFully(file: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const { bytesRead } = await file.read(bytes, at, bytes.length - at, offset + at);
    if (bytesRead === 0)
      throw new VmError(`${MEMORY_FILE} ended at ${offset + at}: it became shorter while it was read`);
    at += bytesRead;
  }
}
