/** Programs of the host: they connect to a guest's sockets, or listen for the guest. */

import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { watchReadable } from '../../../protocol/sys/readiness.ts';
import { UnixListener, UnixStream } from '../../../protocol/sys/unix-socket.ts';
import type { Cleanup } from '../cleanup.ts';
import { DEADLINE_MS } from './raw-connection.ts';

const SOCK_SEQPACKET = 5;

const within = async <T>(promise: Promise<T>, what: string, deadlineMs = DEADLINE_MS): Promise<T> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} in ${deadlineMs} ms`)), deadlineMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
};

/** A stream of the host, read as it is asked for. */
export class HostStream {
  readonly socket: Socket;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => undefined);
    socket.pause();
  }

  static async connect(cleanup: Cleanup, path: string): Promise<HostStream> {
    const socket = connect({ path, allowHalfOpen: true });
    cleanup.add(() => socket.destroy());
    const stream = new HostStream(socket);
    await within(once(socket, 'connect'), 'connection');
    return stream;
  }

  /** Connects to a port of the guest; the answer is still to come. */
  static async dial(cleanup: Cleanup, path: string, port: number): Promise<HostStream> {
    const stream = await HostStream.connect(cleanup, path);
    stream.socket.write(`CONNECT ${port}\n`);
    return stream;
  }

  write(bytes: Uint8Array | string): Promise<void> {
    return within(
      new Promise((resolve, reject) => this.socket.write(bytes, (error) => (error ? reject(error) : resolve()))),
      'end of a write',
      30_000,
    );
  }

  /** Exactly so many bytes. @throws Error - the end came before, or the deadline */
  async read(length: number, deadlineMs = 30_000): Promise<Buffer> {
    const end = performance.now() + deadlineMs;
    const parts: Buffer[] = [];
    for (let have = 0; have < length; ) {
      const part = this.socket.read(Math.min(length - have, Math.max(1, this.socket.readableLength))) as Buffer | null;
      if (part !== null) {
        parts.push(part);
        have += part.length;
        continue;
      }
      if (this.socket.readableEnded || this.socket.destroyed)
        throw new Error(`the end after ${have} of ${length} bytes`);
      const left = end - performance.now();
      await within(this.#change(), `byte ${have} of ${length}`, left);
    }
    return Buffer.concat(parts);
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        for (const name of ['readable', 'end', 'close', 'error']) this.socket.off(name, done);
        resolve();
      };
      for (const name of ['readable', 'end', 'close', 'error']) this.socket.on(name, done);
    });
  }

  /** One line without its end. */
  async readLine(): Promise<string> {
    let line = '';
    for (;;) {
      const byte = (await this.read(1)).toString('latin1');
      if (byte === '\n') return line;
      line += byte;
    }
  }

  /** Waits for the end of what the peer sends. @throws Error - something else comes */
  async waitForEnd(): Promise<void> {
    const { socket } = this;
    if (socket.readableEnded || socket.destroyed) return;
    // Who is cut off in the middle of sending hears of it as an error.
    const ended = new Promise<void>((resolve) => {
      for (const name of ['end', 'close', 'error']) socket.once(name, () => resolve());
    });
    socket.resume();
    await within(ended, 'end');
  }

  /** Ends our direction. */
  end(): void {
    this.socket.end();
  }

  destroy(): void {
    this.socket.destroy();
  }
}

/** Listens at a port for the guest. */
export class HostListener {
  readonly #server: Server;
  readonly #accepted: HostStream[] = [];
  #wake: () => void = () => undefined;

  private constructor(server: Server, cleanup: Cleanup) {
    this.#server = server;
    server.on('connection', (socket) => {
      cleanup.add(() => socket.destroy());
      this.#accepted.push(new HostStream(socket));
      this.#wake();
    });
  }

  static async listen(cleanup: Cleanup, path: string): Promise<HostListener> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
    cleanup.add(() => server.close());
    const listener = new HostListener(server, cleanup);
    server.listen(path);
    await within(once(server, 'listening'), 'listener');
    return listener;
  }

  async accept(): Promise<HostStream> {
    while (this.#accepted.length === 0) {
      await within(
        new Promise<void>((resolve) => {
          this.#wake = resolve;
        }),
        'connection of the guest',
      );
    }
    return this.#accepted.shift() as HostStream;
  }

  close(): void {
    this.#server.close();
  }
}

/** A connection of packets (SOCK_SEQPACKET). */
export class HostPackets {
  readonly stream: UnixStream;

  constructor(stream: UnixStream, cleanup: Cleanup) {
    this.stream = stream;
    cleanup.add(() => stream.close());
  }

  static connect(cleanup: Cleanup, path: string): HostPackets {
    return new HostPackets(UnixStream.connect(path, SOCK_SEQPACKET), cleanup);
  }

  send(message: Uint8Array | string): void {
    const bytes = typeof message === 'string' ? Buffer.from(message) : message;
    const sent = this.stream.send(bytes);
    if (sent !== bytes.length) throw new Error(`${sent} of ${bytes.length} bytes of a message were taken`);
  }

  /** The next message, up to 64 KiB; an empty one at the end. */
  async receive(): Promise<Buffer> {
    const target = new Uint8Array(65_536);
    for (;;) {
      const got = this.stream.receive(target, 0, target.length);
      if (got !== undefined) return Buffer.from(target.subarray(0, got.length));
      await within(readable(this.stream.fd), 'message');
    }
  }
}

const readable = (fd: number): Promise<void> =>
  new Promise((resolve) => {
    const watch = watchReadable(fd, () => {
      watch.close();
      resolve();
    });
  });

/** Listens at a port for the guest, with connections of packets. */
export class HostPacketListener {
  readonly #listener: UnixListener;
  readonly #cleanup: Cleanup;

  constructor(cleanup: Cleanup, path: string) {
    this.#cleanup = cleanup;
    this.#listener = UnixListener.listen(path, SOCK_SEQPACKET);
    cleanup.add(() => this.#listener.close());
  }

  async accept(): Promise<HostPackets> {
    for (;;) {
      const stream = this.#listener.accept();
      if (stream !== undefined) return new HostPackets(stream, this.#cleanup);
      await within(readable(this.#listener.fd), 'connection of the guest');
    }
  }
}
