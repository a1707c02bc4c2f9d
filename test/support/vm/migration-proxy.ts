/**
 * Stands between the source and the destination of a migration, knows where the frames of the source begin, and does
 * what a test wants before one of a kind goes on. Of the format it knows what is written here: a preamble of 16 bytes,
 * then frames with a header of 16 bytes, type @0 and bytes of payload @4, little endian.
 */

import { connect, createServer, type Socket } from 'node:net';
import type { Cleanup } from '../cleanup.ts';

/** Types of frames from the source. */
export const FRAME = { config: 1, pages: 2, round: 3, state: 4, go: 5 } as const;

const PREAMBLE_BYTES = 16;
const HEADER_BYTES = 16;

export class MigrationProxy {
  readonly #type: number;
  readonly #act: (proxy: MigrationProxy) => void | Promise<void>;
  #sockets: Socket[] = [];
  #buffered = Buffer.alloc(0);
  /** Bytes up to the next header. */
  #rest = PREAMBLE_BYTES;
  #isDone = false;
  #turn: Promise<void> = Promise.resolve();

  private constructor(type: number, act: (proxy: MigrationProxy) => void | Promise<void>) {
    this.#type = type;
    this.#act = act;
  }

  /** Listens at `path` for a source, and calls `act` before the first frame of `type` goes on to the destination at `target`. */
  static async listen(
    cleanup: Cleanup,
    path: string,
    target: string,
    type: number,
    act: (proxy: MigrationProxy) => void | Promise<void>,
  ): Promise<MigrationProxy> {
    const proxy = new MigrationProxy(type, act);
    const server = createServer((source) => {
      server.close();
      proxy.#join(source, connect(target));
    });
    cleanup.add(() => {
      server.close();
      proxy.cut();
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return proxy;
  }

  /** Ends both connections. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(source: Socket, destination: Socket): void {
    this.#sockets = [source, destination];
    for (const socket of this.#sockets) {
      socket.on('error', () => this.cut());
      socket.on('close', () => this.cut());
    }
    destination.on('data', (chunk: Buffer) => source.write(chunk));
    source.on('data', (chunk: Buffer) => {
      source.pause();
      this.#turn = this.#turn.then(async () => {
        await this.#pass(chunk, destination);
        source.resume();
      });
    });
  }

  async #pass(chunk: Buffer, destination: Socket): Promise<void> {
    this.#buffered = Buffer.concat([this.#buffered, chunk]);
    for (;;) {
      if (this.#rest > 0) {
        const piece = this.#buffered.subarray(0, this.#rest);
        if (piece.length === 0) return;
        destination.write(piece);
        this.#buffered = this.#buffered.subarray(piece.length);
        this.#rest -= piece.length;
        continue;
      }
      if (this.#buffered.length < HEADER_BYTES) return;
      if (!this.#isDone && this.#buffered.readUInt32LE(0) === this.#type) {
        this.#isDone = true;
        await this.#act(this);
      }
      this.#rest = HEADER_BYTES + this.#buffered.readUInt32LE(4);
    }
  }
}
