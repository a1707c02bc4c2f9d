/**
 * AF_UNIX sockets, non-blocking: streams with ancillary file descriptors, and connections of packets (SOCK_SEQPACKET). Received descriptors are close-on-exec and owned
 * by the caller from the moment `receive` returns them.
 */

import { rmSync } from 'node:fs';
import {
  EADDRINUSE,
  EAGAIN,
  ECONNABORTED,
  ECONNREFUSED,
  EINTR,
  EMFILE,
  ENAMETOOLONG,
  ENOENT,
  EPROTOTYPE,
  SysError,
} from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { OwnedFd, S_IFSOCK, statFd, statusFlags } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';

const AF_UNIX = 1;
const F_SETFL = 4;
export const SOCK_STREAM = 1;
export const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0x800;
const SOCK_CLOEXEC = 0x80000;
const SOL_SOCKET = 1;
const SO_ACCEPTCONN = 30;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 0x08;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** Bytes of a socket's path, with the zero at its end. */
export const SUN_PATH_BYTES = 108;
const BACKLOG = 128;
/** The kernel's limit of descriptors in one message (SCM_MAX_FD). */
const SCM_MAX_FD = 253;
const CMSG_HEADER = 16;
const CONTROL_BYTES = CMSG_HEADER + SCM_MAX_FD * 4 + 4;
const CHUNK = 65536;

// struct msghdr: name @0, namelen u32 @8, iov @16, iovlen @24, control @32, controllen @40, flags i32 @48.
const header = allocatePinned(56);
const iovec = allocatePinned(16);
const control = allocatePinned(CONTROL_BYTES);
const chunk = allocatePinned(CHUNK);
const address = allocatePinned(2 + SUN_PATH_BYTES);
const option = allocatePinned(8);

function encodeAddress(path: string): number {
  const encoded = Buffer.from(path);
  if (encoded.length === 0 || encoded.length >= SUN_PATH_BYTES) {
    const what = `to a path of ${encoded.length} bytes, 1 to ${SUN_PATH_BYTES - 1} are possible (${path})`;
    throw new SysError('bind', ENAMETOOLONG, what);
  }
  address.bytes.fill(0);
  address.data.setUint16(0, AF_UNIX, true);
  address.bytes.set(encoded, 2);
  return 2 + encoded.length + 1;
}

