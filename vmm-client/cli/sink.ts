/** Where a command puts its bytes, in order: a file, or standard output for `-`. */

import { type FileHandle, open } from 'node:fs/promises';
import type { Writable } from 'node:stream';

/** A file that is not to be had, or full. `code` is the kernel's, such as ENOSPC. */
export class FileError extends Error {
  override readonly name = 'FileError';
  readonly code: string;

  constructor(path: string, cause: NodeJS.ErrnoException) {
    // `ENOSPC: no space left on device, write` says it best between colon and comma.
    const why = /^[A-Z0-9]+: ([^,]+)/.exec(cause.message)?.[1] ?? cause.message;
    super(`${path} cannot be written: ${why}`, { cause });
    this.code = cause.code ?? 'FILE';
  }
}

export interface Sink {
  /** All of them, before the promise is kept. One call at a time. @throws FileError */
  write(bytes: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

/** @throws FileError - the file cannot be created */
export async function openSink(output: string, stdout: Writable): Promise<Sink> {
  if (output === '-') {
    return {
      write: (bytes) =>
        new Promise((resolve, reject) => {
          stdout.write(bytes, (error) => (error ? reject(error) : resolve()));
        }),
      close: async () => undefined,
    };
  }
  const complain = (error: NodeJS.ErrnoException): never => {
    throw new FileError(output, error);
  };
  const file: FileHandle = await open(output, 'w').catch(complain);
  return {
    write: async (bytes) => {
      for (let done = 0; done < bytes.length; ) {
        done += (await file.write(bytes, done).catch(complain)).bytesWritten;
      }
    },
    close: () => file.close().catch(complain),
  };
}
