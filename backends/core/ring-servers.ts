/** The servers of one front end's rings, one a thread, and which ring is whose. */

import type { RingServer } from './ring-server.ts';

export class RingServers {
  readonly #servers: readonly RingServer[];
  readonly #laneOf: (ring: number) => number;

  /** @param laneOf rings with the same number are served by the same server */
  constructor(servers: readonly RingServer[], laneOf: (ring: number) => number) {
    this.#servers = servers;
    this.#laneOf = laneOf;
  }

  /** The server of a ring. */
  of(ring: number): RingServer {
    return this.#servers[this.#laneOf(ring) % this.#servers.length] as RingServer;
  }

  /** Asks all of them, and waits for all. */
  async all(ask: (server: RingServer) => Promise<void>): Promise<void> {
    await Promise.all(this.#servers.map(ask));
  }
}
