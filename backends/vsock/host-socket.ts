/**
 * The host's end of one connection: an AF_UNIX socket, stream or packets, and what it did not take yet. Data goes from the
 * guest's buffers to the socket without a copy; what the socket has no room for is copied to a ring, which flow control
 * bounds, so that a program that does not read holds up neither the guest's queue nor other connections.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { EAGAIN, EMSGSIZE, ENOBUFS } from '../../protocol/sys/errors.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import {
  SHUT_RD,
  SHUT_WR,
  type SocketTransfer,
  setSendBuffer,
  shutdownSocket,
} from '../../protocol/sys/socket-transfer.ts';
import { VIRTIO_VSOCK_HDR_BYTES, VIRTIO_VSOCK_SEQ_EOM, VIRTIO_VSOCK_SEQ_EOR } from '../../protocol/virtio/vsock.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { ByteRing, type PinnedPool } from './byte-ring.ts';
import { copyChain, layOutChain } from './chain-data.ts';
import { MAX_WAITING_MESSAGES } from './limits.ts';

/** What the connections of one guest share. */
export interface SocketResources {
  readonly transfer: SocketTransfer;
  readonly pool: PinnedPool;
}

export class HostSocket {
  readonly fd: number;
  readonly isSeqpacket: boolean;
  /** A read may find something; a write may. Until the next EAGAIN. */
  readable = true;
  writable = true;
  /** The host's program sends no more, or is gone. */
  ended = false;
  gone = false;
  readonly #owned: OwnedFd;
  readonly #transfer: SocketTransfer;
  readonly #unsent: ByteRing;
  /** Messages that wait: length, and whether a record ends. Bytes of one that is not whole follow them. */
  #messages: { length: number; endOfRecord: boolean }[] = [];
  #partial = 0;
  #limit: number;
  #endsWhenSent = false;

  /** Takes over a connected, non-blocking descriptor. */
  constructor(owned: OwnedFd, isSeqpacket: boolean, { transfer, pool }: SocketResources) {
    this.#owned = owned;
    this.fd = owned.fd;
    this.isSeqpacket = isSeqpacket;
    this.#transfer = transfer;
    this.#unsent = new ByteRing(pool);
    this.#limit = pool.size;
    // A message goes out at once or never: the largest that the guest may send has to fit.
    if (isSeqpacket) setSendBuffer(this.fd, pool.size);
  }

  /** Nothing waits to be sent. A message that lacks its end does not count. */
  get isDrained(): boolean {
    return this.isSeqpacket ? this.#messages.length === 0 : this.#unsent.length === 0;
  }

  /**
   * Sends `length` bytes of payload of a packet that lies in a chain. Returns how many bytes of this and earlier packets
   * the socket took, or -errno.
   */
  write(chain: DescriptorChain, memory: GuestMemory, length: number, flags: number): number {
    if (this.isSeqpacket) return this.#writeMessage(chain, memory, length, flags);
    if (length === 0) return 0;
    let sent = 0;
    if (this.#unsent.length === 0 && this.writable) {
      sent = this.#sendChain(chain, length, false);
      if (sent < 0) return sent;
    }
    if (sent < length) {
      this.writable = false;
      copyChain(chain, memory, VIRTIO_VSOCK_HDR_BYTES + sent, length - sent, this.#unsent);
    }
    return sent;
  }

  /** Bytes taken, 0 when there is no room, or -errno. */
  #sendChain(chain: DescriptorChain, length: number, endOfRecord: boolean): number {
    const transfer = this.#transfer;
    transfer.clear();
    layOutChain(chain, 0, chain.readableSegments, VIRTIO_VSOCK_HDR_BYTES, length, transfer);
    const sent = transfer.send(this.fd, endOfRecord);
    return sent === -EAGAIN ? 0 : sent;
  }

  #writeMessage(chain: DescriptorChain, memory: GuestMemory, length: number, flags: number): number {
    const isWhole = (flags & VIRTIO_VSOCK_SEQ_EOM) !== 0;
    const endOfRecord = (flags & VIRTIO_VSOCK_SEQ_EOR) !== 0;
    const isNext = this.#messages.length === 0 && this.#partial === 0;
    // Into how many buffers the guest cut it must not show: a list that is too long goes by the ring.
    if (isWhole && isNext && length > 0 && this.writable && chain.readableSegments < 1000) {
      const sent = this.#sendChain(chain, length, endOfRecord);
      if (sent !== 0) return sent;
    }
    copyChain(chain, memory, VIRTIO_VSOCK_HDR_BYTES, length, this.#unsent);
    this.#partial += length;
    // Its end can never come: the guest has no credit left.
    if (!isWhole) return this.#partial >= this.#limit ? -EMSGSIZE : 0;
    if (this.#messages.length >= MAX_WAITING_MESSAGES) return -ENOBUFS;
    this.#messages.push({ length: this.#partial, endOfRecord });
    this.#partial = 0;
    return this.flush();
  }

  /** Sends what waits, as far as the socket takes it. Returns how many bytes it took, or -errno. */
  flush(): number {
    const taken = this.isSeqpacket ? this.#flushMessages() : this.#flushBytes();
    if (taken >= 0 && this.#endsWhenSent && this.isDrained) {
      this.#endsWhenSent = false;
      shutdownSocket(this.fd, SHUT_WR);
    }
    return taken;
  }

  #flushBytes(): number {
    const { length } = this.#unsent;
    if (length === 0) return 0;
    this.#unsent.layOut(this.#transfer, length);
    const sent = this.#transfer.send(this.fd, false);
    this.writable = sent === length;
    if (sent < 0) return sent === -EAGAIN ? 0 : sent;
    this.#unsent.drop(sent);
    return sent;
  }

  #flushMessages(): number {
    let taken = 0;
    let done = 0;
    for (const { length, endOfRecord } of this.#messages) {
      this.#unsent.layOut(this.#transfer, length);
      const sent = this.#transfer.send(this.fd, endOfRecord);
      if (sent === -EAGAIN) {
        this.writable = false;
        break;
      }
      if (sent < 0) return sent;
      this.#unsent.drop(length);
      taken += length;
      done += 1;
    }
    this.#messages = done === this.#messages.length ? [] : this.#messages.slice(done);
    return taken;
  }

  /** Forgets what waits: nobody will read it. */
  discard(): void {
    this.#unsent.clear();
    this.#messages = [];
    this.#partial = 0;
  }

  /** The guest sends no more: the host's program reads to the end and then hears of it. */
  endSending(): void {
    this.#endsWhenSent = true;
    this.flush();
  }

  /** The guest receives no more: the host's program hears of it when it sends. */
  endReceiving(): void {
    shutdownSocket(this.fd, SHUT_RD);
  }

  close(): void {
    this.discard();
    this.#owned.close();
  }
}
