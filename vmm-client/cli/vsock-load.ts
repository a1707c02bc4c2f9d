/**
 * The loads of `ringside vsock bench`: a number of connections that send, receive, go back and forth, or come and go, from
 * the guest's place. Payload is written into shared memory once, or not at all: what goes out is what its slot has in it,
 * what comes in is counted where it lies. Nothing is allocated per packet.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import type { VsockConnection, VsockHandler } from '../driver/vsock-connection.ts';
import type { VsockDriver } from '../driver/vsock-driver.ts';
import type { VsockLoadName } from './bench-choices.ts';
import { Histogram } from './histogram.ts';

/** How often the clock and the user are looked at, in milliseconds. */
const TICK_MS = 50;
const NANOSECONDS = 1e6;

/** Ports of the peer, from the one that the user names. Source of these places: vsock-peer.ts. */
const PEER_PORTS = { sink: 0, source: 1, echo: 2 } as const;

export interface VsockLoadOptions {
  readonly load: VsockLoadName;
  /** Bytes of one write, or of one round trip. */
  readonly sizeBytes: number;
  readonly connections: number;
  /** First port of the peer; for `accept` the port of the guest. */
  readonly port: number;
  /** Not measured, then measured, in milliseconds. */
  readonly rampMs: number;
  readonly durationMs: number;
  /** How long nothing may move. */
  readonly timeoutMs: number;
}

export interface VsockLoadResult {
  readonly elapsedMs: number;
  readonly bytes: number;
  /** Round trips, or connections that were opened and ended. */
  readonly operations: number;
  /** Of a round trip, or of opening a connection, in nanoseconds. */
  readonly latency: Histogram;
  readonly kicks: number;
  readonly sleeps: number;
}

export class VsockLoad implements VsockHandler {
  readonly #driver: VsockDriver;
  readonly #options: VsockLoadOptions;
  readonly #connections = new Set<VsockConnection>();
  #latency = new Histogram();
  #bytes = 0;
  #operations = 0;
  #isEnding = false;
  #failure: Error | undefined;
  #wake: () => void = () => undefined;
  readonly #startedAt = new Map<VsockConnection, number>();
  /** Bytes of the round trip that are still to be sent, and to come back. */
  readonly #unsent = new Map<VsockConnection, number>();
  readonly #awaited = new Map<VsockConnection, number>();

  constructor(driver: VsockDriver, options: VsockLoadOptions) {
    this.#driver = driver;
    this.#options = options;
  }

