/**
 * From connections to the receive queue. The kernel reads streams straight into the guest's buffers, several of them with
 * one call; the header of each is written when its length is known, and buffers that stayed empty go back to the ring. A
 * message that does not fit one buffer is the exception: it is read whole and copied. Connections take turns.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { EAGAIN, ECONNRESET, EINTR } from '../../protocol/sys/errors.ts';
import { isAtEnd, nextMessageBytes } from '../../protocol/sys/socket-transfer.ts';
import {
  VIRTIO_VSOCK_HDR_BYTES,
  VIRTIO_VSOCK_MAX_PACKET_BYTES,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_SEQ_EOM,
  VIRTIO_VSOCK_SEQ_EOR,
} from '../../protocol/virtio/vsock.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import { layOutChain } from './chain-data.ts';
import type { Connection } from './connection.ts';
import type { HostSocket } from './host-socket.ts';
import { FIRST_READ_BYTES, MAX_READ_BYTES, RECEIVE_LOT, RECEIVE_LOT_BYTES } from './limits.ts';
import type { Muxer } from './muxer.ts';
import { PacketHeader } from './packet.ts';
import { SeqpacketMessage } from './seqpacket-message.ts';

/** Buffers of one read. */
const MAX_CHAINS = 128;

export class Receiver {
  readonly #muxer: Muxer;
  readonly #header = new PacketHeader();
  /** Chains of the read that is being prepared: heads, guest addresses, room for payload. */
  readonly #heads = new Uint16Array(MAX_CHAINS);
  readonly #guest = new Float64Array(MAX_CHAINS);
  readonly #room = new Uint32Array(MAX_CHAINS);
  #chains = 0;
  /** The only chain of the read has its header in several buffers. */
  #isSplit = false;
  /** Of this pass: chains given back, bytes put into them, and whether the ring is empty. */
  #packets = 0;
  #bytes = 0;
  #isEmpty = false;

  constructor(muxer: Muxer) {
    this.#muxer = muxer;
    this.#header.dstCid = muxer.guestCid;
  }

  /** Fills buffers of the ring as long as there are some, and something for them. Returns how many chains went back. */
  run(vring: Vring): number {
    const { outbox } = this.#muxer;
    this.#packets = 0;
    this.#bytes = 0;
    this.#isEmpty = false;
    vring.noteEnough();
    while (this.#packets < RECEIVE_LOT && this.#bytes < RECEIVE_LOT_BYTES && !this.#isEmpty) {
      if (outbox.resets > 0) {
        if (!this.#pop(vring)) break;
        outbox.takeReset(this.#header);
        this.#put(vring);
        continue;
      }
      const connection = outbox.peek();
      if (connection === undefined) break;
      if (connection.pending !== 0) {
        if (!this.#pop(vring)) break;
        connection.takePending(this.#header);
        this.#put(vring);
      } else if (connection.message !== undefined) this.#continueMessage(vring, connection);
      else if (connection.socket?.isSeqpacket === true) this.#readMessage(vring, connection, connection.socket);
      else this.#readStream(vring, connection, connection.socket as HostSocket);
      if (this.#isEmpty) break;
      outbox.remove(connection);
      this.#muxer.attend(connection);
    }
    return this.#packets;
  }

  /**
   * Takes the next buffer into `vring.chain`. One that has no room for a header goes back as it is. False when there is
   * none, or after many bad ones.
   */
  #pop(vring: Vring): boolean {
    const { chain } = vring;
    while (this.#packets < RECEIVE_LOT) {
      if (!vring.pop()) {
        this.#isEmpty = true;
        vring.noteShort();
        return false;
      }
      if (chain.fault === NO_FAULT && chain.writableBytes >= VIRTIO_VSOCK_HDR_BYTES) return true;
      this.#refuse(vring);
    }
    return false;
  }

  #refuse(vring: Vring): void {
    const { chain } = vring;
    if (chain.fault !== NO_FAULT) vring.noteChainFault(chain.fault);
    else this.#muxer.counters.unusable += 1;
    vring.push(chain.head, 0);
    this.#packets += 1;
  }

  /** Writes a packet without payload to the chain that was taken, and gives that back. */
  #put(vring: Vring): void {
    this.#header.writeTo(vring.chain, vring.host.memory);
    this.#push(vring, vring.chain.head, 0);
  }

  #push(vring: Vring, head: number, payload: number): void {
    vring.push(head, VIRTIO_VSOCK_HDR_BYTES + payload);
    this.#muxer.counters.received += 1;
    this.#packets += 1;
    this.#bytes += payload;
  }

  /** Takes chains and lays out `wanted` bytes of them. Returns for how many bytes there is room; 0 when there are none. */
  #layOut(vring: Vring, wanted: number): number {
    const { chain } = vring;
    const { transfer } = this.#muxer.sockets.resources;
    transfer.clear();
    this.#chains = 0;
    this.#isSplit = false;
    let bytes = 0;
    while (bytes < wanted && this.#chains < MAX_CHAINS && !this.#isSplit) {
      if (this.#chains === 0) {
        if (!this.#popForData(vring)) break;
      } else {
        if (!vring.pop()) break;
        if (!this.#isPlain(vring)) {
          vring.unpop(chain.head);
          break;
        }
      }
      this.#isSplit = (chain.length[chain.readableSegments] as number) < VIRTIO_VSOCK_HDR_BYTES;
      const left = Math.min(wanted - bytes, VIRTIO_VSOCK_MAX_PACKET_BYTES);
      const { readableSegments: first, segments } = chain;
      const room = layOutChain(chain, first, segments, VIRTIO_VSOCK_HDR_BYTES, left, transfer);
      if (room === 0) {
        vring.unpop(chain.head);
        break;
      }
      this.#heads[this.#chains] = chain.head;
      this.#guest[this.#chains] = chain.guest[first] as number;
      this.#room[this.#chains] = room;
      this.#chains += 1;
      bytes += room;
    }
    return bytes;
  }

  /** The first chain of a read: one that has room for a header only goes back. */
  #popForData(vring: Vring): boolean {
    while (this.#pop(vring)) {
      if (vring.chain.writableBytes > VIRTIO_VSOCK_HDR_BYTES) return true;
      this.#refuse(vring);
    }
    return false;
  }

