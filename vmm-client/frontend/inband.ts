/**
 * Notifications as messages, for back ends that get no descriptors (INBAND_NOTIFICATIONS): what drivers write to their
 * kick descriptors becomes VRING_KICK, and what the back end reports is written to their call and error descriptors. The
 * drivers do not know. Source: vhost-user, In-band notifications.
 */

import { Notifier } from '../../protocol/sys/notifier.ts';
import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import type { Vring } from './vring.ts';

/** Sends one kick; resolves when the back end acknowledged it. */
export type SendKick = () => Promise<void>;

interface InbandRing {
  readonly kick: Notifier | undefined;
  readonly call: Notifier | undefined;
  readonly error: Notifier | undefined;
  readonly watch: Watch | undefined;
}

export class InbandNotifications {
  readonly #rings = new Map<number, InbandRing>();
  readonly #onRefusal: (error: Error) => void;

  /** `onRefusal` hears of kicks that could not be sent or were refused. */
  constructor(onRefusal: (error: Error) => void) {
    this.#onRefusal = onRefusal;
  }

  /**
   * Begins to carry the notifications of a ring. Kicks that come before one is acknowledged become one. After one that
   * failed there are no more: the ring has to be added again. The descriptors stay the driver's.
   */
  add({ index, kick, call, error }: Vring, sendKick: SendKick): void {
    this.remove(index);
    // Duplicates: a descriptor has one watch on an event loop, and the driver closes its own as it likes.
    const notifierOf = (fd: typeof kick) => (fd === undefined ? undefined : new Notifier(fd.duplicate()));
    const kicks = notifierOf(kick);
    const watch = kicks && watchReadable(kicks.fd, () => void this.#onKick(index, sendKick));
    this.#rings.set(index, { kick: kicks, call: notifierOf(call), error: notifierOf(error), watch });
  }

  async #onKick(index: number, sendKick: SendKick): Promise<void> {
    const ring = this.#rings.get(index);
    ring?.watch?.pause();
    ring?.kick?.drain();
    try {
      await sendKick();
    } catch (error) {
      this.#onRefusal(error as Error);
      return;
    }
    if (this.#rings.get(index) === ring) ring?.watch?.resume();
  }

  /** The back end used buffers of a ring. Returns whether there is such a ring. */
  call(index: number): boolean {
    this.#rings.get(index)?.call?.signal();
    return this.#rings.has(index);
  }

  /** The back end found a ring broken. Returns whether there is such a ring. */
  fail(index: number): boolean {
    this.#rings.get(index)?.error?.signal();
    return this.#rings.has(index);
  }

  remove(index: number): void {
    const ring = this.#rings.get(index);
    if (ring === undefined) return;
    this.#rings.delete(index);
    ring.watch?.close();
    ring.kick?.close();
    ring.call?.close();
    ring.error?.close();
  }

  close(): void {
    for (const index of [...this.#rings.keys()]) this.remove(index);
  }
}
