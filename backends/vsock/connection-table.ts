/** Connections by address. A lookup allocates nothing; a guest that picks colliding ports makes it slower, within the table's limit. */

import type { Address, Connection } from './connection.ts';

function hash(guestPort: number, peerCid: number, peerPort: number): number {
  const mixed = Math.imul(guestPort, 0x9e37_79b1) ^ Math.imul(peerPort, 0x85eb_ca6b) ^ peerCid;
  // Small enough to be no heap number.
  return (mixed ^ (mixed >>> 15)) & 0x3fff_ffff;
}

export class ConnectionTable {
  readonly #buckets = new Map<number, Connection>();
  size = 0;

  find(guestPort: number, peerCid: number, peerPort: number): Connection | undefined {
    let connection = this.#buckets.get(hash(guestPort, peerCid, peerPort));
    while (connection !== undefined) {
      if (connection.guestPort === guestPort && connection.peerPort === peerPort && connection.peerCid === peerCid) {
        return connection;
      }
      connection = connection.nextInBucket;
    }
    return undefined;
  }

  has({ guestPort, peerCid, peerPort }: Address): boolean {
    return this.find(guestPort, peerCid, peerPort) !== undefined;
  }

  /** Its address is not in the table. */
  add(connection: Connection): void {
    const key = hash(connection.guestPort, connection.peerCid, connection.peerPort);
    connection.nextInBucket = this.#buckets.get(key);
    this.#buckets.set(key, connection);
    this.size += 1;
  }

  /** It is in the table. */
  remove(connection: Connection): void {
    const key = hash(connection.guestPort, connection.peerCid, connection.peerPort);
    const next = connection.nextInBucket;
    let before = this.#buckets.get(key);
    if (before === connection) {
      if (next === undefined) this.#buckets.delete(key);
      else this.#buckets.set(key, next);
    } else {
      while (before !== undefined && before.nextInBucket !== connection) before = before.nextInBucket;
      if (before !== undefined) before.nextInBucket = next;
    }
    connection.nextInBucket = undefined;
    this.size -= 1;
  }

  /** All of them, a copy. */
  all(): Connection[] {
    const all: Connection[] = [];
    for (const first of this.#buckets.values()) {
      for (let c: Connection | undefined = first; c !== undefined; c = c.nextInBucket) all.push(c);
    }
    return all;
  }
}