  /** Whether the chain just taken can be a further one of a read. */
  #isPlain({ chain }: Vring): boolean {
    if (chain.fault !== NO_FAULT || chain.writableBytes <= VIRTIO_VSOCK_HDR_BYTES) return false;
    return (chain.length[chain.readableSegments] as number) >= VIRTIO_VSOCK_HDR_BYTES;
  }

  /** Gives back the chains that a read of `bytes` filled, with their headers, and lets the ring have the others. */
  #finish(vring: Vring, connection: Connection, bytes: number, flags: number): void {
    const { memory } = vring.host;
    let used = 0;
    for (let left = bytes; left > 0; used += 1) left -= this.#room[used] as number;
    // A message of no bytes is a packet too.
    if (bytes === 0 && flags !== 0) used = 1;
    for (let i = this.#chains - 1; i >= used; i -= 1) vring.unpop(this.#heads[i] as number);
    let left = bytes;
    for (let i = 0; i < used; i += 1) {
      const length = Math.min(left, this.#room[i] as number);
      connection.fill(this.#header, VIRTIO_VSOCK_OP_RW, flags, length);
      if (this.#isSplit) this.#header.writeTo(vring.chain, memory);
      else this.#header.writeAt(this.#guest[i] as number, memory);
      this.#push(vring, this.#heads[i] as number, length);
      left -= length;
    }
    connection.credit.spend(bytes);
  }

  #readStream(vring: Vring, connection: Connection, socket: HostSocket): void {
    const { transfer } = this.#muxer.sockets.resources;
    const room = this.#layOut(vring, Math.min(connection.credit.room, connection.readBytes));
    if (room === 0) return;
    const got = transfer.receive(socket.fd);
    this.#finish(vring, connection, Math.max(got, 0), 0);
    if (got <= 0) {
      this.#noteNothing(connection, socket, got);
      return;
    }
    if (got === room) {
      connection.readBytes = Math.min(2 * connection.readBytes, MAX_READ_BYTES);
      return;
    }
    if (got < connection.readBytes / 4) connection.readBytes = Math.max(connection.readBytes / 2, FIRST_READ_BYTES);
    // Less than asked for: nothing is left, unless an end follows.
    socket.readable = socket.ended || transfer.stoppedEarly;
  }

  /** A read brought no data: -errno, or 0 for the end. */
  #noteNothing(connection: Connection, socket: HostSocket, got: number): void {
    if (got === 0) this.#muxer.noteEnd(connection);
    else if (got === -EAGAIN) socket.readable = false;
    // Said once, of what the host's program did not read before it went. What it wrote follows.
    else if (got !== -ECONNRESET && got !== -EINTR) this.#muxer.reset(connection);
  }

  #readMessage(vring: Vring, connection: Connection, socket: HostSocket): void {
    const { transfer, pool } = this.#muxer.sockets.resources;
    const length = nextMessageBytes(socket.fd);
    if (length < 0 || (length === 0 && isAtEnd(socket.fd))) {
      this.#noteNothing(connection, socket, length);
      return;
    }
    if (length > connection.credit.peerBufAlloc || length > pool.size) {
      // It fits no buffer that the guest will ever have.
      this.#muxer.counters.overruns += 1;
      this.#muxer.reset(connection);
      return;
    }
    if (length > connection.credit.room) {
      this.#loadMessage(connection, socket, length);
      return;
    }
    const room = this.#layOut(vring, Math.max(length, 1));
    if (room === 0) return;
    if (this.#chains > 1 || room < length) {
      this.#finish(vring, connection, 0, 0);
      this.#loadMessage(connection, socket, length);
      return;
    }
    const got = transfer.receive(socket.fd);
    const flags = VIRTIO_VSOCK_SEQ_EOM | (transfer.endOfRecord ? VIRTIO_VSOCK_SEQ_EOR : 0);
    this.#finish(vring, connection, Math.max(got, 0), got < 0 ? 0 : flags);
    if (got < 0) this.#noteNothing(connection, socket, got);
  }

  /** Reads a message to send it in pieces. */
  #loadMessage(connection: Connection, socket: HostSocket, length: number): void {
    const { transfer, pool } = this.#muxer.sockets.resources;
    const message = new SeqpacketMessage(pool);
    transfer.clear();
    transfer.append(message.memory.address, length);
    const got = transfer.receive(socket.fd);
    if (got <= 0) {
      message.close();
      this.#noteNothing(connection, socket, got);
      return;
    }
    message.length = got;
    message.endOfRecord = transfer.endOfRecord;
    connection.message = message;
  }

  /** Sends the next piece of a message, as long as one buffer of the guest. */
  #continueMessage(vring: Vring, connection: Connection): void {
    const message = connection.message as SeqpacketMessage;
    if (!this.#popForData(vring)) return;
    const { chain } = vring;
    const { memory } = vring.host;
    const room = Math.min(chain.writableBytes - VIRTIO_VSOCK_HDR_BYTES, VIRTIO_VSOCK_MAX_PACKET_BYTES);
    const length = Math.min(message.left, room, connection.credit.room);
    this.#copyIn(vring, memory, message, length);
    message.sent += length;
    const last = VIRTIO_VSOCK_SEQ_EOM | (message.endOfRecord ? VIRTIO_VSOCK_SEQ_EOR : 0);
    connection.fill(this.#header, VIRTIO_VSOCK_OP_RW, message.left === 0 ? last : 0, length);
    this.#header.writeTo(chain, memory);
    this.#push(vring, chain.head, length);
    connection.credit.spend(length);
    if (message.left > 0) return;
    message.close();
    connection.message = undefined;
  }

  #copyIn({ chain }: Vring, memory: GuestMemory, message: SeqpacketMessage, length: number): void {
    let skip = VIRTIO_VSOCK_HDR_BYTES;
    let from = message.sent;
    const end = from + length;
    for (let i = chain.readableSegments; from < end; i += 1) {
      const size = chain.length[i] as number;
      const part = Math.max(0, Math.min(size - skip, end - from));
      const at = (chain.guest[i] as number) + skip;
      skip = Math.max(0, skip - size);
      if (part === 0) continue;
      memory.copyIn(at, message.memory.bytes.subarray(from, from + part));
      from += part;
    }
  }
}