function createSocket(type: number): OwnedFd {
  return new OwnedFd(checked(libc.socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket'));
}

/** What one `receive` brought. `length` 0 is the peer's orderly end. */
export interface Received {
  readonly length: number;
  readonly fds: OwnedFd[];
}

/** One connected socket. */
export class UnixStream {
  readonly #owned: OwnedFd;
  readonly fd: number;

  constructor(owned: OwnedFd) {
    this.#owned = owned;
    this.fd = owned.fd;
  }

  /**
   * @throws SysError - nobody listens at `path` (ECONNREFUSED, ENOENT), or with another type of socket (EPROTOTYPE), or its
   * backlog is full (EAGAIN)
   */
  static connect(path: string, type: number = SOCK_STREAM): UnixStream {
    const length = encodeAddress(path);
    const socket = createSocket(type);
    if (libc.connect(socket.fd, address.address, length) === -1) {
      const error = new SysError('connect', lastErrno(), path);
      socket.close();
      throw error;
    }
    return new UnixStream(socket);
  }

  /** Two sockets connected to each other. */
  static pair(type: number = SOCK_STREAM): [UnixStream, UnixStream] {
    checked(libc.socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, option.address), 'socketpair');
    const fds = [option.data.getInt32(0, true), option.data.getInt32(4, true)] as const;
    return [new UnixStream(new OwnedFd(fds[0])), new UnixStream(new OwnedFd(fds[1]))];
  }

  /**
   * Reads at most `length` bytes (and at most 64 KiB) into `target` at `offset`, with the descriptors that came along.
   * Returns undefined when nothing is there. Ancillary data that was cut off is an error after closing what arrived.
   * @throws SysError - the connection broke; EMFILE: this process cannot have all the descriptors
   */
  receive(target: Uint8Array, offset: number, length: number): Received | undefined {
    prepareHeader(Math.min(length, CHUNK), CONTROL_BYTES);
    const flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
    const got = libc.recvmsg(this.fd, header.address, flags);
    if (got === -1) {
      const errno = lastErrno();
      if (errno === EAGAIN || errno === EINTR) return undefined;
      throw new SysError('recvmsg', errno);
    }
    const fds = takeControl();
    if ((header.data.getInt32(48, true) & MSG_CTRUNC) !== 0) {
      for (const fd of fds) fd.close();
      throw new SysError('recvmsg', EMFILE, 'ancillary data cut off');
    }
    target.set(chunk.bytes.subarray(0, got), offset);
    return { length: got, fds };
  }

  /**
   * Sends bytes, at most 64 KiB a call, with descriptors (not closed) on the first byte. Returns how many bytes the
   * kernel took; 0 when the socket's buffer is full, and then no descriptor went out.
   * @throws SysError - the connection broke (EPIPE without a signal)
   */
  send(source: Uint8Array, fds: readonly number[] = []): number {
    const length = Math.min(source.length, CHUNK);
    chunk.bytes.set(length === source.length ? source : source.subarray(0, length));
    prepareHeader(length, fds.length === 0 ? 0 : putControl(fds));
    const sent = libc.sendmsg(this.fd, header.address, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent === -1) {
      const errno = lastErrno();
      if (errno === EAGAIN || errno === EINTR) return 0;
      throw new SysError('sendmsg', errno);
    }
    return sent;
  }

  /** Gives the descriptor to a new owner. */
  detach(): OwnedFd {
    return new OwnedFd(this.#owned.take());
  }

  close(): void {
    this.#owned.close();
  }
}

function prepareHeader(length: number, controlLength: number): void {
  iovec.setU64(0, chunk.address);
  iovec.setU64(8, length);
  header.bytes.fill(0);
  header.setU64(16, iovec.address);
  header.setU64(24, 1);
  header.setU64(32, controlLength === 0 ? 0 : control.address);
  header.setU64(40, controlLength);
}

function putControl(fds: readonly number[]): number {
  const length = CMSG_HEADER + fds.length * 4;
  control.setU64(0, length);
  control.data.setInt32(8, SOL_SOCKET, true);
  control.data.setInt32(12, SCM_RIGHTS, true);
  fds.forEach((fd, i) => {
    control.data.setInt32(CMSG_HEADER + i * 4, fd, true);
  });
  return (length + 7) & ~7;
}

function takeControl(): OwnedFd[] {
  const fds: OwnedFd[] = [];
  const end = header.data.getUint32(40, true);
  let at = 0;
  while (at + CMSG_HEADER <= end) {
    const length = control.data.getUint32(at, true);
    if (length < CMSG_HEADER) break;
    const isRights =
      control.data.getInt32(at + 8, true) === SOL_SOCKET && control.data.getInt32(at + 12, true) === SCM_RIGHTS;
    for (let i = at + CMSG_HEADER; isRights && i + 4 <= at + length; i += 4) {
      fds.push(new OwnedFd(control.data.getInt32(i, true)));
    }
    at += (length + 7) & ~7;
  }
  return fds;
}

/** A listening socket. `close` also removes its file when it was made by `listen`. */
export class UnixListener {
  readonly #owned: OwnedFd;
  readonly #path: string | undefined;
  readonly fd: number;

  private constructor(owned: OwnedFd, path: string | undefined) {
    this.#owned = owned;
    this.#path = path;
    this.fd = owned.fd;
  }

  /**
   * Listens at `path`; up to `backlog` connections wait to be accepted. A socket file that nobody listens on is replaced; a
   * live one is refused.
   * @throws SysError - EADDRINUSE: another process listens there, or the file is not a socket
   */
  static listen(path: string, type: number = SOCK_STREAM, backlog = BACKLOG): UnixListener {
    removeStaleSocket(path, type);
    const length = encodeAddress(path);
    const socket = createSocket(type);
    try {
      checked(libc.bind(socket.fd, address.address, length), 'bind', path);
      checked(libc.listen(socket.fd, backlog), 'listen', path);
    } catch (error) {
      socket.close();
      throw error;
    }
    return new UnixListener(socket, path);
  }

  /** Takes over a descriptor that listens already (systemd, libvirt) and makes it non-blocking, for `accept`. */
  static fromFd(owned: OwnedFd): UnixListener {
    checked(libc.fcntl(owned.fd, F_SETFL, statusFlags(owned.fd) | SOCK_NONBLOCK), 'fcntl', 'F_SETFL');
    return new UnixListener(owned, undefined);
  }

  /** The next connection, or undefined. @throws SysError - EMFILE and the like */
  accept(): UnixStream | undefined {
    const fd = libc.accept4(this.fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd !== -1) return new UnixStream(new OwnedFd(fd));
    const errno = lastErrno();
    if (errno === EAGAIN || errno === EINTR || errno === ECONNABORTED) return undefined;
    throw new SysError('accept4', errno);
  }

  close(): void {
    if (this.#path !== undefined && this.#owned.isOpen) rmSync(this.#path, { force: true });
    this.#owned.close();
  }
}

/**
 * Makes way for a listener: a socket file that nobody listens on is removed, anything else stays.
 * @throws SysError - EADDRINUSE: another process listens there
 */
export function removeStaleSocket(path: string, type: number = SOCK_STREAM): void {
  if (isStaleSocket(path, type)) rmSync(path, { force: true });
}

/** Whether `path` is a socket file that refuses connections: left over by a process that is gone. */
function isStaleSocket(path: string, type: number): boolean {
  try {
    UnixStream.connect(path, type).close();
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    if (error.errno === ENOENT) return false;
    if (error.errno === ECONNREFUSED) return isSocketFile(path);
    if (error.errno === EAGAIN || error.errno === EPROTOTYPE) throw new SysError('bind', EADDRINUSE, path);
    throw error;
  }
  throw new SysError('bind', EADDRINUSE, path);
}

function isSocketFile(path: string): boolean {
  const O_PATH = 0x200000;
  const fd = new OwnedFd(checked(libc.open(path, O_PATH, 0), 'open', path));
  try {
    return statFd(fd.fd).type === S_IFSOCK;
  } finally {
    fd.close();
  }
}

/** Whether a descriptor is a listening socket (SO_ACCEPTCONN), a connected one, or no stream socket at all. */
export function socketRole(fd: number): 'listening' | 'connected' | 'none' {
  option.data.setInt32(0, 0, true);
  option.data.setInt32(4, 4, true);
  if (libc.getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, option.address, option.address + 4) === -1) return 'none';
  return option.data.getInt32(0, true) === 1 ? 'listening' : 'connected';
}
