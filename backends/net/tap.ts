/** The TAP behind the device, while it lives: its link is followed, and it is opened again when it was deleted and is back. */

import { SysError } from '../../protocol/sys/errors.ts';
import { InterfaceWatch, interfaceState } from '../../protocol/sys/network-interface.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import {
  inspectTap,
  setOffloads,
  TUN_F_CSUM,
  TUN_F_TSO4,
  TUN_F_TSO6,
  TUN_F_USO4,
  TUN_F_USO6,
  tapMac,
} from '../../protocol/sys/tap.ts';
import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';
import { inheritTap, isInterfaceOf, type OpenTap, openTap, type TapOptions } from './tap-setup.ts';

/**
 * How long to wait before a TAP that came back is tried again: who made it may hold it still, its bridge may follow.
 * Doubled each time.
 */
const RETRY_MS = 20;
const MAX_RETRY_MS = 5000;

export class Tap {
  /** Called when link or MTU changed. */
  onChange: () => void = () => undefined;
  /** Called when the queues are gone; `close` closes their descriptors, when nobody uses them any more. */
  onQueuesGone: (close: () => void) => void = (close) => close();
  /** Called when there are new ones. */
  onQueuesBack: () => void = () => undefined;
  name: string;
  /** Up, with a carrier. A TAP of another network namespace is taken for that. */
  running = false;
  /** Bytes. */
  mtu: number;
  /** The kernel knows UDP segmentation. */
  readonly uso: boolean;

  readonly #options: TapOptions;
  readonly #log: Logger;
  readonly #watch: InterfaceWatch;
  /** None while the TAP is deleted. */
  #queues: OwnedFd[];
  /** Its address, to be given to one that takes its place. */
  #mac: Uint8Array;
  /** It is in another network namespace. */
  #isForeign = false;
  #lastComplaint = '';
  #retryTimer: NodeJS.Timeout | undefined;
  #retryMs = RETRY_MS;

  /** @throws UsageError - the TAP cannot be had, or not be set up as wanted */
  constructor(options: TapOptions, log: Logger) {
    this.#options = options;
    this.#log = log;
    const { queues, name } = options.tap === undefined ? inheritTap(options, log) : openTap(options, undefined, log);
    this.#queues = queues;
    this.name = name;
    this.mtu = options.mtu ?? 1500;
    const { fd } = queues[0] as OwnedFd;
    this.#mac = tapMac(fd);
    this.uso = setOffloads(fd, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6);
    setOffloads(fd, 0);
    this.#watch = new InterfaceWatch(() => this.check());
    this.#look();
  }

  get isOpen(): boolean {
    return this.#queues.length > 0;
  }

  get fds(): number[] {
    return this.#queues.map((queue) => queue.fd);
  }

  /** Something may have changed: looks at the interface, and opens it again when it is due. */
  check(): void {
    const { running, mtu } = this;
    try {
      if (this.isOpen && !this.#isAttached()) this.#lose();
      if (!this.isOpen && this.#retryTimer === undefined) this.#reopen();
      this.#look();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#log.error(error.message);
    }
    if (running !== this.running) this.#log.info(`${this.name}: link ${this.running ? 'up' : 'down'}`);
    if (running !== this.running || mtu !== this.mtu) this.onChange();
  }

  /** Whether the descriptors still belong to an interface; learns its name, which may have changed. */
  #isAttached(): boolean {
    try {
      this.name = inspectTap((this.#queues[0] as OwnedFd).fd).name;
      return true;
    } catch (error) {
      if (error instanceof SysError) return false;
      throw error;
    }
  }

  /** Notes link, MTU and address. */
  #look(): void {
    const [queue] = this.#queues;
    if (queue === undefined) return;
    const ours = isInterfaceOf(queue.fd, this.name);
    if (!ours && !this.#isForeign) {
      this.#log.warn(`${this.name} is not in this network namespace: its link state and MTU are not followed`);
    }
    this.#isForeign = !ours;
    const state = ours ? interfaceState(this.name) : undefined;
    this.running = state?.running ?? true;
    this.mtu = state?.mtu ?? this.mtu;
    this.#mac = tapMac(queue.fd);
  }

  #lose(): void {
    this.#log.warn(`${this.name} was deleted: the guest has no link until it is back`);
    const lost = this.#queues;
    this.#queues = [];
    this.running = false;
    this.#lastComplaint = '';
    this.#retryMs = RETRY_MS;
    this.onQueuesGone(() => {
      for (const queue of lost) queue.close();
    });
  }

  /** Opens the TAP again, if somebody made it again. */
  #reopen(): void {
    const { tap } = this.#options;
    if (tap !== undefined && interfaceState(tap) !== undefined) this.#tryToOpen();
  }

  #tryToOpen(): void {
    try {
      this.#take(openTap(this.#options, this.#mac, this.#log));
    } catch (error) {
      // SysError: it went away again while it was set up.
      if (!(error instanceof UsageError || error instanceof SysError)) throw error;
      if (error.message !== this.#lastComplaint) this.#log.warn(error.message);
      this.#lastComplaint = error.message;
      this.#retryTimer = setTimeout(() => {
        this.#retryTimer = undefined;
        this.check();
      }, this.#retryMs).unref();
      this.#retryMs = Math.min(2 * this.#retryMs, MAX_RETRY_MS);
    }
  }

  #take({ queues, name }: OpenTap): void {
    this.#queues = queues;
    this.name = name;
    this.#log.info(`${name} is back`);
    this.onQueuesBack();
  }

  /** SIGHUP: makes the TAP again if it was deleted, and looks at its state. */
  reload(): void {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    if (!this.isOpen && this.#options.tap !== undefined) this.#tryToOpen();
    this.check();
  }

  close(): void {
    clearTimeout(this.#retryTimer);
    this.#watch.close();
    for (const queue of this.#queues) queue.close();
    this.#queues = [];
  }
}