  /**
   * Runs the load to its end, or until `interrupted`.
   * @throws VsockError, PeerError - a connection failed, or nothing moved in time
   */
  async run(interrupted: AbortSignal, onProgress: (elapsedMs: number) => void): Promise<VsockLoadResult> {
    const { rampMs, durationMs, timeoutMs, load, port, connections } = this.#options;
    if (load === 'accept') this.#driver.serve(port, 'stream', (connection) => this.#accept(connection));
    else for (let i = 0; i < connections; i++) this.#dial();
    const started = performance.now();
    let measuredFrom: number | undefined;
    let [sleeps, kicks] = [0, 0];
    let [movedAt, moved] = [started, -1];
    for (;;) {
      const now = performance.now();
      if (this.#failure !== undefined) throw this.#failure;
      if (measuredFrom === undefined && now - started >= rampMs) {
        measuredFrom = now;
        this.#forget();
        ({ sleeps, kicks } = this.#driver);
        moved = -1;
      }
      const seen = this.#bytes + this.#operations;
      if (seen !== moved) [moved, movedAt] = [seen, now];
      else if (now - movedAt > timeoutMs) throw new PeerError(`nothing moved for ${timeoutMs} ms`);
      onProgress(measuredFrom === undefined ? 0 : now - measuredFrom);
      if (interrupted.aborted || (measuredFrom !== undefined && now - measuredFrom >= durationMs)) {
        const elapsedMs = measuredFrom === undefined ? 0 : now - measuredFrom;
        // An interrupt during the ramp leaves nothing to report.
        if (measuredFrom === undefined) this.#forget();
        const result = {
          elapsedMs,
          bytes: this.#bytes,
          operations: this.#operations,
          latency: this.#latency,
          kicks: this.#driver.kicks - kicks,
          sleeps: this.#driver.sleeps - sleeps,
        };
        this.#end();
        return result;
      }
      const phaseEnd = measuredFrom === undefined ? started + rampMs : measuredFrom + durationMs;
      await this.#nap(Math.min(TICK_MS, phaseEnd - now));
    }
  }

  onOpen(connection: VsockConnection): void {
    const { load } = this.#options;
    if (load === 'connect') {
      this.#record(connection);
      connection.close();
    } else if (load === 'tx') {
      this.#fill(connection);
    } else if (load === 'rr') {
      this.#ask(connection);
    }
  }

  onWritable(connection: VsockConnection): void {
    if (this.#isEnding) return;
    if (this.#options.load === 'tx') this.#fill(connection);
    else if (this.#options.load === 'rr') this.#sendRest(connection);
  }

  onReadable(connection: VsockConnection): void {
    // The host has ended it.
    if (connection.hasEnded) connection.close();
  }

  onData(connection: VsockConnection, _bytes: Uint8Array, start: number, end: number): void {
    this.#bytes += end - start;
    if (this.#options.load !== 'rr' || this.#isEnding) return;
    const missing = (this.#awaited.get(connection) ?? 0) - (end - start);
    this.#awaited.set(connection, missing);
    if (missing > 0) return;
    this.#record(connection);
    this.#operations += 1;
    this.#ask(connection);
  }

  onClose(connection: VsockConnection, error: Error | undefined): void {
    this.#connections.delete(connection);
    this.#startedAt.delete(connection);
    if (this.#isEnding) return;
    const { load } = this.#options;
    if (load === 'accept') {
      this.#operations += 1;
    } else if (error !== undefined || load !== 'connect') {
      this.#fail(error ?? new PeerError(`${connection.name}: the peer ended the connection`));
    } else {
      this.#operations += 1;
      this.#dial();
    }
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#wake();
  }

  #forget(): void {
    this.#latency = new Histogram();
    this.#bytes = 0;
    this.#operations = 0;
  }

  #end(): void {
    this.#isEnding = true;
    for (const connection of this.#connections) connection.reset();
  }

  #dial(): void {
    const { load, port } = this.#options;
    const place = load === 'rx' ? PEER_PORTS.source : load === 'rr' ? PEER_PORTS.echo : PEER_PORTS.sink;
    try {
      const now = performance.now();
      const connection = this.#driver.dial(port + place, {}, this);
      this.#connections.add(connection);
      this.#startedAt.set(connection, now);
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  #accept(connection: VsockConnection): VsockHandler {
    this.#connections.add(connection);
    return this;
  }

  /** Sends as long as there is room: the other side's buffer bounds it. */
  #fill(connection: VsockConnection): void {
    const { sizeBytes } = this.#options;
    if (!connection.canSend) return;
    for (;;) {
      const sent = connection.sendInPlace(sizeBytes);
      if (sent === 0) return;
      this.#bytes += sent;
    }
  }

  #ask(connection: VsockConnection): void {
    this.#startedAt.set(connection, performance.now());
    this.#awaited.set(connection, this.#options.sizeBytes);
    this.#unsent.set(connection, this.#options.sizeBytes);
    this.#sendRest(connection);
  }

  #sendRest(connection: VsockConnection): void {
    let rest = this.#unsent.get(connection) ?? 0;
    while (rest > 0 && connection.canSend) {
      const sent = connection.sendInPlace(rest);
      if (sent === 0) break;
      rest -= sent;
    }
    this.#unsent.set(connection, rest);
  }

  #record(connection: VsockConnection): void {
    const since = this.#startedAt.get(connection);
    if (since !== undefined) this.#latency.record(Math.round((performance.now() - since) * NANOSECONDS));
  }

  async #nap(timeMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, timeMs));
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = () => undefined;
  }
}
