/**
 * The host's side of a network interface in another network namespace: a packet socket that sees every frame that comes
 * in by the interface, and sends any. A socket stays in the namespace in which it was made, so this process goes there
 * only to make it. Source: packet(7), setns(2).
 */

import { EAGAIN, SysError } from '../../../protocol/sys/errors.ts';
import { checked, lastErrno, libc } from '../../../protocol/sys/libc.ts';
import { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { openPath, waitReadable } from './descriptors.ts';
import { ETHERTYPE_TEST } from './net-wire.ts';
import { DEADLINE_MS } from './raw-connection.ts';

const SYS_setsockopt = 54;
const SYS_setns = 308;
const CLONE_NEWNET = 0x4000_0000;
const O_RDONLY = 0;
const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0x80000;
const SOCK_NONBLOCK = 0x800;
const SOL_SOCKET = 1;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const SOL_PACKET = 263;
const PACKET_VNET_HDR = 15;
const PACKET_IGNORE_OUTGOING = 23;
const SIOCGIFINDEX = 0x8933;
const TUNSETIFF = 0x400454ca;
const O_RDWR = 2;
const ENOBUFS = 105;
const BUFFER_BYTES = 128 << 20;
const FRAME_BYTES = 128 << 10;

/** Every Ethertype, for HostSide. */
export const ALL_ETHERTYPES = 3;

const ifreq = allocatePinned(40);
const word = allocatePinned(8);
const address = allocatePinned(20);
const buffer = allocatePinned(FRAME_BYTES);

const setns = (namespace: OwnedFd): void => {
  checked(libc.syscall(SYS_setns, namespace.fd, CLONE_NEWNET, 0, 0, 0, 0), 'setns');
};

/** Does something, at once, in the network namespace of a process. */
const inNamespaceOf = <T>(pid: number, act: () => T): T => {
  const home = openPath('/proc/thread-self/ns/net', O_RDONLY);
  const there = openPath(`/proc/${pid}/ns/net`, O_RDONLY);
  try {
    setns(there);
    try {
      return act();
    } finally {
      setns(home);
    }
  } finally {
    home.close();
    there.close();
  }
};

// Flags of TUNSETIFF, linux/if_tun.h.
export const IFF_TUN = 0x0001;
export const IFF_TAP = 0x0002;
export const IFF_MULTI_QUEUE = 0x0100;
export const IFF_NO_PI = 0x1000;
export const IFF_VNET_HDR = 0x4000;

/** A descriptor of a TUN or TAP in the namespace of a process, as a manager of virtual machines hands it over. */
export const openTunIn = (pid: number, name: string, flags: number): OwnedFd =>
  inNamespaceOf(pid, () => {
    const tun = openPath('/dev/net/tun', O_RDWR);
    ifreq.bytes.fill(0);
    ifreq.bytes.set(Buffer.from(name));
    ifreq.data.setUint16(16, flags, true);
    if (libc.ioctl(tun.fd, TUNSETIFF, ifreq.address) === 0) return tun;
    const errno = lastErrno();
    tun.close();
    throw new SysError('ioctl', errno, `TUNSETIFF of ${name}`);
  });

export interface HostSideOptions {
  /** The frames to see, by Ethertype; by default those of testFrame. */
  readonly ethertype?: number;
  /** Each frame has a header of 10 bytes in front, layout as virtio-net's: offloads can be asked for. */
  readonly vnetHeader?: boolean;
}

export class HostSide {
  readonly #socket: OwnedFd;

  /** @param pid a process in the namespace of the interface. @throws SysError - ENODEV: there is no such interface */
  constructor(pid: number, name: string, options: HostSideOptions = {}) {
    this.#socket = inNamespaceOf(
      pid,
      () => new OwnedFd(checked(libc.socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket')),
    );
    try {
      this.#set(SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES);
      this.#set(SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES);
      this.#set(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
      if (options.vnetHeader === true) this.#set(SOL_PACKET, PACKET_VNET_HDR, 1);
      this.#bind(name, options.ethertype ?? ETHERTYPE_TEST);
    } catch (error) {
      this.#socket.close();
      throw error;
    }
  }

  #set(level: number, option: number, value: number): void {
    word.data.setInt32(0, value, true);
    checked(libc.syscall(SYS_setsockopt, this.#socket.fd, level, option, word.address, 4, 0), 'setsockopt');
  }

  #bind(name: string, ethertype: number): void {
    ifreq.bytes.fill(0);
    ifreq.bytes.set(Buffer.from(name));
    checked(libc.ioctl(this.#socket.fd, SIOCGIFINDEX, ifreq.address), 'ioctl', `SIOCGIFINDEX of ${name}`);
    // sockaddr_ll: family u16 @0, protocol u16 @2 (big-endian), index i32 @4.
    address.bytes.fill(0);
    address.data.setUint16(0, AF_PACKET, true);
    address.data.setUint16(2, ethertype);
    address.data.setInt32(4, ifreq.data.getInt32(16, true), true);
    checked(libc.bind(this.#socket.fd, address.address, 20), 'bind', name);
  }

  /** Sends a frame out by the interface: towards the guest. False when its queue is full. @throws SysError */
  send(frame: Uint8Array): boolean {
    buffer.bytes.set(frame);
    if (libc.send(this.#socket.fd, buffer.address, frame.length, 0) === frame.length) return true;
    const errno = lastErrno();
    if (errno === ENOBUFS || errno === EAGAIN) return false;
    throw new SysError('send', errno, `${frame.length} bytes`);
  }

  /** A frame that came in and was not taken yet, or undefined. */
  poll(): Uint8Array | undefined {
    const length = libc.recv(this.#socket.fd, buffer.address, FRAME_BYTES, 0);
    if (length >= 0) return buffer.bytes.slice(0, length);
    const errno = lastErrno();
    if (errno === EAGAIN) return undefined;
    throw new SysError('recv', errno);
  }

  /** The next `count` frames. @throws Error - deadline */
  async receive(count: number, deadlineMs = DEADLINE_MS): Promise<Uint8Array[]> {
    const frames: Uint8Array[] = [];
    const end = performance.now() + deadlineMs;
    while (frames.length < count) {
      const frame = this.poll();
      if (frame === undefined) {
        const left = Math.max(1, end - performance.now());
        await waitReadable(this.#socket, left, `frame from the guest (${frames.length} of ${count} came)`);
      } else frames.push(frame);
    }
    return frames;
  }

  close(): void {
    this.#socket.close();
  }
}
