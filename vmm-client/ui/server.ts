/** The page's server: listens for browsers, on the machine's own address unless there is a token. */

import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { UiApp } from './app.ts';
import { isLoopback, MIN_TOKEN_CHARACTERS } from './guard.ts';
import { loadStaticFiles } from './static-files.ts';
import { Watcher } from './watcher.ts';

const MAX_CONNECTIONS = 512;

/** Of what was asked for something cannot be. */
export class UiOptionsError extends Error {
  override readonly name = 'UiOptionsError';
  readonly code = 'UI_OPTIONS';
}

export interface UiServerOptions {
  /** An address, or `localhost`. */
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  /** The API sockets there are now. */
  readonly sockets: () => readonly string[];
  /** Whoever is to see anything has to have it, where there is one. */
  readonly token: string | undefined;
  /** Whether the page may change what machines do, and type at their consoles. */
  readonly control: boolean;
  /** Names besides addresses and localhost that lead here. */
  readonly hostNames: readonly string[];
  readonly log: (line: string) => void;
  /** Where the page's files are; by default beside this module, where the build puts them. */
  readonly pageDirectory?: string;
}

export class UiServer {
  readonly #app: UiApp;
  readonly #watcher: Watcher;
  readonly #host: string;

  private constructor(options: UiServerOptions) {
    const { sockets, token, control, hostNames, log } = options;
    this.#host = options.host;
    this.#watcher = new Watcher({ sockets, control });
    this.#app = new UiApp({
      watcher: this.#watcher,
      control,
      token,
      hostNames: new Set(hostNames.map((name) => name.toLowerCase())),
      port: () => this.port,
      files: loadStaticFiles(options.pageDirectory ?? fileURLToPath(new URL('page', import.meta.url))),
      log,
    });
    this.#app.server.server.maxConnections = MAX_CONNECTIONS;
  }

  /**
   * Serves the page.
   * @throws UiOptionsError - others could reach it, or it could control machines, and there is no token
   * @throws Error with `code` - the address is not to be had
   */
  static async listen(options: UiServerOptions): Promise<UiServer> {
    const { host, port, token, control } = options;
    if (token === undefined && !isLoopback(host)) {
      throw new UiOptionsError(`${host} can be reached from other machines: a token is needed (--token-file)`);
    }
    if (token === undefined && control) {
      throw new UiOptionsError(
        'every user of this machine could control the virtual machines: a token is needed (--token-file)',
      );
    }
    if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) {
      throw new UiOptionsError('the token has characters other than printable ASCII, or spaces in it');
    }
    if (token !== undefined && token.length < MIN_TOKEN_CHARACTERS) {
      throw new UiOptionsError(`the token has ${token.length} characters, ${MIN_TOKEN_CHARACTERS} are needed`);
    }
    const ui = new UiServer(options);
    try {
      await ui.#app.server.listen({ host, port });
      return ui;
    } catch (error) {
      await ui.close();
      throw error;
    }
  }

  get port(): number {
    return (this.#app.server.server.address() as AddressInfo | null)?.port ?? 0;
  }

  /** Where the page is. */
  get url(): string {
    return `http://${this.#host.includes(':') ? `[${this.#host}]` : this.#host}:${this.port}/`;
  }

  /** Ends all answers and connections. Idempotent. */
  async close(): Promise<void> {
    this.#watcher.close();
    this.#app.endStreams();
    await this.#app.server.close();
  }
}
