/**
 * A block daemon that is going to be treated badly, with the proof after each treatment that it took no harm: it runs,
 * it serves a correct client, it holds no descriptor or guest memory more than before, and the image is what it was.
 */

import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect } from 'vitest';
import { BlkBackend, type BlkBackendOptions } from '../backend-process.ts';
import { Cleanup } from '../cleanup.ts';
import { randomImage, sha256OfFile } from '../image.ts';
import { connectGood, type GoodClientOptions } from './good-client.ts';
import { eventually, sharedMappings } from './process-probe.ts';
import { type FrontendOptions, RawFrontend } from './raw-frontend.ts';

const IMAGE_BYTES = 4 << 20;

export class HostileDaemon {
  readonly image: string;
  readonly backend: BlkBackend;
  #hash: string;
  readonly #fds: number;
  readonly #client: GoodClientOptions;
  readonly #open: { close(): void }[] = [];

  private constructor(backend: BlkBackend, client: GoodClientOptions) {
    this.backend = backend;
    this.image = backend.image;
    this.#hash = sha256OfFile(backend.image);
    this.#client = client;
    this.#fds = backend.fdCount();
  }

  /** Starts a daemon on a random image. What it has open before the first front end is the measure for later. */
  static async start(
    cleanup: Cleanup,
    options: Partial<BlkBackendOptions> = {},
    client: GoodClientOptions = {},
  ): Promise<HostileDaemon> {
    const image = options.image ?? randomImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
    const backend = await BlkBackend.start(cleanup, { ...options, image });
    return new HostileDaemon(backend, client);
  }

  get socket(): string {
    return this.backend.socket;
  }

  /** A front end with every ring up; closed at the latest by `expectUnharmed`. */
  async start(options: FrontendOptions = {}): Promise<RawFrontend> {
    return this.keep(await RawFrontend.start(this.socket, options));
  }

  /** A front end that has connected and negotiated. */
  async negotiate(options: FrontendOptions = {}): Promise<RawFrontend> {
    const frontend = this.connect(options);
    await frontend.negotiate();
    return frontend;
  }

  /** A front end that has only connected. */
  connect(options: FrontendOptions = {}): RawFrontend {
    return this.keep(RawFrontend.connect(this.socket, options));
  }

  /** Something to close at the end of the test, in any case. */
  keep<T extends { close(): void }>(closable: T): T {
    this.#open.push(closable);
    return closable;
  }

  /** Serves a good client now, while others may still be connected. */
  async expectServesGoodClient(): Promise<void> {
    await connectGood(this.socket, this.#client);
  }

  /** Everybody leaves; then nothing may have changed. @throws Error - something has */
  async expectUnharmed(): Promise<void> {
    for (const closable of this.#open.splice(0)) closable.close();
    if (!this.backend.running) throw new Error(`the daemon ended:\n${this.backend.log().slice(-2000)}`);
    await this.expectServesGoodClient().catch((error: unknown) => {
      throw new Error(`a good client is not served any more; the log ends:\n${this.backend.log().slice(-2000)}`, {
        cause: error,
      });
    });
    const fds = this.#fds;
    await eventually(
      'open descriptors',
      () => this.backend.fdCount(),
      (count) => count === fds,
    );
    await eventually(
      'mappings of guest memory',
      () => sharedMappings(this.backend.pid),
      (count) => count === 0,
    );
    const before = this.#hash;
    this.#hash = sha256OfFile(this.image);
    // Remembered even when it differs, so that one culprit is one red test.
    expect(this.#hash).toBe(before);
  }
}

/** One daemon for all tests of the surrounding describe, checked after each of them. */
export const hostileDaemon = (
  options: Partial<BlkBackendOptions> = {},
  client: GoodClientOptions = {},
): (() => HostileDaemon) => {
  const cleanup = new Cleanup();
  let daemon: HostileDaemon | undefined;
  const get = (): HostileDaemon => {
    if (daemon === undefined) throw new Error('the daemon did not start');
    return daemon;
  };
  beforeAll(async () => {
    daemon = await HostileDaemon.start(cleanup, options, client);
  });
  afterEach(() => get().expectUnharmed());
  afterAll(() => cleanup.run());
  return get;
};
