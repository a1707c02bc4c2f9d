/** The block device's configuration space and feature bits. Source: VIRTIO 1.3, 5.2.3 Feature bits, 5.2.4 Layout. */

import {
  VIRTIO_BLK_CONFIG as AT,
  VIRTIO_BLK_CONFIG_BYTES,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_SECTOR_BYTES,
} from '../../protocol/virtio/blk.ts';
import { featureMask } from '../../protocol/virtio/reserved-features.ts';
import { MAX_RANGE_SECTORS, MAX_RANGES, SEG_MAX, SIZE_MAX } from './limits.ts';

/** What does not change while the daemon runs. */
export interface BlkGeometry {
  readonly readOnly: boolean;
  readonly numQueues: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly physicalBlock: number;
}

/** The device's feature bits. */
export function blkFeatures({ readOnly }: BlkGeometry): bigint {
  const always = featureMask(
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_MQ,
  );
  if (readOnly) return always | featureMask(VIRTIO_BLK_F_RO);
  return always | featureMask(VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES);
}

/** The configuration space for a capacity in bytes and a cache mode. */
export function encodeBlkConfig(geometry: BlkGeometry, capacityBytes: number, writeback: boolean): Uint8Array {
  const { blockSize, physicalBlock, numQueues } = geometry;
  const bytes = new Uint8Array(VIRTIO_BLK_CONFIG_BYTES);
  const view = new DataView(bytes.buffer);
  const blockSectors = blockSize / VIRTIO_BLK_SECTOR_BYTES;
  view.setBigUint64(AT.capacity, BigInt(capacityBytes / VIRTIO_BLK_SECTOR_BYTES), true);
  view.setUint32(AT.size_max, SIZE_MAX, true);
  view.setUint32(AT.seg_max, SEG_MAX, true);
  view.setUint32(AT.blk_size, blockSize, true);
  view.setUint8(AT.physical_block_exp, Math.max(0, Math.log2(physicalBlock / blockSize)));
  view.setUint16(AT.min_io_size, Math.max(1, physicalBlock / blockSize), true);
  view.setUint8(AT.writeback, writeback ? 1 : 0);
  view.setUint16(AT.num_queues, numQueues, true);
  if (!geometry.readOnly) {
    view.setUint32(AT.max_discard_sectors, MAX_RANGE_SECTORS, true);
    view.setUint32(AT.max_discard_seg, MAX_RANGES, true);
    view.setUint32(AT.discard_sector_alignment, blockSectors, true);
    view.setUint32(AT.max_write_zeroes_sectors, MAX_RANGE_SECTORS, true);
    view.setUint32(AT.max_write_zeroes_seg, MAX_RANGES, true);
    view.setUint8(AT.write_zeroes_may_unmap, 1);
  }
  return bytes;
}
