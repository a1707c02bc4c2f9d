/** What a block device says of itself in its configuration space. Source: VIRTIO 1.3, 5.2.4, 5.2.5 Device Initialization. */

import {
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_CONFIG_BYTES,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_GEOMETRY,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_SECTOR_BYTES,
} from '../../protocol/virtio/blk.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';

/** Fields are undefined where their feature is not offered; a sector is 512 bytes. */
export interface BlkConfig {
  readonly capacityBytes: number;
  /** Bytes of one descriptor, and data descriptors of one request, at most. */
  readonly sizeMax: number | undefined;
  readonly segMax: number | undefined;
  readonly geometry: { readonly cylinders: number; readonly heads: number; readonly sectors: number } | undefined;
  /** Logical block in bytes; 512 where not stated. */
  readonly blockSize: number;
  readonly topology: Topology | undefined;
  /** Whether the cache is in write-back mode now. */
  readonly writeback: boolean | undefined;
  readonly numQueues: number | undefined;
  readonly discard: RangeLimits | undefined;
  readonly writeZeroes: RangeLimits | undefined;
  /** Whether WRITE_ZEROES may give space back. */
  readonly writeZeroesMayUnmap: boolean | undefined;
}

export interface Topology {
  readonly physicalBlockBytes: number;
  /** In logical blocks. */
  readonly alignmentOffset: number;
  readonly minIoBlocks: number;
  readonly optIoBlocks: number;
}

export interface RangeLimits {
  readonly maxSectors: number;
  readonly maxSegments: number;
  /** Sectors; only discard has one. */
  readonly sectorAlignment: number;
}

/** The sizes that block devices of the various versions of the standard have, largest first. */
export const BLK_CONFIG_SIZES: readonly number[] = [VIRTIO_BLK_CONFIG_BYTES, 72, 60, 36, 34, 8];

/** Feature bits, and where the fields that come with them end. */
const FEATURE_FIELDS_END: readonly (readonly [number, number])[] = [
  [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_CONFIG.size_max + 4],
  [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_CONFIG.seg_max + 4],
  [VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_CONFIG.geometry + 4],
  [VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_CONFIG.blk_size + 4],
  [VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_CONFIG.opt_io_size + 4],
  [VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_CONFIG.writeback + 1],
  [VIRTIO_BLK_F_MQ, VIRTIO_BLK_CONFIG.num_queues + 2],
  [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_CONFIG.discard_sector_alignment + 4],
  [VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_CONFIG.write_zeroes_may_unmap + 1],
];

/**
 * Decodes what was read of the configuration space of a device with the given features.
 * @throws RangeError - it is too short for a feature it offers, or the capacity is not one
 */
export function decodeBlkConfig(bytes: Uint8Array, features: bigint): BlkConfig {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const at = VIRTIO_BLK_CONFIG;
  const has = (bit: number) => hasFeature(features, bit);
  const needed = FEATURE_FIELDS_END.reduce((most, [bit, end]) => (has(bit) ? Math.max(most, end) : most), 8);
  if (bytes.length < needed) {
    throw new RangeError(`the configuration space has ${bytes.length} bytes, the features offered need ${needed}`);
  }
  const capacitySectors = view.getBigUint64(at.capacity, true);
  if (capacitySectors * BigInt(VIRTIO_BLK_SECTOR_BYTES) > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new RangeError(`a capacity of ${capacitySectors} sectors is above the limit of 2^53 - 1 bytes`);
  }
  const blockSize = has(VIRTIO_BLK_F_BLK_SIZE) ? view.getUint32(at.blk_size, true) : VIRTIO_BLK_SECTOR_BYTES;
  return {
    capacityBytes: Number(capacitySectors) * VIRTIO_BLK_SECTOR_BYTES,
    sizeMax: has(VIRTIO_BLK_F_SIZE_MAX) ? view.getUint32(at.size_max, true) : undefined,
    segMax: has(VIRTIO_BLK_F_SEG_MAX) ? view.getUint32(at.seg_max, true) : undefined,
    geometry: has(VIRTIO_BLK_F_GEOMETRY)
      ? {
          cylinders: view.getUint16(at.geometry, true),
          heads: view.getUint8(at.geometry + 2),
          sectors: view.getUint8(at.geometry + 3),
        }
      : undefined,
    blockSize,
    topology: has(VIRTIO_BLK_F_TOPOLOGY)
      ? {
          physicalBlockBytes: blockSize * 2 ** view.getUint8(at.physical_block_exp),
          alignmentOffset: view.getUint8(at.alignment_offset),
          minIoBlocks: view.getUint16(at.min_io_size, true),
          optIoBlocks: view.getUint32(at.opt_io_size, true),
        }
      : undefined,
    writeback: has(VIRTIO_BLK_F_CONFIG_WCE) ? view.getUint8(at.writeback) !== 0 : undefined,
    numQueues: has(VIRTIO_BLK_F_MQ) ? view.getUint16(at.num_queues, true) : undefined,
    discard: has(VIRTIO_BLK_F_DISCARD)
      ? {
          maxSectors: view.getUint32(at.max_discard_sectors, true),
          maxSegments: view.getUint32(at.max_discard_seg, true),
          sectorAlignment: view.getUint32(at.discard_sector_alignment, true),
        }
      : undefined,
    writeZeroes: has(VIRTIO_BLK_F_WRITE_ZEROES)
      ? {
          maxSectors: view.getUint32(at.max_write_zeroes_sectors, true),
          maxSegments: view.getUint32(at.max_write_zeroes_seg, true),
          sectorAlignment: 0,
        }
      : undefined,
    writeZeroesMayUnmap: has(VIRTIO_BLK_F_WRITE_ZEROES) ? view.getUint8(at.write_zeroes_may_unmap) !== 0 : undefined,
  };
}
