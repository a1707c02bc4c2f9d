/**
 * The in-flight region of one front end, which outlives the daemon: what rings have in flight, and what the driver said that
 * it will not say again. Source: vhost-user, Inflight I/O tracking.
 */

import type { SharedExtent } from '../../protocol/sys/mapping.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import type { Attachment } from './device.ts';
import { type Dispatcher, ReplyWithFds } from './dispatcher.ts';
import { createInflightFd, InflightMemory } from './inflight-memory.ts';
import type { Logger } from './logging.ts';
import { Refused } from './refused.ts';

/** What a session knows that its in-flight region needs. */
export interface InflightContext {
  readonly attachment: Attachment;
  readonly log: Logger;
  readonly ringCount: number;
  readonly anyStarted: boolean;
  readonly isPacked: boolean;
}

export class SessionInflight {
  readonly #context: InflightContext;
  #region: InflightMemory | undefined;

  constructor(context: InflightContext) {
    this.#context = context;
    context.attachment.onChoice = () => this.saveState();
  }

  register(d: Dispatcher): void {
    d.on(FRONTEND.GET_INFLIGHT_FD, (request) => {
      const { ringCount, attachment } = this.#context;
      const { reply, fd } = createInflightFd(request, ringCount, attachment.saveChoices !== undefined);
      return new ReplyWithFds(reply, [fd]);
    });
    d.on(FRONTEND.SET_INFLIGHT_FD, (area, [fd]) => {
      const { anyStarted, ringCount, isPacked } = this.#context;
      if (anyStarted) throw new Refused('a ring is started');
      const next = new InflightMemory(area, fd as OwnedFd, ringCount, isPacked);
      this.#region?.close();
      this.#region = next;
      // A region that a killed daemon left behind knows what the driver will not say again; a new one learns it.
      if (next.wasUsed) this.#restoreState(next);
      else this.saveState();
    });
  }

  #restoreState({ deviceState, choices }: InflightMemory): void {
    const { attachment, log } = this.#context;
    attachment.restoreState(deviceState);
    const kept = choices?.load();
    if (kept === undefined) return;
    const complaint = attachment.restoreChoices?.(kept);
    if (complaint !== undefined) log.warn(`what the driver chose before is lost: ${complaint}`);
  }

  /** Keeps the device's bit of state, and what its driver chose, where the next daemon finds it. */
  saveState(): void {
    const region = this.#region;
    if (region === undefined) return;
    const { attachment } = this.#context;
    region.deviceState = attachment.saveState();
    const choices = attachment.saveChoices?.();
    if (choices !== undefined) region.choices?.store(choices);
  }

  /** The in-flight region of a ring. A ring that has none is served all the same: a disk beats no disk. */
  of(index: number, size: number): SharedExtent | undefined {
    const { log, isPacked } = this.#context;
    const region = this.#region?.queue(index, size, isPacked);
    if (region === undefined && this.#region !== undefined) {
      log.warn(`vring ${index} of ${size} entries is not tracked: its in-flight region is smaller`);
    }
    return region;
  }

  get faulted(): boolean {
    return this.#region?.faulted === true;
  }

  /** Nobody uses it any more. */
  close(): void {
    this.#region?.close();
    this.#region = undefined;
  }
}
