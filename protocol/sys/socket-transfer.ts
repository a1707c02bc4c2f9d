/**
 * Bytes between a connected socket and memory at addresses: sendmsg and recvmsg over a list of pieces, non-blocking and
 * without a copy in JavaScript. A failure is a negative errno and no exception: EAGAIN is an everyday answer here.
 */

import { lastErrno, libc } from './libc.ts';
import { allocatePinned } from './pinned.ts';

const MSG_PEEK = 0x02;
const MSG_CTRUNC = 0x08;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_EOR = 0x80;
const MSG_NOSIGNAL = 0x4000;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
/** linux/sockios.h: bytes that wait to be read. */
const SIOCINQ = 0x541b;
const POLLHUP = 0x010;
const POLLRDHUP = 0x2000;
/** Directions of `shutdownSocket`. */
export const SHUT_RD = 0;
export const SHUT_WR = 1;
/** Pieces that one call takes (IOV_MAX). */
export const MAX_PIECES = 1024;
const PEEK_BYTES = 64;

const value = allocatePinned(8);
const peeked = allocatePinned(PEEK_BYTES);

/** A list of pieces of memory and the calls on it. An instance is refilled for every transfer. */
export class SocketTransfer {
  // struct msghdr: name @0, namelen u32 @8, iov @16, iovlen @24, control @32, controllen @40, flags i32 @48.
  readonly #header = allocatePinned(56);
  readonly #pieces = allocatePinned(16 * MAX_PIECES);
  count = 0;
  /** Of all pieces. */
  bytes = 0;

  constructor() {
    this.#header.setU64(16, this.#pieces.address);
  }

  clear(): void {
    this.count = 0;
    this.bytes = 0;
  }

  /** Adds `length` bytes at a host address that stay where they are until the call. False when the list is full. */
  append(address: number, length: number): boolean {
    if (this.count === MAX_PIECES) return false;
    const at = 16 * this.count;
    this.#pieces.setU64(at, address);
    this.#pieces.setU64(at + 8, length);
    this.count += 1;
    this.bytes += length;
    return true;
  }

  /** Sends the pieces, on a socket of packets as one message. Returns how many bytes were taken, or -errno. */
  send(fd: number, endOfRecord: boolean): number {
    this.#header.setU64(24, this.count);
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL | (endOfRecord ? MSG_EOR : 0);
    const sent = libc.sendmsg(fd, this.#header.address, flags);
    return sent === -1 ? -lastErrno() : sent;
  }

  /** Fills the pieces. Returns how many bytes came, 0 at the end, or -errno. Descriptors that come along are dropped. */
  receive(fd: number): number {
    this.#header.setU64(24, this.count);
    this.#header.data.setInt32(48, 0, true);
    const got = libc.recvmsg(fd, this.#header.address, MSG_DONTWAIT);
    return got === -1 ? -lastErrno() : got;
  }

  /** Of the last `receive`: it stopped at descriptors that came along, and more may be there. */
  get stoppedEarly(): boolean {
    return (this.#header.data.getInt32(48, true) & MSG_CTRUNC) !== 0;
  }

  /** Of the last `receive`: the message ends a record. */
  get endOfRecord(): boolean {
    return (this.#header.data.getInt32(48, true) & MSG_EOR) !== 0;
  }
}

/** The length of the message that is next on a socket of packets, or -errno; 0 at the end too, see `isAtEnd`. */
export function nextMessageBytes(fd: number): number {
  const got = libc.recv(fd, peeked.address, 1, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
  return got === -1 ? -lastErrno() : got;
}

/**
 * Whether the peer of a socket of packets has ended, and nothing is left to read but messages without bytes, which cannot
 * be told from the end.
 */
export function isAtEnd(fd: number): boolean {
  // struct pollfd: fd i32 @0, events i16 @4, revents i16 @6.
  value.data.setInt32(0, fd, true);
  value.data.setInt16(4, POLLRDHUP, true);
  const isEnded = libc.poll(value.address, 1, 0) === 1;
  if (!isEnded || (value.data.getInt16(6, true) & (POLLRDHUP | POLLHUP)) === 0) return false;
  return libc.ioctl(fd, SIOCINQ, value.address) === 0 && value.data.getInt32(0, true) === 0;
}

/** Copies what is next into `target` (up to 64 bytes) and leaves it there. Returns how many bytes, 0 at the end, or -errno. */
export function peekBytes(fd: number, target: Uint8Array): number {
  const got = libc.recv(fd, peeked.address, Math.min(target.length, PEEK_BYTES), MSG_PEEK | MSG_DONTWAIT);
  if (got === -1) return -lastErrno();
  target.set(peeked.bytes.subarray(0, got));
  return got;
}

/** Takes up to 64 bytes that were peeked at; of a socket of packets the whole message. */
export function discardBytes(fd: number, length: number): void {
  libc.recv(fd, peeked.address, Math.min(length, PEEK_BYTES), MSG_DONTWAIT);
}

/** Sends a short text at once, or not at all. Returns whether it went. */
export function sendText(fd: number, text: string): boolean {
  const encoded = Buffer.from(text);
  if (encoded.length > PEEK_BYTES) throw new Error(`a text of ${encoded.length} bytes, ${PEEK_BYTES} are possible`);
  peeked.bytes.set(encoded);
  return libc.send(fd, peeked.address, encoded.length, MSG_DONTWAIT | MSG_NOSIGNAL) === encoded.length;
}

/** Ends one direction. The peer may have gone meanwhile, which is as good. */
export function shutdownSocket(fd: number, how: typeof SHUT_RD | typeof SHUT_WR): void {
  libc.shutdown(fd, how);
}

/** Asks for room for so many bytes on their way out; the kernel gives what its limit (wmem_max) allows. */
export function setSendBuffer(fd: number, bytes: number): void {
  value.data.setInt32(0, bytes, true);
  libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value.address, 4);
}
