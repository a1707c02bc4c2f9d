/**
 * Which pages of guest memory a device writes, while the guest runs on: for whoever copies the memory meanwhile. It goes
 * on over resets of the device and over the death of its back end. Source: vhost-user, Migration.
 */

import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_LOG_SHMFD } from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { hasFeature, VHOST_F_LOG_ALL } from '../../protocol/virtio/reserved-features.ts';
import type { FrontendConnection } from './connection.ts';
import { coveredBytes, type DeviceSetup, sendLog } from './device-setup.ts';
import { DirtyBitmap, type DirtyRange } from './dirty-bitmap.ts';
import type { SharedRegion } from './hand-over.ts';
import type { Link } from './link.ts';

export class DirtyLogging {
  readonly #setup: DeviceSetup;
  readonly #link: () => Link;

  constructor(setup: DeviceSetup, link: () => Link) {
    this.#setup = setup;
    this.#link = link;
  }

  get isOn(): boolean {
    return this.#setup.log !== undefined;
  }

  /**
   * From now on every write of the device is noted, to used rings also. The back end may signal `changed` (an eventfd that
   * stays the caller's) when there is something new. Before its features are settled a device writes nothing, and hears
   * of the log when they are.
   * @throws PeerError - the back end cannot do that, or refuses
   */
  async start(changed?: OwnedFd): Promise<void> {
    if (this.isOn) return;
    const { features, protocolFeatures } = this.#link().capabilities;
    if (!hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_LOG_SHMFD) || !hasFeature(features, VHOST_F_LOG_ALL)) {
      throw new PeerError('the back end has no dirty log (LOG_SHMFD, LOG_ALL)');
    }
    const log = new DirtyBitmap(coveredBytes(this.#setup.memory));
    this.#setup.log = log;
    try {
      await this.#link().command(async (connection) => {
        if (this.#setup.features !== undefined) await this.#setup.sendFeatures(connection);
        if (changed !== undefined) await connection.command(FRONTEND.SET_LOG_FD, undefined, [changed]);
        await this.#setup.sendAddresses(connection);
      });
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Takes what was written since `start` or the last call. */
  take(): DirtyRange[] {
    return this.#setup.log?.take() ?? [];
  }

  /** Ends it. Returns what was written since the last `take`. */
  async stop(): Promise<DirtyRange[]> {
    const { log } = this.#setup;
    if (log === undefined) return [];
    this.#setup.log = undefined;
    try {
      await this.#link().command(async (connection) => {
        await this.#setup.sendAddresses(connection);
        if (this.#setup.features !== undefined) await this.#setup.sendFeatures(connection);
      });
      return log.take();
    } finally {
      log.close();
    }
  }

  /** Gives the back end a larger log before it gets memory that the present one does not cover. */
  async cover(connection: FrontendConnection, memory: readonly SharedRegion[]): Promise<void> {
    const { log } = this.#setup;
    const needed = coveredBytes(memory);
    if (log === undefined || needed <= log.coveredBytes) return;
    const larger = new DirtyBitmap(needed);
    try {
      await sendLog(connection, larger);
    } catch (error) {
      larger.close();
      throw error;
    }
    this.#setup.log = larger;
    for (const range of log.take()) larger.mark(range);
    log.close();
  }

  /** Ends it without telling the back end, which is away or not needed any more. */
  close(): void {
    this.#setup.log?.close();
    this.#setup.log = undefined;
  }
}
