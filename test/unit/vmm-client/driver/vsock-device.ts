/** The device's side of the queues of a socket driver, in the driver's memory, packet by packet. */

import { writeSync } from 'node:fs';
import type { DriverQueue } from '../../../../vmm-client/driver/driver-queue.ts';
import type { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';

export interface Packet {
  srcCid: number;
  dstCid: number;
  srcPort: number;
  dstPort: number;
  type: number;
  op: number;
  flags: number;
  bufAlloc: number;
  fwdCnt: number;
  payload: Buffer;
}

export const OP = {
  REQUEST: 1,
  RESPONSE: 2,
  RST: 3,
  SHUTDOWN: 4,
  RW: 5,
  CREDIT_UPDATE: 6,
  CREDIT_REQUEST: 7,
} as const;

/** One queue as a device reads it. */
export class DeviceQueue {
  readonly #memory: SharedMemory;
  readonly #queue: DriverQueue;
  readonly #view: DataView;
  next = 0;

  constructor(memory: SharedMemory, queue: DriverQueue) {
    this.#memory = memory;
    this.#queue = queue;
    this.#view = new DataView(memory.bytes.buffer);
  }

  get available(): number {
    const index = this.#view.getUint16(this.#queue.vring.availRing - this.#memory.userAddress + 2, true);
    return (index - this.next) & 0xffff;
  }

  /** The next chain, which has one descriptor. */
  chain(): { head: number; bytes: Buffer } {
    const { availRing, descriptorTable, size } = this.#queue.vring;
    const entry = availRing - this.#memory.userAddress + 4 + 2 * (this.next % size);
    const head = this.#view.getUint16(entry, true);
    const descriptor = descriptorTable - this.#memory.userAddress + 16 * head;
    const offset = Number(this.#view.getBigUint64(descriptor, true)) - this.#memory.guestAddress;
    return { head, bytes: this.#memory.slice(offset, this.#view.getUint32(descriptor + 8, true)) };
  }

  use(head: number, length: number, signal = true): void {
    const { usedRing, size } = this.#queue.vring;
    const used = usedRing - this.#memory.userAddress;
    this.#view.setUint32(used + 4 + 8 * (this.next % size), head, true);
    this.#view.setUint32(used + 8 + 8 * (this.next % size), length, true);
    this.next = (this.next + 1) & 0xffff;
    this.#view.setUint16(used + 2, this.next, true);
    if (signal) writeSync(this.#queue.callFd, new BigUint64Array([1n]));
  }
}

/** A device that a test plays. */
export class SocketDevice {
  readonly rx: DeviceQueue;
  readonly tx: DeviceQueue;

  constructor(memory: SharedMemory, receive: DriverQueue, transmit: DriverQueue) {
    this.rx = new DeviceQueue(memory, receive);
    this.tx = new DeviceQueue(memory, transmit);
  }

  /** Packets that the driver sent since, at most `limit`, taken. */
  sent(limit = Number.POSITIVE_INFINITY): Packet[] {
    const packets: Packet[] = [];
    while (this.tx.available > 0 && packets.length < limit) {
      const { head, bytes } = this.tx.chain();
      packets.push(decode(bytes));
      this.tx.use(head, 0);
    }
    return packets;
  }

  /** Operations that the driver sent since. */
  ops(): number[] {
    return this.sent().map(({ op }) => op);
  }

  /** Gives the driver a packet. */
  deliver(packet: Partial<Packet>): void {
    const { head, bytes } = this.rx.chain();
    this.rx.use(head, encode(bytes, packet));
  }

  /** A packet of the other end of what the driver sent. */
  answer(to: Packet, packet: Partial<Packet>): void {
    this.deliver({
      srcCid: to.dstCid,
      dstCid: to.srcCid,
      srcPort: to.dstPort,
      dstPort: to.srcPort,
      type: to.type,
      ...packet,
    });
  }
}

function decode(bytes: Buffer): Packet {
  const length = bytes.readUInt32LE(24);
  return {
    srcCid: Number(bytes.readBigUInt64LE(0)),
    dstCid: Number(bytes.readBigUInt64LE(8)),
    srcPort: bytes.readUInt32LE(16),
    dstPort: bytes.readUInt32LE(20),
    type: bytes.readUInt16LE(28),
    op: bytes.readUInt16LE(30),
    flags: bytes.readUInt32LE(32),
    bufAlloc: bytes.readUInt32LE(36),
    fwdCnt: bytes.readUInt32LE(40),
    payload: Buffer.from(bytes.subarray(44, 44 + length)),
  };
}

function encode(bytes: Buffer, packet: Partial<Packet>): number {
  const { srcCid = 2, dstCid = 3, srcPort = 0, dstPort = 0, type = 1, op = 0, flags = 0 } = packet;
  const { bufAlloc = 65536, fwdCnt = 0, payload = Buffer.alloc(0) } = packet;
  bytes.writeBigUInt64LE(BigInt(srcCid), 0);
  bytes.writeBigUInt64LE(BigInt(dstCid), 8);
  bytes.writeUInt32LE(srcPort, 16);
  bytes.writeUInt32LE(dstPort, 20);
  bytes.writeUInt32LE(payload.length, 24);
  bytes.writeUInt16LE(type, 28);
  bytes.writeUInt16LE(op, 30);
  bytes.writeUInt32LE(flags, 32);
  bytes.writeUInt32LE(bufAlloc, 36);
  bytes.writeUInt32LE(fwdCnt, 40);
  payload.copy(bytes, 44);
  return 44 + payload.length;
}
