/**
 * What a back end knows of the mappings of its IOMMU: it asks for those that it needs (BACKEND_IOTLB_MSG), is told them,
 * and is told when they end (IOTLB_MSG). Source: vhost-user, IOMMU support.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { IOTLB_TYPE_INVALIDATE, IOTLB_TYPE_UPDATE } from '../../protocol/vhost-user/payloads.ts';
import { hasFeature, VIRTIO_F_ACCESS_PLATFORM } from '../../protocol/virtio/reserved-features.ts';
import type { FrontendConnection } from './connection.ts';
import type { IoMapping, IoMappings, IoMappingsListener } from './io-mappings.ts';

export class BackendIotlb implements IoMappingsListener {
  readonly #mappings: IoMappings;
  readonly #connection: () => FrontendConnection;
  readonly #onRefusal: (error: Error) => void;
  readonly #hangUp: (cause: Error) => void;
  readonly #leave: () => void;
  /** The back end may remember that nothing is mapped in this range: it has to hear when that changes. */
  #deniedFrom = Number.POSITIVE_INFINITY;
  #deniedTo = 0;

  /**
   * Listens to `mappings` until it is closed. `connection` is the present one of the back end, which `hangUp` ends;
   * `onRefusal` hears of updates that the back end asked for and refused.
   */
  constructor(
    mappings: IoMappings,
    connection: () => FrontendConnection,
    onRefusal: (error: Error) => void,
    hangUp: (cause: Error) => void,
  ) {
    this.#mappings = mappings;
    this.#connection = connection;
    this.#onRefusal = onRefusal;
    this.#hangUp = hangUp;
    this.#leave = mappings.listen(this);
  }

  /**
   * The back end misses a mapping. Sends it, and returns whether there was one that allows what is wanted. The answer to a
   * miss does not wait for the acknowledgement of the update, which a back end may give only afterwards.
   */
  miss(iova: bigint, permission: number): boolean {
    const mapping = this.#mappings.grant(iova, permission);
    if (mapping === undefined) {
      this.#deniedFrom = Math.min(this.#deniedFrom, Number(iova));
      this.#deniedTo = Math.max(this.#deniedTo, Number(iova) + 1);
      return false;
    }
    update(this.#connection(), mapping).catch(this.#onRefusal);
    return true;
  }

  async mapped(mapping: IoMapping): Promise<void> {
    if (mapping.iova >= this.#deniedTo || mapping.iova + mapping.size <= this.#deniedFrom) return;
    await this.#tell((connection) => update(connection, mapping));
  }

  async unmapped(iova: number, size: number): Promise<void> {
    if (iova <= this.#deniedFrom && iova + size >= this.#deniedTo) {
      // It forgets that too.
      this.#deniedFrom = Number.POSITIVE_INFINITY;
      this.#deniedTo = 0;
    }
    const range = { iova: BigInt(iova), size: BigInt(size), userAddress: 0n, permission: 0 };
    try {
      await this.#tell((connection) => send(connection, { ...range, type: IOTLB_TYPE_INVALIDATE }));
    } catch (error) {
      // It would go on using what is another's by now.
      this.#hangUp(error as Error);
      throw error;
    }
  }

  /** Tells a back end that translates. One that has gone away uses nothing, and asks when it is back. */
  async #tell(send: (connection: FrontendConnection) => Promise<void>): Promise<void> {
    const connection = this.#connection();
    if (connection.isClosed || !hasFeature(connection.features, VIRTIO_F_ACCESS_PLATFORM)) return;
    try {
      await send(connection);
    } catch (error) {
      if (!connection.isClosed || connection.isGivenUp) throw error;
    }
  }

  close(): void {
    this.#leave();
  }
}

async function update(connection: FrontendConnection, mapping: IoMapping): Promise<void> {
  await send(connection, {
    iova: BigInt(mapping.iova),
    size: BigInt(mapping.size),
    userAddress: BigInt(mapping.userAddress),
    permission: mapping.permission,
    type: IOTLB_TYPE_UPDATE,
  });
}

async function send(
  connection: FrontendConnection,
  message: Parameters<typeof FRONTEND.IOTLB_MSG.request.encode>[0],
): Promise<void> {
  const code = await connection.call(FRONTEND.IOTLB_MSG, message);
  if (code === 0n) return;
  const what = message.type === IOTLB_TYPE_UPDATE ? 'update' : 'invalidation';
  throw new PeerError(`IOTLB ${what} of ${message.size} bytes at 0x${message.iova.toString(16)} was refused`);
}
