/** Requests of the IOMMU's driver: from bytes to a change, and to the answer. Source: VIRTIO 1.3, 5.13.6 Device operations. */

import {
  VIRTIO_IOMMU_REQ_ATTACH as ATTACH,
  VIRTIO_IOMMU_REQ_DETACH as DETACH,
  VIRTIO_IOMMU_REQ_MAP as MAP,
  VIRTIO_IOMMU_REQ_PROBE as PROBE,
  VIRTIO_IOMMU_REQ_UNMAP as UNMAP,
  VIRTIO_IOMMU_F_BYPASS_CONFIG,
  VIRTIO_IOMMU_F_MAP_UNMAP,
  VIRTIO_IOMMU_F_PROBE,
  VIRTIO_IOMMU_REQ_ATTACH_BYTES,
  VIRTIO_IOMMU_REQ_DETACH_BYTES,
  VIRTIO_IOMMU_REQ_MAP_BYTES,
  VIRTIO_IOMMU_REQ_PROBE_BYTES,
  VIRTIO_IOMMU_REQ_UNMAP_BYTES,
  VIRTIO_IOMMU_S_INVAL,
  VIRTIO_IOMMU_S_NOENT,
  VIRTIO_IOMMU_S_OK,
  VIRTIO_IOMMU_T_ATTACH,
  VIRTIO_IOMMU_T_DETACH,
  VIRTIO_IOMMU_T_MAP,
  VIRTIO_IOMMU_T_PROBE,
  VIRTIO_IOMMU_T_UNMAP,
  VIRTIO_IOMMU_TAIL_BYTES,
} from '../../../../protocol/virtio/iommu.ts';
import { hasFeature } from '../../../../protocol/virtio/reserved-features.ts';
import type { AddressSpaces } from './address-spaces.ts';

/** Bytes of properties that an answer to PROBE has. There are no properties, so they are zeros. */
export const PROBE_BYTES = 64;

/** What a request is that nobody understands: it goes back as it came. */
const NOTHING = new Uint8Array(0);

interface RequestType {
  /** Bytes of its device-readable part. */
  readonly bytes: number;
  /** Without this feature there is no such request. */
  readonly feature: number | undefined;
  /** Returns its status. */
  handle(spaces: AddressSpaces, request: DataView, features: bigint): Promise<number>;
}

const TYPES: ReadonlyMap<number, RequestType> = new Map<number, RequestType>([
  [
    VIRTIO_IOMMU_T_ATTACH,
    {
      bytes: VIRTIO_IOMMU_REQ_ATTACH_BYTES,
      feature: undefined,
      handle: async (spaces, request, features) => {
        const flags = request.getUint32(ATTACH.flags, true);
        // The only flag there is comes with this feature.
        const isKnown = flags === 0 || hasFeature(features, VIRTIO_IOMMU_F_BYPASS_CONFIG);
        if (!isKnown || request.getUint32(ATTACH.reserved, true) !== 0) return VIRTIO_IOMMU_S_INVAL;
        return spaces.attach(request.getUint32(ATTACH.domain, true), request.getUint32(ATTACH.endpoint, true), flags);
      },
    },
  ],
  [
    VIRTIO_IOMMU_T_DETACH,
    {
      bytes: VIRTIO_IOMMU_REQ_DETACH_BYTES,
      feature: undefined,
      handle: (spaces, request) =>
        spaces.detach(request.getUint32(DETACH.domain, true), request.getUint32(DETACH.endpoint, true)),
    },
  ],
  [
    VIRTIO_IOMMU_T_MAP,
    {
      bytes: VIRTIO_IOMMU_REQ_MAP_BYTES,
      feature: VIRTIO_IOMMU_F_MAP_UNMAP,
      handle: (spaces, request) => {
        const start = request.getBigUint64(MAP.virt_start, true);
        const end = request.getBigUint64(MAP.virt_end, true);
        const physical = request.getBigUint64(MAP.phys_start, true);
        return spaces.map(
          request.getUint32(MAP.domain, true),
          start,
          end,
          physical,
          request.getUint32(MAP.flags, true),
        );
      },
    },
  ],
  [
    VIRTIO_IOMMU_T_UNMAP,
    {
      bytes: VIRTIO_IOMMU_REQ_UNMAP_BYTES,
      feature: VIRTIO_IOMMU_F_MAP_UNMAP,
      handle: (spaces, request) => {
        const start = request.getBigUint64(UNMAP.virt_start, true);
        return spaces.unmap(request.getUint32(UNMAP.domain, true), start, request.getBigUint64(UNMAP.virt_end, true));
      },
    },
  ],
  [
    VIRTIO_IOMMU_T_PROBE,
    {
      bytes: VIRTIO_IOMMU_REQ_PROBE_BYTES,
      feature: VIRTIO_IOMMU_F_PROBE,
      handle: async (spaces, request) =>
        spaces.endpoints.has(request.getUint32(PROBE.endpoint, true)) ? VIRTIO_IOMMU_S_OK : VIRTIO_IOMMU_S_NOENT,
    },
  ],
]);

/**
 * Does what a request says, and resolves with the answer for its `writable` bytes: nothing, where it is of no known type,
 * or too short for its type or for a status.
 */
export async function answerRequest(
  spaces: AddressSpaces,
  features: bigint,
  request: Uint8Array,
  writable: number,
): Promise<Uint8Array> {
  const [number = 0] = request;
  const type = TYPES.get(number);
  if (type === undefined || request.length < type.bytes || writable < VIRTIO_IOMMU_TAIL_BYTES) return NOTHING;
  if (type.feature !== undefined && !hasFeature(features, type.feature)) return NOTHING;
  // Of PROBE, as many properties as the driver left room for are before the status.
  const properties = number === VIRTIO_IOMMU_T_PROBE ? Math.min(writable - VIRTIO_IOMMU_TAIL_BYTES, PROBE_BYTES) : 0;
  if (number === VIRTIO_IOMMU_T_PROBE && properties < PROBE_BYTES) return tail(VIRTIO_IOMMU_S_INVAL, properties);
  const view = new DataView(request.buffer, request.byteOffset, request.length);
  return tail(await type.handle(spaces, view, features), properties);
}

/** The end of an answer, with zeros before it. */
function tail(status: number, before: number): Uint8Array {
  const bytes = new Uint8Array(before + VIRTIO_IOMMU_TAIL_BYTES);
  bytes[before] = status;
  return bytes;
}
