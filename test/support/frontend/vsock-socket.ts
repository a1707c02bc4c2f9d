/** One connection as a program in the guest sees it, with the flow control of VIRTIO 1.3, 5.10.6.3 on top of VsockGuest. */

import type { VsockGuest } from './vsock-guest.ts';
import { EOM, OP, type PacketFieldsOf, RCV, SEND, STREAM, type VsockPacket } from './vsock-wire.ts';

const BUFFER = 0x4_0000;

export interface GuestAddress {
  readonly port: number;
  readonly peerPort: number;
  readonly peerCid?: number;
  readonly type?: number;
}

export class GuestSocket {
  readonly guest: VsockGuest;
  readonly port: number;
  readonly peerPort: number;
  readonly peerCid: number;
  readonly type: number;
  /** Bytes sent and received, free-running 32 bits; what the peer said of its own. */
  sent = 0;
  received = 0;
  peerAlloc = 0;
  peerForwarded = 0;
  /** Directions that the peer ended, SHUTDOWN flags; and whether it sent RST. */
  peerShutdown = 0;
  isReset = false;

  constructor(guest: VsockGuest, address: GuestAddress) {
    this.guest = guest;
    this.port = address.port;
    this.peerPort = address.peerPort;
    this.peerCid = address.peerCid ?? 2;
    this.type = address.type ?? STREAM;
  }

  /** Connects to a port of the host (or of another guest). @throws Error - the answer is not RESPONSE */
  static async connect(guest: VsockGuest, address: GuestAddress): Promise<GuestSocket> {
    const socket = new GuestSocket(guest, address);
    await socket.send(OP.REQUEST);
    const answer = await socket.next();
    if (answer.op !== OP.RESPONSE) throw new Error(`connect: op ${answer.op} is the answer`);
    return socket;
  }

  /** Waits for a connection to a port of the guest and accepts it. */
  static async accept(guest: VsockGuest, port: number, type = STREAM): Promise<GuestSocket> {
    const request = await guest.receiveAt(port, OP.REQUEST);
    if (request.type !== type) throw new Error(`a REQUEST of type ${request.type}`);
    const address = { port, peerPort: request.srcPort, peerCid: Number(request.srcCid), type };
    const socket = new GuestSocket(guest, address);
    socket.#note(request);
    await socket.send(OP.RESPONSE);
    return socket;
  }

  #note(packet: VsockPacket): void {
    this.peerAlloc = packet.bufAlloc;
    this.peerForwarded = packet.fwdCnt;
    if (packet.op === OP.SHUTDOWN) this.peerShutdown |= packet.flags;
    if (packet.op === OP.RST) this.isReset = true;
    if (packet.op === OP.RW) this.received = (this.received + packet.len) >>> 0;
  }

  /** The next packet of this connection. */
  async next(deadlineMs?: number): Promise<VsockPacket> {
    const mine = (p: VsockPacket): boolean =>
      p.dstPort === this.port && p.srcPort === this.peerPort && p.srcCid === this.peerCid;
    const packet = await this.guest.receive(mine, deadlineMs);
    this.#note(packet);
    return packet;
  }

  fields(op: number, extra: PacketFieldsOf = {}): PacketFieldsOf {
    return {
      dstCid: this.peerCid,
      srcPort: this.port,
      dstPort: this.peerPort,
      type: this.type,
      op,
      bufAlloc: BUFFER,
      fwdCnt: this.received,
      ...extra,
    };
  }

  async send(op: number, extra: PacketFieldsOf = {}, payload?: Uint8Array, cuts?: readonly number[]): Promise<void> {
    await this.guest.send(this.fields(op, extra), payload, cuts);
  }

  get room(): number {
    return this.peerAlloc - ((this.sent - this.peerForwarded) >>> 0);
  }

  /** Sends bytes as the peer gives credit, in packets of up to 64 KiB. */
  async write(bytes: Uint8Array, flags = 0): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      while (this.room === 0) {
        const packet = await this.next();
        if (packet.op === OP.RST) throw new Error('write: the connection was reset');
        if (packet.op === OP.RW) this.#unread.push(packet.payload);
      }
      const part = Math.min(bytes.length - at, this.room, 0x1_0000);
      const isLast = at + part === bytes.length;
      await this.send(OP.RW, { flags: isLast ? flags : 0 }, bytes.subarray(at, at + part));
      this.sent = (this.sent + part) >>> 0;
      at += part;
    }
  }

  /** One message of a connection of packets. */
  writeMessage(bytes: Uint8Array): Promise<void> {
    return this.write(bytes, EOM);
  }

  readonly #unread: Uint8Array[] = [];

  /** Reads until `length` bytes are there, telling the peer of the room. @throws Error - deadline, or it ended before */
  async read(length: number): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    let have = 0;
    let told = this.received;
    while (have < length) {
      const kept = this.#unread.shift();
      if (kept === undefined) {
        const packet = await this.next();
        if (packet.op === OP.RST) throw new Error(`read: reset after ${have} of ${length} bytes`);
        if (packet.op === OP.SHUTDOWN) throw new Error(`read: ended after ${have} of ${length} bytes`);
        if (packet.op === OP.RW) parts.push(packet.payload);
        have += packet.op === OP.RW ? packet.len : 0;
        const isAsked = packet.op === OP.CREDIT_REQUEST;
        if (isAsked || (this.received - told) >>> 0 >= 0x1_0000) {
          told = this.received;
          await this.send(OP.CREDIT_UPDATE);
        }
        continue;
      }
      parts.push(kept);
      have += kept.length;
    }
    return Buffer.concat(parts);
  }

  /** The same without telling the peer anything. */
  async receiveData(length: number): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    for (let have = 0; have < length; ) {
      const packet = await this.next();
      if (packet.op === OP.RST || packet.op === OP.SHUTDOWN) throw new Error(`receiveData: op ${packet.op}`);
      if (packet.op !== OP.RW) continue;
      parts.push(packet.payload);
      have += packet.len;
    }
    return Buffer.concat(parts);
  }

  /** One message, and the flags of its last packet. */
  async readMessage(): Promise<{ bytes: Buffer; flags: number }> {
    const parts: Uint8Array[] = [];
    for (;;) {
      const packet = await this.next();
      if (packet.op === OP.CREDIT_REQUEST) await this.send(OP.CREDIT_UPDATE);
      if (packet.op === OP.RST || packet.op === OP.SHUTDOWN) throw new Error(`readMessage: op ${packet.op}`);
      if (packet.op !== OP.RW) continue;
      parts.push(packet.payload);
      if ((packet.flags & EOM) !== 0) return { bytes: Buffer.concat(parts), flags: packet.flags };
      await this.send(OP.CREDIT_UPDATE);
    }
  }

  /** Ends directions: RCV, SEND or both. */
  shutdown(flags: number = RCV | SEND): Promise<void> {
    return this.send(OP.SHUTDOWN, { flags });
  }

  /** Waits until the peer ended these directions. */
  async waitForShutdown(flags: number): Promise<void> {
    while ((this.peerShutdown & flags) !== flags) {
      const packet = await this.next();
      if (packet.op === OP.RST) throw new Error('waitForShutdown: reset');
    }
  }

  async waitForReset(): Promise<void> {
    while (!this.isReset) await this.next();
  }
}
