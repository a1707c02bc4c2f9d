/** How a TAP is come by: opened by name or inherited, and set up as the options say. */

import { createHash } from 'node:crypto';
import { hostname } from 'node:os';
import { EBUSY, EPERM, SysError } from '../../protocol/sys/errors.ts';
import {
  addInterfaceIpv6,
  addToBridge,
  interfaceMac,
  interfaceState,
  setInterfaceIpv4,
  setInterfaceMac,
  setInterfaceMtu,
  setInterfaceUp,
} from '../../protocol/sys/network-interface.ts';
import { makeNonBlocking, OwnedFd } from '../../protocol/sys/owned-fd.ts';
import {
  explainTapError,
  inspectTap,
  openTapQueues,
  setUnlimitedSendBuffer,
  type TapQueue,
  tapMac,
} from '../../protocol/sys/tap.ts';
import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';
import type { InterfaceAddress } from './addresses.ts';

export interface TapOptions {
  /** Its name; undefined when descriptors are given. */
  readonly tap?: string;
  /** Inherited descriptors, one per queue. */
  readonly tapFd?: readonly number[];
  readonly numQueuePairs: number;
  readonly ip?: InterfaceAddress;
  readonly ip6?: InterfaceAddress;
  readonly bridge?: string;
  /** 6 bytes. */
  readonly hostMac?: Uint8Array;
  /** Bytes. */
  readonly mtu?: number;
}

/** A TAP with all its queues, which belong to whoever gets this. */
export interface OpenTap {
  readonly queues: OwnedFd[];
  readonly name: string;
}

/** The kernel takes about 30 ms to let go of the TAP of a program that was killed. */
const BUSY_DEADLINE_MS = 500;
const BUSY_PAUSE_MS = 20;

/** The same each time the daemon starts, or the guest's neighbour table would be wrong after a restart. */
function stableMac(name: string): Uint8Array {
  const mac = new Uint8Array(createHash('sha256').update(`${hostname()}/${name}`).digest().subarray(0, 6));
  // Locally administered, not a group.
  mac[0] = ((mac[0] as number) & 0xfc) | 2;
  return mac;
}

function hexMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** Whether the TAP of a descriptor is the interface of this name that we see, and not one of another network namespace. */
export function isInterfaceOf(fd: number, name: string): boolean {
  const seen = interfaceMac(name);
  return seen !== undefined && Buffer.compare(seen, tapMac(fd)) === 0;
}

/** Takes over the descriptors of --tap-fd. @throws UsageError - they are not what is needed */
export function inheritTap(options: TapOptions, log: Logger): OpenTap {
  const fds = options.tapFd ?? [];
  const { numQueuePairs } = options;
  if (fds.length !== numQueuePairs) {
    throw new UsageError(`--tap-fd names ${fds.length} descriptors for ${numQueuePairs} queue pairs`);
  }
  const names = fds.map(inheritedName);
  const name = names[0] as string;
  if (names.some((other) => other !== name)) throw new UsageError(`--tap-fd names queues of ${names.join(' and ')}`);
  const queues = fds.map((fd) => new OwnedFd(fd));
  for (const { fd } of queues) makeNonBlocking(fd);
  if (isInterfaceOf(fds[0] as number, name)) setUp(options, { queues, name }, undefined, log);
  else refuseChanges(options, name);
  return { queues, name };
}

function inheritedName(fd: number): string {
  try {
    const { name, isTap, hasVnetHeader } = inspectTap(fd);
    if (!isTap) throw new UsageError(`--tap-fd: descriptor ${fd} is a TUN, a TAP is needed`);
    if (!hasVnetHeader) throw new UsageError(`--tap-fd: descriptor ${fd} was opened without IFF_VNET_HDR`);
    return name;
  } catch (error) {
    if (error instanceof SysError) throw new UsageError(`--tap-fd: descriptor ${fd} is not a TAP: ${error.message}`);
    throw error;
  }
}

