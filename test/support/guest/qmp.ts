/**
 * The QEMU Machine Protocol: one JSON object a line over a Unix socket. We listen and QEMU connects, so that nothing
 * has to guess when QEMU's socket is there.
 */

import { createServer, type Server, type Socket } from 'node:net';

interface Message {
  readonly QMP?: unknown;
  readonly id?: number;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly data?: Record<string, unknown>;
}

/** An event of QEMU, DEVICE_DELETED for instance. */
export interface QmpEvent {
  readonly event: string;
  readonly data: Record<string, unknown>;
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class QmpConnection {
  readonly #server: Server;
  readonly #pending = new Map<number, Pending>();
  readonly #events: QmpEvent[] = [];
  readonly #connected: Promise<void>;
  #onEvent: () => void = () => {};
  #socket: Socket | undefined;
  #lastId = 0;
  #closed = false;

  private constructor(server: Server) {
    this.#server = server;
    this.#connected = new Promise((resolve) => {
      server.once('connection', (socket) => {
        this.#socket = socket;
        socket.on('error', () => {});
        socket.once('close', () => this.#fail());
        socket.setEncoding('utf8');
        let rest = '';
        socket.on('data', (text: string) => {
          const lines = (rest + text).split('\r\n');
          rest = lines.pop() ?? '';
          for (const line of lines) {
            const message = JSON.parse(line) as Message;
            if (message.QMP !== undefined) resolve();
            else this.#receive(message);
          }
        });
      });
    });
  }

  /** Listens at `path` for a QEMU started with `-chardev socket,path=...,server=off -mon mode=control`. */
  static async listen(path: string): Promise<QmpConnection> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
    return new QmpConnection(server);
  }

  /** Resolves when QEMU has connected and takes commands. */
  async negotiate(): Promise<void> {
    await this.#connected;
    await this.execute('qmp_capabilities');
  }

  /** Runs a command. @throws Error - with QEMU's own words when it refuses, or when QEMU ends. */
  execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const socket = this.#socket;
    if (socket === undefined || this.#closed) return Promise.reject(new Error(`${command}: QEMU is not connected`));
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject: (error) => reject(new Error(`${command}: ${error.message}`)) });
      socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** Resolves with the first event that matches, among those already seen too, and consumes it. */
  async waitForEvent(matches: (event: QmpEvent) => boolean, deadlineMs: number): Promise<QmpEvent> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      const index = this.#events.findIndex(matches);
      if (index >= 0) return this.#events.splice(index, 1)[0] as QmpEvent;
      const left = end - performance.now();
      if (left <= 0 || this.#closed) {
        throw new Error(`QEMU did not send the event; it sent: ${this.#events.map(({ event }) => event).join(' ')}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#onEvent = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  close(): void {
    this.#socket?.destroy();
    this.#server.close();
    this.#fail();
  }

  #receive(message: Message): void {
    if (message.event !== undefined) {
      this.#events.push({ event: message.event, data: message.data ?? {} });
      this.#onEvent();
      return;
    }
    const pending = message.id === undefined ? undefined : this.#pending.get(message.id);
    if (pending === undefined || message.id === undefined) return;
    this.#pending.delete(message.id);
    if (message.error === undefined) pending.resolve(message.return);
    else pending.reject(new Error(message.error.desc));
  }

  #fail(): void {
    this.#closed = true;
    for (const { reject } of this.#pending.values()) reject(new Error('QEMU closed the connection'));
    this.#pending.clear();
    this.#onEvent();
  }
}
