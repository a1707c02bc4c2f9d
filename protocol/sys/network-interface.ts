/**
 * Network interfaces of the host: state, address, MTU, bridge, and word of changes. Source: netdevice(7), netlink(7),
 * rtnetlink(7). Everything is about the network namespace of the process.
 */

import { EEXIST, ENODEV, SysError } from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { OwnedFd } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';
import { type Watch, watchReadable } from './readiness.ts';
import { IFNAMSIZ } from './tap.ts';

const AF_INET = 2;
const AF_INET6 = 10;
const AF_NETLINK = 16;
const SOCK_DGRAM = 2;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0x80000;
const SOCK_NONBLOCK = 0x800;
const NETLINK_ROUTE = 0;
const RTMGRP_LINK = 1;
const SOL_NETLINK = 270;
const NETLINK_NO_ENOBUFS = 5;
const MSG_DONTWAIT = 0x40;
const ARPHRD_ETHER = 1;

const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCSIFADDR = 0x8916;
const SIOCSIFNETMASK = 0x891c;
const SIOCGIFMTU = 0x8921;
const SIOCSIFMTU = 0x8922;
const SIOCSIFHWADDR = 0x8924;
const SIOCGIFHWADDR = 0x8927;
const SIOCGIFINDEX = 0x8933;
const SIOCETHTOOL = 0x8946;
const SIOCBRADDIF = 0x89a2;
const ETHTOOL_GLINK = 0x0a;

const IFF_UP = 0x0001;
const IFREQ_BYTES = 40;
const IN6_IFREQ_BYTES = 24;

const ifreq = allocatePinned(IFREQ_BYTES);
const in6Ifreq = allocatePinned(IN6_IFREQ_BYTES);
/** struct ethtool_value: cmd u32, data u32. */
const ethtoolValue = allocatePinned(8);
const netlinkAddress = allocatePinned(12);
const enabled = allocatePinned(4);
enabled.data.setUint32(0, 1, true);
const sink = allocatePinned(8192);

/** Stays open: there must be an answer also when no further descriptor is to be had. */
let querySocket: OwnedFd | undefined;

