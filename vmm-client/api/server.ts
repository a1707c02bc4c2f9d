/**
 * The API on a Unix socket: who may connect, how many, and an orderly end. Import this lazily: the HTTP framework behind
 * it costs tens of milliseconds.
 */

import type { Server, ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import { removeStaleSocket } from '../../protocol/sys/unix-socket.ts';
import { type ApiOptions, createApp } from './app.ts';
import type { ConsoleStream } from './vmm-control.ts';

const MAX_CONNECTIONS = 1024;
/** How long `close` waits for answers that are under way. */
const CLOSE_DEADLINE_MS = 5000;

export interface ApiServerOptions extends ApiOptions {
  /** Of the socket: at most 107 bytes. */
  readonly path: string;
}

export class ApiServer {
  readonly #app: FastifyInstance;
  readonly #server: Server;
  /** Answers that are not on their way yet. */
  readonly #pending = new Set<ServerResponse>();
  /** Answers without an end. */
  readonly #streams = new Set<ConsoleStream>();
  #onIdle: () => void = () => undefined;
  #closing: Promise<void> | undefined;

  private constructor(options: ApiServerOptions) {
    this.#app = createApp(options, () => this.#closing !== undefined, this.#streams);
    this.#server = this.#app.server;
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('request', (_request, response: ServerResponse) => {
      this.#pending.add(response);
      response.once('close', () => this.#settle([response]));
    });
    // Answers in line behind another on a connection that ends hear nothing of it.
    this.#server.on('connection', (socket) => {
      socket.once('close', () => this.#settle([...this.#pending].filter(({ req }) => req.socket === socket)));
    });
  }

  /**
   * Serves at `path`, for the owner of this process alone (mode 0600). A socket file that nobody listens on is replaced.
   * @throws SysError - EADDRINUSE: another process listens there; the path is too long or not to be had
   */
  static async listen(options: ApiServerOptions): Promise<ApiServer> {
    const { path, log } = options;
    removeStaleSocket(path);
    const api = new ApiServer(options);
    await api.#app.ready();
    const server = api.#server;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.once('listening', resolve);
      // The file is made by bind, within this call: a chmod afterwards would leave a moment for others.
      const umask = process.umask(0o177);
      try {
        server.listen(path);
      } finally {
        process.umask(umask);
      }
    });
    server.on('error', (error) => log.error(`API socket: ${error.message}`));
    log.info(`API on ${path}`);
    return api;
  }

  #settle(responses: readonly ServerResponse[]): void {
    for (const response of responses) this.#pending.delete(response);
    if (this.#pending.size === 0) this.#onIdle();
  }

  /**
   * Stops listening and removes the socket, lets the answers under way finish (for at most 5 s), then closes every
   * connection. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const stream of this.#streams) stream.finish();
    // Whoever has not sent the whole request is not waited for.
    for (const { req } of this.#pending) if (!req.complete) req.destroy();
    let deadline: NodeJS.Timeout | undefined;
    if (this.#pending.size > 0) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
        deadline = setTimeout(resolve, CLOSE_DEADLINE_MS);
      });
    }
    clearTimeout(deadline);
    this.#server.closeAllConnections();
    await closed;
    await this.#app.close();
  }
}
