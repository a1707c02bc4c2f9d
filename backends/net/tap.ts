/**
 * The TAP behind the device: opened and set up as the options say, watched for changes of its link, and opened again
 * when it was deleted and is back.
 */

import { createHash } from 'node:crypto';
import { hostname } from 'node:os';
import { EBADFD, EBUSY, EPERM, SysError } from '../../protocol/sys/errors.ts';
import {
  addInterfaceIpv6,
  addToBridge,
  type InterfaceState,
  InterfaceWatch,
  interfaceState,
  setInterfaceIpv4,
  setInterfaceMac,
  setInterfaceMtu,
  setInterfaceUp,
} from '../../protocol/sys/network-interface.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import {
  explainTapError,
  inspectTap,
  openTapQueues,
  setOffloads,
  setUnlimitedSendBuffer,
  TUN_F_CSUM,
  TUN_F_TSO4,
  TUN_F_TSO6,
  TUN_F_USO4,
  TUN_F_USO6,
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

/**
 * How long to wait before a TAP that came back is tried again: who made it may hold it still, and nothing tells of the end
 * of that. Doubled each time.
 */
const RETRY_MS = 20;
const MAX_RETRY_MS = 5000;

export class Tap {
  /** Called when link or MTU changed. */
  onChange: () => void = () => undefined;
  /** Called when the queues have new descriptors. */
  onReopen: () => void = () => undefined;
  name: string;
  /** Up, with a carrier. */
  running = false;
  /** Bytes. */
  mtu = 1500;
  /** The kernel knows UDP segmentation. */
  readonly uso: boolean;

  readonly #options: TapOptions;
  readonly #log: Logger;
  /** Undefined when the interface is in another network namespace: it is taken for up then. */
  readonly #watch: InterfaceWatch | undefined;
  #queues: OwnedFd[];
  #lastComplaint = '';
  #retryTimer: NodeJS.Timeout | undefined;
  #retryMs = RETRY_MS;

  /** @throws UsageError - the TAP cannot be had, or not be set up as wanted */
  constructor(options: TapOptions, log: Logger) {
    this.#options = options;
    this.#log = log;
    const { queues, name } = options.tap === undefined ? this.#inherit() : this.#open(options.tap);
    this.#queues = queues;
    this.name = name;
    const first = (queues[0] as OwnedFd).fd;
    this.uso = setOffloads(first, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6);
    setOffloads(first, 0);
    const state = interfaceState(name);
    if (state === undefined) {
      log.warn(`${name} is not in this network namespace: its link state and MTU are not followed`);
      this.running = true;
      this.mtu = options.mtu ?? this.mtu;
      return;
    }
    this.#note(state);
    this.#watch = new InterfaceWatch(() => this.check());
  }

  get isOpen(): boolean {
    return this.#queues.length > 0;
  }

  get fds(): number[] {
    return this.#queues.map((queue) => queue.fd);
  }