/** One request about one interface: fills the name, lets the caller fill the rest, and gives the answer's bytes. */
function request(
  name: string,
  ioctl: number,
  what: string,
  fill?: (data: DataView, bytes: Uint8Array) => void,
): DataView {
  querySocket ??= new OwnedFd(checked(libc.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket'));
  ifreq.bytes.fill(0);
  new TextEncoder().encodeInto(name, ifreq.bytes.subarray(0, IFNAMSIZ - 1));
  fill?.(ifreq.data, ifreq.bytes);
  checked(libc.ioctl(querySocket.fd, ioctl, ifreq.address), 'ioctl', `${what} of ${name}`);
  return ifreq.data;
}

/** What `act` finds of an interface; undefined when there is none. */
function ifPresent<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch (error) {
    if (error instanceof SysError && error.errno === ENODEV) return undefined;
    throw error;
  }
}

/** State of an interface: `running` is up with a carrier; `mtu` in bytes. */
export interface InterfaceState {
  readonly up: boolean;
  readonly running: boolean;
  readonly mtu: number;
}

/** The carrier as it is now: IFF_RUNNING follows it up to a second later. */
function hasCarrier(name: string): boolean {
  ethtoolValue.data.setUint32(0, ETHTOOL_GLINK, true);
  request(name, SIOCETHTOOL, 'ETHTOOL_GLINK', (data) => {
    data.setBigUint64(IFNAMSIZ, BigInt(ethtoolValue.address), true);
  });
  return ethtoolValue.data.getUint32(4, true) !== 0;
}

/** The interface's state; undefined when there is none of this name. @throws SysError */
export function interfaceState(name: string): InterfaceState | undefined {
  return ifPresent(() => {
    const up = (request(name, SIOCGIFFLAGS, 'SIOCGIFFLAGS').getUint16(IFNAMSIZ, true) & IFF_UP) !== 0;
    const mtu = request(name, SIOCGIFMTU, 'SIOCGIFMTU').getInt32(IFNAMSIZ, true);
    return { up, running: up && hasCarrier(name), mtu };
  });
}

/** The interface's Ethernet address, 6 bytes; undefined when there is none of this name. @throws SysError */
export function interfaceMac(name: string): Uint8Array | undefined {
  return ifPresent(() => {
    const { buffer, byteOffset } = request(name, SIOCGIFHWADDR, 'SIOCGIFHWADDR');
    return new Uint8Array(buffer, byteOffset + IFNAMSIZ + 2, 6).slice();
  });
}

/** @throws SysError - EPERM without CAP_NET_ADMIN, as all that follow */
export function setInterfaceUp(name: string): void {
  const flags = request(name, SIOCGIFFLAGS, 'SIOCGIFFLAGS').getUint16(IFNAMSIZ, true);
  request(name, SIOCSIFFLAGS, 'SIOCSIFFLAGS', (data) => data.setUint16(IFNAMSIZ, flags | IFF_UP, true));
}

/** @throws SysError - EINVAL: the interface does not take this MTU (bytes) */
export function setInterfaceMtu(name: string, mtu: number): void {
  request(name, SIOCSIFMTU, 'SIOCSIFMTU', (data) => data.setInt32(IFNAMSIZ, mtu, true));
}

/** Sets the Ethernet address, 6 bytes. @throws SysError - EADDRNOTAVAIL: a group address */
export function setInterfaceMac(name: string, mac: Uint8Array): void {
  request(name, SIOCSIFHWADDR, 'SIOCSIFHWADDR', (data, bytes) => {
    data.setUint16(IFNAMSIZ, ARPHRD_ETHER, true);
    bytes.set(mac, IFNAMSIZ + 2);
  });
}

/** Sets the IPv4 address (4 bytes) in place of the first that is there. @throws SysError */
export function setInterfaceIpv4(name: string, address: Uint8Array, prefix: number): void {
  const fill = (bytes4: Uint8Array) => (data: DataView, bytes: Uint8Array) => {
    data.setUint16(IFNAMSIZ, AF_INET, true);
    bytes.set(bytes4, IFNAMSIZ + 4);
  };
  const mask = new Uint8Array(4);
  new DataView(mask.buffer).setUint32(0, prefix === 0 ? 0 : (0xffff_ffff << (32 - prefix)) >>> 0);
  request(name, SIOCSIFADDR, 'SIOCSIFADDR', fill(address));
  request(name, SIOCSIFNETMASK, 'SIOCSIFNETMASK', fill(mask));
}

/** Adds an IPv6 address (16 bytes); one that is there already stays. @throws SysError */
export function addInterfaceIpv6(name: string, address: Uint8Array, prefix: number): void {
  const index = request(name, SIOCGIFINDEX, 'SIOCGIFINDEX').getInt32(IFNAMSIZ, true);
  const socket = new OwnedFd(checked(libc.socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket', 'AF_INET6'));
  try {
    in6Ifreq.bytes.set(address);
    in6Ifreq.data.setUint32(16, prefix, true);
    in6Ifreq.data.setInt32(20, index, true);
    if (libc.ioctl(socket.fd, SIOCSIFADDR, in6Ifreq.address) === 0) return;
    const errno = lastErrno();
    if (errno !== EEXIST) throw new SysError('ioctl', errno, `SIOCSIFADDR (IPv6) of ${name}`);
  } finally {
    socket.close();
  }
}

/** Makes the interface a port of a bridge. @throws SysError - EBUSY: it is a port of one already */
export function addToBridge(bridge: string, name: string): void {
  const index = request(name, SIOCGIFINDEX, 'SIOCGIFINDEX').getInt32(IFNAMSIZ, true);
  request(bridge, SIOCBRADDIF, 'SIOCBRADDIF', (data) => data.setInt32(IFNAMSIZ, index, true));
}

/** Word of every change of any interface of the namespace; the caller looks at what it cares for. */
export class InterfaceWatch {
  readonly #socket: OwnedFd;
  readonly #watch: Watch;

  /** @throws SysError */
  constructor(onChange: () => void) {
    const type = SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK;
    this.#socket = new OwnedFd(checked(libc.socket(AF_NETLINK, type, NETLINK_ROUTE), 'socket', 'AF_NETLINK'));
    // sockaddr_nl: family u16, pad u16, port u32 (0: the kernel chooses), groups u32.
    netlinkAddress.bytes.fill(0);
    netlinkAddress.data.setUint16(0, AF_NETLINK, true);
    netlinkAddress.data.setUint32(8, RTMGRP_LINK, true);
    try {
      checked(libc.bind(this.#socket.fd, netlinkAddress.address, 12), 'bind', 'AF_NETLINK');
    } catch (error) {
      this.#socket.close();
      throw error;
    }
    const { fd } = this.#socket;
    libc.setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, enabled.address, 4);
    this.#watch = watchReadable(fd, () => {
      // Lost messages (ENOBUFS) change nothing: who is told looks for itself.
      while (libc.recv(fd, sink.address, sink.length, MSG_DONTWAIT) > 0) {}
      // An overrun stops the watch.
      this.#watch.resume();
      onChange();
    });
  }

  close(): void {
    this.#watch.close();
    this.#socket.close();
  }
}
