/**
 * TAP devices: Ethernet interfaces whose packets a program reads and writes, with the header of virtio-net in front of
 * each. Source: linux/if_tun.h, Documentation/networking/tuntap.rst.
 */

import { EBUSY, EINVAL, EOPNOTSUPP, EPERM, SysError } from './errors.ts';
import { checked, lastErrno, libc, RWF_NOWAIT } from './libc.ts';
import { type OwnedFd, openFile } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';

const O_RDWR = 2;
const O_NONBLOCK = 0x800;
const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const TUNGETIFF = 0x800454d2;
const TUNSETSNDBUF = 0x400454d4;
const TUNATTACHFILTER = 0x401054d5;
const TUNDETACHFILTER = 0x401054d6;
const TUNSETVNETHDRSZ = 0x400454d8;
const TUNSETQUEUE = 0x400454d9;
const SIOCGIFHWADDR = 0x8927;

const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_ATTACH_QUEUE = 0x0200;
const IFF_DETACH_QUEUE = 0x0400;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;

// What the reader of a TAP takes: checksums left to it, and packets larger than the MTU.
export const TUN_F_CSUM = 0x01;
export const TUN_F_TSO4 = 0x02;
export const TUN_F_TSO6 = 0x04;
export const TUN_F_TSO_ECN = 0x08;
export const TUN_F_UFO = 0x10;
export const TUN_F_USO4 = 0x20;
export const TUN_F_USO6 = 0x40;

/** Bytes of an interface name with its final NUL. */
export const IFNAMSIZ = 16;
const IFREQ_BYTES = 40;
const INT_MAX = 0x7fff_ffff;

const ifreq = allocatePinned(IFREQ_BYTES);
const value = allocatePinned(16);
/** Instructions of a packet filter, BPF_MAXINSNS of the kernel. */
export const MAX_FILTER_INSTRUCTIONS = 4096;
const filterCode = allocatePinned(MAX_FILTER_INSTRUCTIONS * 8);

/** One queue of a TAP, with the name the kernel gave it. */
export interface TapQueue {
  readonly owned: OwnedFd;
  readonly name: string;
}

function fillIfreq(name: string, flags: number): void {
  ifreq.bytes.fill(0);
  new TextEncoder().encodeInto(name, ifreq.bytes.subarray(0, IFNAMSIZ - 1));
  ifreq.data.setUint16(IFNAMSIZ, flags, true);
}

function nameInIfreq(): string {
  const bytes = ifreq.bytes.subarray(0, IFNAMSIZ);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.slice(0, end < 0 ? IFNAMSIZ : end));
}

function setInt(fd: number, request: number, number: number, what: string): void {
  value.data.setInt32(0, number, true);
  checked(libc.ioctl(fd, request, value.address), 'ioctl', what);
}

/**
 * Opens one queue of the TAP `name`, which is made when it does not exist (needs CAP_NET_ADMIN).
 * @throws SysError - EPERM: not permitted; EBUSY: another program has it; EINVAL: made with or without IFF_MULTI_QUEUE,
 * unlike asked for here
 */
function openTapQueue(name: string, multiQueue: boolean): TapQueue {
  const owned = openFile('/dev/net/tun', O_RDWR | O_NONBLOCK);
  try {
    fillIfreq(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multiQueue ? IFF_MULTI_QUEUE : 0));
    checked(libc.ioctl(owned.fd, TUNSETIFF, ifreq.address), 'ioctl', `TUNSETIFF ${name}`);
    const opened = inspectTap(owned.fd);
    // While others have queues of it, their flags count and not ours.
    if (!opened.hasVnetHeader) throw new SysError('ioctl', EBUSY, `TUNSETIFF ${name}: no IFF_VNET_HDR`);
    return { owned, name: opened.name };
  } catch (error) {
    owned.close();
    throw error;
  }
}

/** Opens all queues of a TAP. @throws SysError - as openTapQueue; none stays open */
export function openTapQueues(name: string, count: number): TapQueue[] {
  const queues: TapQueue[] = [];
  try {
    let multiQueue = count > 1;
    try {
      queues.push(openTapQueue(name, multiQueue));
    } catch (error) {
      // One that was made for several queues serves one as well, if it is opened like that.
      if (!(error instanceof SysError) || error.errno !== EINVAL || multiQueue) throw error;
      multiQueue = true;
      queues.push(openTapQueue(name, multiQueue));
    }
    const actual = (queues[0] as TapQueue).name;
    while (queues.length < count) queues.push(openTapQueue(actual, multiQueue));
    return queues;
  } catch (error) {
    for (const { owned } of queues) owned.close();
    throw error;
  }
}

