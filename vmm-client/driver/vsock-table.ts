/** The connections of a driver, found by both ports and the other's CID without allocating, and the ports that are in use. */

/** What is looked for. */
export interface VsockEntry {
  readonly localPort: number;
  readonly remoteCid: number;
  readonly remotePort: number;
}

/** Ports from here on are given to those who do not ask for one. Linux's, too, begin above its reserved ones, 1023. */
const FIRST_EPHEMERAL_PORT = 1024;
/** Stands for any port. Source: linux/vm_sockets.h, VMADDR_PORT_ANY. */
const PORT_ANY = 0xffff_ffff;

interface Node<E> {
  readonly entry: E;
  next: Node<E> | undefined;
}

export class VsockTable<E extends VsockEntry> {
  readonly #buckets = new Map<number, Node<E>>();
  readonly #portUsers = new Map<number, number>();
  #size = 0;
  #lastPort: number;

  /** `seed` decides where ephemeral ports begin: a driver that starts anew is not to be taken for the one before. */
  constructor(seed: number) {
    this.#lastPort = FIRST_EPHEMERAL_PORT + (seed % (PORT_ANY - FIRST_EPHEMERAL_PORT));
  }

  get size(): number {
    return this.#size;
  }

  find(localPort: number, remoteCid: number, remotePort: number): E | undefined {
    let node = this.#buckets.get(hash(localPort, remoteCid, remotePort));
    while (node !== undefined) {
      const { entry } = node;
      if (entry.localPort === localPort && entry.remotePort === remotePort && entry.remoteCid === remoteCid) {
        return entry;
      }
      node = node.next;
    }
    return undefined;
  }

  add(entry: E): void {
    const key = hash(entry.localPort, entry.remoteCid, entry.remotePort);
    this.#buckets.set(key, { entry, next: this.#buckets.get(key) });
    this.#portUsers.set(entry.localPort, (this.#portUsers.get(entry.localPort) ?? 0) + 1);
    this.#size += 1;
  }

  /** Idempotent. */
  remove(entry: E): void {
    const key = hash(entry.localPort, entry.remoteCid, entry.remotePort);
    let before: Node<E> | undefined;
    let node = this.#buckets.get(key);
    while (node !== undefined && node.entry !== entry) {
      before = node;
      node = node.next;
    }
    if (node === undefined) return;
    if (before !== undefined) before.next = node.next;
    else if (node.next !== undefined) this.#buckets.set(key, node.next);
    else this.#buckets.delete(key);
    const users = this.#portUsers.get(entry.localPort) ?? 0;
    if (users > 1) this.#portUsers.set(entry.localPort, users - 1);
    else this.#portUsers.delete(entry.localPort);
    this.#size -= 1;
  }

  /** All entries, as they are now. */
  entries(): E[] {
    const all: E[] = [];
    for (const first of this.#buckets.values()) {
      for (let node: Node<E> | undefined = first; node !== undefined; node = node.next) all.push(node.entry);
    }
    return all;
  }

  /** A port that no connection has and `isTaken` does not know. */
  allocatePort(isTaken: (port: number) => boolean): number {
    do {
      this.#lastPort = this.#lastPort + 1 >= PORT_ANY ? FIRST_EPHEMERAL_PORT : this.#lastPort + 1;
    } while (this.#portUsers.has(this.#lastPort) || isTaken(this.#lastPort));
    return this.#lastPort;
  }
}

/** Odd numbers of 32 bits that spread neighbours: a multiplicative hash (Knuth, The Art of Computer Programming 3, 6.4). */
function hash(localPort: number, remoteCid: number, remotePort: number): number {
  return (Math.imul(localPort, 0x9e37_79b1) ^ Math.imul(remotePort, 0x85eb_ca6b) ^ remoteCid) >>> 0;
}
