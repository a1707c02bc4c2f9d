/**
 * The memory of the guest as a back end has it: all at once, or region by region while rings run (CONFIGURE_MEM_SLOTS).
 * What a back end that comes back gets is what was last asked for. Source: vhost-user, Front-end message types.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS } from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { FrontendConnection } from './connection.ts';
import type { DeviceSetup } from './device-setup.ts';
import type { DirtyLogging } from './dirty-logging.ts';
import { type SharedRegion, sendMemory } from './hand-over.ts';
import type { Link } from './link.ts';

export class MemoryTable {
  readonly #setup: DeviceSetup;
  readonly #link: () => Link;
  readonly #dirtyLog: DirtyLogging;

  constructor(setup: DeviceSetup, link: () => Link, dirtyLog: DirtyLogging) {
    this.#setup = setup;
    this.#link = link;
    this.#dirtyLog = dirtyLog;
  }

  /** Replaces all memory. @throws PeerError - more regions than the back end has slots; refused */
  async set(regions: readonly SharedRegion[]): Promise<void> {
    this.#checkSlots(regions.length);
    await this.#change(regions, (connection) => sendMemory(connection, regions));
  }

  /** Adds a region, unless it is there. @throws PeerError - as `set` */
  async add(added: SharedRegion): Promise<void> {
    const { memory } = this.#setup;
    if (memory.includes(added)) return;
    const all = [...memory, added];
    if (!this.#hasSlots) return this.set(all);
    this.#checkSlots(all.length);
    await this.#change(all, (connection) => connection.command(FRONTEND.ADD_MEM_REG, added.region, [added.memfd]));
  }

  /**
   * Takes a region back. A back end that is away has nothing; one that keeps it loses its connection, and gets the rest
   * when it is back. @throws PeerError - it did
   */
  async remove(removed: SharedRegion): Promise<void> {
    const { memory } = this.#setup;
    if (!memory.includes(removed)) return;
    const link = this.#link();
    const rest = memory.filter((region) => region !== removed);
    this.#setup.memory = rest;
    if (link.state === 'connected') {
      try {
        await link.command((connection) =>
          this.#hasSlots ? connection.command(FRONTEND.REM_MEM_REG, removed.region) : sendMemory(connection, rest),
        );
      } catch (error) {
        if (link.state === 'connected') link.hangUp(error as Error);
        throw error;
      }
    } else if (link.state === 'reconnecting') {
      // What the new connection has of it already, it has no longer.
      link.connection.close();
    }
    await this.#setup.unmap([removed]);
  }

  get #hasSlots(): boolean {
    return hasFeature(this.#link().capabilities.protocolFeatures, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
  }

  async #change(regions: readonly SharedRegion[], send: (connection: FrontendConnection) => Promise<void>) {
    const { memory: before } = this.#setup;
    await this.#link().command(async (connection) => {
      await this.#dirtyLog.cover(connection, regions);
      await send(connection);
    });
    this.#setup.memory = [...regions];
    await this.#setup.unmap(before.filter((memory) => !regions.includes(memory)));
    await this.#setup.map(regions.filter((memory) => !before.includes(memory)));
  }

  #checkSlots(count: number): void {
    const { maxMemorySlots } = this.#link().capabilities;
    if (count > maxMemorySlots) {
      throw new PeerError(`${count} memory regions are needed, the back end has ${maxMemorySlots} slots`);
    }
  }
}