  #inherit(): { queues: OwnedFd[]; name: string } {
    const fds = this.#options.tapFd ?? [];
    const pairs = this.#options.numQueuePairs;
    if (fds.length !== pairs) throw new UsageError(`--tap-fd names ${fds.length} descriptors for ${pairs} queue pairs`);
    const names = fds.map((fd) => {
      try {
        const { name, isTap, hasVnetHeader } = inspectTap(fd);
        if (!isTap) throw new UsageError(`--tap-fd: descriptor ${fd} is a TUN, a TAP is needed`);
        if (!hasVnetHeader) throw new UsageError(`--tap-fd: descriptor ${fd} was opened without IFF_VNET_HDR`);
        return name;
      } catch (error) {
        if (error instanceof SysError)
          throw new UsageError(`--tap-fd: descriptor ${fd} is not a TAP: ${error.message}`);
        throw error;
      }
    });
    const name = names[0] as string;
    if (names.some((other) => other !== name)) throw new UsageError(`--tap-fd names queues of ${names.join(' and ')}`);
    const queues = fds.map((fd) => new OwnedFd(fd));
    this.#setUp(name, queues, false);
    return { queues, name };
  }

  /** @throws UsageError - it cannot be had */
  #open(wanted: string): { queues: OwnedFd[]; name: string } {
    const pairs = this.#options.numQueuePairs;
    const existed = interfaceState(wanted) !== undefined;
    let opened: ReturnType<typeof openTapQueues>;
    try {
      opened = openTapQueues(wanted, pairs);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      throw new UsageError(`--tap=${wanted}: ${explainTapError(error, wanted, pairs)}`);
    }
    const queues = opened.map((queue) => queue.owned);
    const { name } = opened[0] as { name: string };
    try {
      this.#setUp(name, queues, !existed);
    } catch (error) {
      for (const queue of queues) queue.close();
      throw error;
    }
    return { queues, name };
  }

  #setUp(name: string, queues: readonly OwnedFd[], created: boolean): void {
    const { ip, ip6, bridge, hostMac, mtu } = this.#options;
    for (const { fd } of queues) setUnlimitedSendBuffer(fd);
    const mac = hostMac ?? (created ? stableMac(name) : undefined);
    if (mac !== undefined) this.#demand(`--host-mac=${hexMac(mac)}`, () => setInterfaceMac(name, mac));
    if (mtu !== undefined && interfaceState(name)?.mtu !== mtu) {
      this.#demand(`--mtu=${mtu}`, () => setInterfaceMtu(name, mtu));
    }
    if (ip !== undefined) this.#demand('--ip', () => setInterfaceIpv4(name, ip.bytes, ip.prefix));
    if (ip6 !== undefined) this.#demand('--ip6', () => addInterfaceIpv6(name, ip6.bytes, ip6.prefix));
    if (bridge !== undefined) this.#demand(`--bridge=${bridge}`, () => this.#join(bridge, name));
    if (interfaceState(name)?.up !== false) return;
    try {
      setInterfaceUp(name);
    } catch (error) {
      if (!(error instanceof SysError) || error.errno !== EPERM) throw error;
      this.#log.warn(`${name} is down, and setting it up needs CAP_NET_ADMIN: the guest has no link until it is up`);
    }
  }

  #join(bridge: string, name: string): void {
    try {
      addToBridge(bridge, name);
    } catch (error) {
      if (!(error instanceof SysError) || error.errno !== EBUSY) throw error;
      this.#log.info(`${name} is a port of a bridge already`);
    }
  }

  /** Does what an option asks for. @throws UsageError - it cannot be done */
  #demand(option: string, act: () => void): void {
    try {
      act();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      const reason = error.errno === EPERM ? 'changing an interface needs CAP_NET_ADMIN' : error.message;
      throw new UsageError(`${option}: ${reason}`);
    }
  }

  #note(state: InterfaceState | undefined): boolean {
    const running = this.isOpen && state?.running === true;
    const mtu = state?.mtu ?? this.mtu;
    const changed = running !== this.running || mtu !== this.mtu;
    this.running = running;
    this.mtu = mtu;
    return changed;
  }

  /** Looks at the interface: something may have changed. */
  check(): void {
    if (this.#watch === undefined) return;
    const wasRunning = this.running;
    if (this.isOpen && !this.#isAttached()) this.#lose();
    if (!this.isOpen) this.#reopen(false);
    if (!this.#note(interfaceState(this.name))) return;
    if (wasRunning !== this.running) this.#log.info(`${this.name}: link ${this.running ? 'up' : 'down'}`);
    this.onChange();
  }

  /** Whether the descriptors still belong to an interface; learns its name, which may have changed. */
  #isAttached(): boolean {
    try {
      this.name = inspectTap((this.#queues[0] as OwnedFd).fd).name;
      return true;
    } catch (error) {
      if (error instanceof SysError && error.errno === EBADFD) return false;
      throw error;
    }
  }

  #lose(): void {
    this.#log.warn(`${this.name} was deleted: the guest has no link until it is back`);
    const lost = this.#queues;
    this.#queues = [];
    this.#lastComplaint = '';
    this.#retryMs = RETRY_MS;
    this.onReopen();
    for (const queue of lost) queue.close();
  }

  /** Opens the TAP again, if somebody made it again, or else if we may make it ourselves. */
  #reopen(create: boolean): void {
    const { tap } = this.#options;
    clearTimeout(this.#retryTimer);
    if (tap === undefined || (!create && interfaceState(tap) === undefined)) return;
    try {
      const { queues, name } = this.#open(tap);
      this.#queues = queues;
      this.name = name;
      this.#log.info(`${name} is back`);
      this.onReopen();
    } catch (error) {
      // SysError: it went away again while it was set up.
      if (!(error instanceof UsageError || error instanceof SysError)) throw error;
      if (error.message !== this.#lastComplaint) this.#log.warn(error.message);
      this.#lastComplaint = error.message;
      this.#retryTimer = setTimeout(() => this.check(), this.#retryMs).unref();
      this.#retryMs = Math.min(2 * this.#retryMs, MAX_RETRY_MS);
    }
  }

  /** SIGHUP: makes the TAP again if it was deleted, and looks at its state. */
  reload(): void {
    if (!this.isOpen) this.#reopen(true);
    this.check();
  }

  close(): void {
    clearTimeout(this.#retryTimer);
    this.#watch?.close();
    for (const queue of this.#queues) queue.close();
    this.#queues = [];
  }
}