/** What an inherited descriptor is. @throws SysError - it is not a TAP */
export function inspectTap(fd: number): { name: string; isTap: boolean; hasVnetHeader: boolean } {
  ifreq.bytes.fill(0);
  checked(libc.ioctl(fd, TUNGETIFF, ifreq.address), 'ioctl', `TUNGETIFF of fd ${fd}`);
  const flags = ifreq.data.getUint16(IFNAMSIZ, true);
  return {
    name: nameInIfreq(),
    isTap: (flags & IFF_TAP) !== 0,
    hasVnetHeader: (flags & IFF_VNET_HDR) !== 0,
  };
}

/** Bytes of the header in front of every packet: 10 or 12. @throws SysError */
export function setVnetHeaderBytes(fd: number, bytes: number): void {
  setInt(fd, TUNSETVNETHDRSZ, bytes, 'TUNSETVNETHDRSZ');
}

/** Never makes a writer wait: what the host's stack cannot take it drops, as a wire would. @throws SysError */
export function setUnlimitedSendBuffer(fd: number): void {
  setInt(fd, TUNSETSNDBUF, INT_MAX, 'TUNSETSNDBUF');
}

/** What we take from the interface: TUN_F_ bits. False when the kernel does not know one of them. @throws SysError */
export function setOffloads(fd: number, offloads: number): boolean {
  if (libc.ioctl(fd, TUNSETOFFLOAD, offloads) === 0) return true;
  const errno = lastErrno();
  if (errno === EINVAL) return false;
  throw new SysError('ioctl', errno, 'TUNSETOFFLOAD');
}

/** Whether the interface puts packets into this queue of several. @throws SysError */
export function setQueueAttached(fd: number, attached: boolean): void {
  fillIfreq('', attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE);
  checked(libc.ioctl(fd, TUNSETQUEUE, ifreq.address), 'ioctl', 'TUNSETQUEUE');
}

/**
 * Lets the kernel drop packets before they reach the reader, by a classic BPF program: 8 bytes an instruction, code u16,
 * jt u8, jf u8, k u32. It sees the Ethernet frame; it returns how many bytes to keep, 0 to drop. Undefined lets all pass.
 * @throws SysError - the program is malformed or too long
 */
export function setPacketFilter(fd: number, program: Uint8Array | undefined): void {
  if (program === undefined) {
    checked(libc.ioctl(fd, TUNDETACHFILTER, 0), 'ioctl', 'TUNDETACHFILTER');
    return;
  }
  filterCode.bytes.set(program);
  value.data.setUint16(0, program.length / 8, true);
  value.setU64(8, filterCode.address);
  checked(libc.ioctl(fd, TUNATTACHFILTER, value.address), 'ioctl', 'TUNATTACHFILTER');
}

/** Reads one packet from a non-blocking TAP; what does not fit is lost. Returns bytes, or a negative errno: EAGAIN, none. */
export function readPacket(fd: number, iovecs: number, count: number): number {
  const result = libc.readv(fd, iovecs, count);
  return result === -1 ? -lastErrno() : result;
}

/** Writes one packet from `count` iovecs. Returns bytes, or a negative errno. */
export function writePacket(fd: number, iovecs: number, count: number): number {
  const result = libc.writev(fd, iovecs, count);
  return result === -1 ? -lastErrno() : result;
}

/** Whether reads and writes can be asked not to wait (since Linux 6.4); a packet that is there is lost. */
export function supportsNowait(fd: number): boolean {
  value.setU64(0, ifreq.address);
  value.setU64(8, IFREQ_BYTES);
  return libc.preadv2(fd, value.address, 1, -1, RWF_NOWAIT) >= 0 || lastErrno() !== EOPNOTSUPP;
}

/** The Ethernet address of the TAP of a descriptor, 6 bytes, in whatever network namespace it is. @throws SysError */
export function tapMac(fd: number): Uint8Array {
  checked(libc.ioctl(fd, SIOCGIFHWADDR, ifreq.address), 'ioctl', `SIOCGIFHWADDR of fd ${fd}`);
  return ifreq.bytes.slice(IFNAMSIZ + 2, IFNAMSIZ + 8);
}

/** A sentence for people: why a TAP cannot be had, and what would help. */
export function explainTapError(error: SysError, name: string, queues: number): string {
  if (error.syscall === 'open') return `/dev/net/tun cannot be opened: ${error.message}`;
  if (error.errno === EPERM) {
    return `making a TAP, or taking one over that belongs to another user, needs CAP_NET_ADMIN`;
  }
  if (error.errno === EBUSY) return queues === 1 ? 'in use by another program' : `fewer than ${queues} queues are free`;
  if (error.errno === EINVAL && queues > 1) {
    return `not a TAP of several queues: make it by 'ip tuntap add ${name} mode tap multi_queue'`;
  }
  if (error.errno === EINVAL) return 'there is an interface of this name, and it is not a TAP';
  return error.message;
}
