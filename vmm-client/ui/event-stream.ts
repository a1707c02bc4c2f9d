/**
 * Server-sent events: one answer that goes on. A reader that does not keep up is cut off when MAX_WAITING_BYTES wait for it
 * and there is more to say; its browser comes back by itself. Source: HTML Living Standard, 9.2 Server-sent events.
 */

import type { ServerResponse } from 'node:http';

const MAX_WAITING_BYTES = 1024 * 1024;
/** So that a reader that is gone is noticed, and proxies do not give up. */
const HEARTBEAT_MS = 15_000;
/** What a browser waits before it comes back. */
const RETRY_MS = 1000;

/** One event in its wire form: data of one line. */
export function encodeEvent(name: string, data: unknown): string {
  // JSON has no raw line ends, so that one field holds it.
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
}

export class EventStream {
  readonly #response: ServerResponse;
  readonly #heartbeat: NodeJS.Timeout;
  #onClose: () => void = () => undefined;
  #closed = false;

  /** Takes an answer over whose head was not sent. */
  constructor(response: ServerResponse, headers: Readonly<Record<string, string>>) {
    this.#response = response;
    response.writeHead(200, { ...headers, 'Content-Type': 'text/event-stream; charset=utf-8' });
    response.write(`retry: ${RETRY_MS}\n\n`);
    this.#heartbeat = setInterval(() => this.#write(':\n\n'), HEARTBEAT_MS);
    this.#heartbeat.unref();
    response.on('close', () => this.close());
    // A reader that hangs up is the end of this stream and of nothing else.
    response.on('error', () => this.close());
  }

  /** Who is told of the end, once; at once where it has come. */
  set onClose(told: () => void) {
    this.#onClose = told;
    if (this.#closed) told();
  }

  send(name: string, data: unknown): void {
    this.#write(encodeEvent(name, data));
  }

  /** Bytes that wait for the reader. */
  get waitingBytes(): number {
    return this.#response.writableLength;
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#heartbeat);
    this.#response.end();
    this.#onClose();
  }

  #write(text: string): void {
    if (this.#closed) return;
    if (this.#response.writableLength <= MAX_WAITING_BYTES) {
      this.#response.write(text);
      return;
    }
    this.#response.destroy();
    this.close();
  }
}