/** An interface of another namespace cannot be changed from here. @throws UsageError - but that is asked for */
function refuseChanges({ ip, ip6, bridge, hostMac, mtu }: TapOptions, name: string): void {
  const wanted = { '--ip': ip, '--ip6': ip6, '--bridge': bridge, '--host-mac': hostMac, '--mtu': mtu };
  const option = Object.entries(wanted).find(([, value]) => value !== undefined)?.[0];
  if (option !== undefined) throw new UsageError(`${option}: the TAP ${name} is in another network namespace`);
}

/**
 * Opens the TAP of --tap, or makes it.
 * @param mac the address it had before it was deleted; undefined at the first time
 * @throws UsageError - it cannot be had, or not be set up as wanted; @throws SysError - it was deleted meanwhile
 */
export function openTap(options: TapOptions, mac: Uint8Array | undefined, log: Logger): OpenTap {
  const wanted = options.tap as string;
  const existed = interfaceState(wanted) !== undefined;
  const opened = mac === undefined ? openPatiently(options) : openNow(options);
  const tap = { queues: opened.map(({ owned }) => owned), name: (opened[0] as TapQueue).name };
  try {
    setUp(options, tap, mac ?? (existed ? undefined : stableMac(tap.name)), log);
    return tap;
  } catch (error) {
    for (const queue of tap.queues) queue.close();
    throw error;
  }
}

function openNow({ tap = '', numQueuePairs }: TapOptions): TapQueue[] {
  try {
    return openTapQueues(tap, numQueuePairs);
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    throw new UsageError(`--tap=${tap}: ${explainTapError(error, tap, numQueuePairs)}`);
  }
}

/** At the start nothing else is to be done, so waiting for a predecessor to be gone may block. */
function openPatiently(options: TapOptions): TapQueue[] {
  const nap = new Int32Array(new SharedArrayBuffer(4));
  const deadline = performance.now() + BUSY_DEADLINE_MS;
  while (performance.now() < deadline) {
    try {
      return openTapQueues(options.tap as string, options.numQueuePairs);
    } catch (error) {
      if (!(error instanceof SysError) || error.errno !== EBUSY) break;
    }
    Atomics.wait(nap, 0, 0, BUSY_PAUSE_MS);
  }
  return openNow(options);
}

function setUp(options: TapOptions, { queues, name }: OpenTap, mac: Uint8Array | undefined, log: Logger): void {
  const { ip, ip6, bridge, hostMac, mtu } = options;
  for (const { fd } of queues) setUnlimitedSendBuffer(fd);
  if (hostMac !== undefined) demand(`--host-mac=${hexMac(hostMac)}`, () => setInterfaceMac(name, hostMac));
  else if (mac !== undefined) attempt(() => setInterfaceMac(name, mac));
  if (mtu !== undefined && interfaceState(name)?.mtu !== mtu) {
    demand(`--mtu=${mtu}`, () => setInterfaceMtu(name, mtu));
  }
  if (ip !== undefined) demand('--ip', () => setInterfaceIpv4(name, ip.bytes, ip.prefix));
  if (ip6 !== undefined) demand('--ip6', () => addInterfaceIpv6(name, ip6.bytes, ip6.prefix));
  if (bridge !== undefined) demand(`--bridge=${bridge}`, () => join(bridge, name, log));
  if (interfaceState(name)?.up !== false || attempt(() => setInterfaceUp(name))) return;
  log.warn(`${name} is down, and setting it up needs CAP_NET_ADMIN: the guest has no link until it is up`);
}

function join(bridge: string, name: string, log: Logger): void {
  try {
    addToBridge(bridge, name);
  } catch (error) {
    if (!(error instanceof SysError) || error.errno !== EBUSY) throw error;
    log.info(`${name} is a port of a bridge already`);
  }
}

/** Does what an option asks for. @throws UsageError - it cannot be done */
function demand(option: string, act: () => void): void {
  try {
    act();
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    const reason = error.errno === EPERM ? 'changing an interface needs CAP_NET_ADMIN' : error.message;
    throw new UsageError(`${option}: ${reason}`);
  }
}

/** Does what would be good. False when it is not permitted. */
function attempt(act: () => void): boolean {
  try {
    act();
    return true;
  } catch (error) {
    if (error instanceof SysError && error.errno === EPERM) return false;
    throw error;
  }
}
