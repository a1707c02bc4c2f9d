/** HTTP over a Unix socket as bytes, so that tests see what is on the wire and can send what no client would. */

import { connect, type Socket } from 'node:net';

/** A connection as bytes: what was received so far, and when it ended. */
export class Wire {
  readonly socket: Socket;
  #received = '';
  #waiting: (() => void) | undefined;
  ended = false;

  /** The caller destroys `socket`. */
  constructor(path: string) {
    this.socket = connect(path);
    this.socket.setEncoding('utf8');
    this.socket.on('data', (text) => {
      this.#received += text;
      this.#waiting?.();
    });
    const end = () => {
      this.ended = true;
      this.#waiting?.();
    };
    this.socket.on('end', end);
    this.socket.on('close', end);
    // EPIPE where the server answered and closed before everything was sent.
    this.socket.on('error', end);
  }

  async #until(done: () => boolean): Promise<void> {
    while (!done()) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }

  /** Everything that came until the server closed. */
  async rest(): Promise<string> {
    await this.#until(() => this.ended);
    return this.#received;
  }

  /** Waits for a text and returns everything up to its end, which is consumed. */
  async take(text: string): Promise<string> {
    await this.#until(() => this.#received.includes(text) || this.ended);
    const end = this.#received.indexOf(text) + text.length;
    const taken = this.#received.slice(0, end);
    this.#received = this.#received.slice(end);
    return taken;
  }
}

export interface Answer {
  readonly status: number;
  readonly headers: string;
  readonly body: string;
}

/** One request in full, on a connection of its own. */
export async function ask(path: string, method: string, target: string, body?: string, headers = ''): Promise<Answer> {
  const wire = new Wire(path);
  const length = body === undefined ? '' : `Content-Length: ${Buffer.byteLength(body)}\r\n`;
  wire.socket.write(
    `${method} ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers}${length}\r\n${body ?? ''}`,
  );
  const [head = '', ...rest] = (await wire.rest()).split('\r\n\r\n');
  return { status: Number(/^HTTP\/1\.1 (\d+) /.exec(head)?.[1]), headers: head, body: rest.join('\r\n\r\n') };
}
