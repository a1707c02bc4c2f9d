/** Lines of a stream whose writer is not trusted to end them: what is kept of one has a limit. */

import type { Readable } from 'node:stream';

const NEWLINE = 0x0a;
/** Bytes that are kept of a line; what follows them is thrown away as it comes. */
export const MAX_LINE_BYTES = 16 * 1024;

class BoundedLines {
  readonly #line = Buffer.allocUnsafe(MAX_LINE_BYTES);
  readonly #take: (line: string) => void;
  #length = 0;

  constructor(take: (line: string) => void) {
    this.#take = take;
  }

  push(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      this.#keep(chunk.subarray(start, end));
      this.#finish();
      start = end + 1;
    }
    this.#keep(chunk.subarray(start));
  }

  /** The stream is at its end: what has no newline is a line too. */
  end(): void {
    if (this.#length > 0) this.#finish();
  }

  #keep(bytes: Buffer): void {
    this.#length += bytes.copy(this.#line, this.#length);
  }

  #finish(): void {
    const line = this.#line.toString('utf8', 0, this.#length);
    this.#length = 0;
    this.#take(line);
  }
}

/** Calls `take` with every line of `stream`, without its newline: its first 16 KiB where it is longer. */
export function onLines(stream: Readable, take: (line: string) => void): void {
  const lines = new BoundedLines(take);
  stream.on('data', (chunk: Buffer) => lines.push(chunk));
  stream.on('end', () => lines.end());
}
