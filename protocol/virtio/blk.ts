/** Numbers and layouts of the block device. Source: VIRTIO 1.3, 5.2 Block Device; linux/virtio_blk.h. */

// Feature bits, 5.2.3.
export const VIRTIO_BLK_F_SIZE_MAX = 1;
export const VIRTIO_BLK_F_SEG_MAX = 2;
export const VIRTIO_BLK_F_GEOMETRY = 4;
export const VIRTIO_BLK_F_RO = 5;
export const VIRTIO_BLK_F_BLK_SIZE = 6;
export const VIRTIO_BLK_F_FLUSH = 9;
export const VIRTIO_BLK_F_TOPOLOGY = 10;
export const VIRTIO_BLK_F_CONFIG_WCE = 11;
export const VIRTIO_BLK_F_MQ = 12;
export const VIRTIO_BLK_F_DISCARD = 13;
export const VIRTIO_BLK_F_WRITE_ZEROES = 14;
export const VIRTIO_BLK_F_LIFETIME = 15;
export const VIRTIO_BLK_F_SECURE_ERASE = 16;
export const VIRTIO_BLK_F_ZONED = 17;

// Request types, 5.2.6.
export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;
export const VIRTIO_BLK_T_GET_LIFETIME = 10;
export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;
export const VIRTIO_BLK_T_SECURE_ERASE = 14;

// Status byte, 5.2.6.
export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;

/** Request header: type u32 @0, reserved u32 @4, sector u64 @8. */
export const VIRTIO_BLK_HEADER_BYTES = 16;
/** Unit of sector, capacity and discard ranges, whatever blk_size says. */
export const VIRTIO_BLK_SECTOR_BYTES = 512;
/** GET_ID: NUL-padded, without NUL when all 20 are used. */
export const VIRTIO_BLK_ID_BYTES = 20;
/** Discard and write zeroes segment: sector u64 @0, num_sectors u32 @8, flags u32 @12. */
export const VIRTIO_BLK_SEGMENT_BYTES = 16;
/** Segment flag of WRITE_ZEROES: the device may deallocate. */
export const VIRTIO_BLK_SEGMENT_F_UNMAP = 1;

/** Configuration space, 5.2.4: byte offsets of little-endian fields. */
export const VIRTIO_BLK_CONFIG = {
  capacity: 0, // u64, sectors
  size_max: 8, // u32
  seg_max: 12, // u32
  geometry: 16, // cylinders u16, heads u8, sectors u8
  blk_size: 20, // u32
  physical_block_exp: 24, // u8
  alignment_offset: 25, // u8
  min_io_size: 26, // u16, blocks
  opt_io_size: 28, // u32, blocks
  writeback: 32, // u8, the only writable field
  num_queues: 34, // u16
  max_discard_sectors: 36, // u32
  max_discard_seg: 40, // u32
  discard_sector_alignment: 44, // u32
  max_write_zeroes_sectors: 48, // u32
  max_write_zeroes_seg: 52, // u32
  write_zeroes_may_unmap: 56, // u8
} as const;

/** Bytes of the whole configuration space. */
export const VIRTIO_BLK_CONFIG_BYTES = 96;

/** Names of the device's feature bits, for people. */
export const VIRTIO_BLK_FEATURE_NAMES: ReadonlyMap<number, string> = new Map([
  [VIRTIO_BLK_F_SIZE_MAX, 'SIZE_MAX'],
  [VIRTIO_BLK_F_SEG_MAX, 'SEG_MAX'],
  [VIRTIO_BLK_F_GEOMETRY, 'GEOMETRY'],
  [VIRTIO_BLK_F_RO, 'RO'],
  [VIRTIO_BLK_F_BLK_SIZE, 'BLK_SIZE'],
  [VIRTIO_BLK_F_FLUSH, 'FLUSH'],
  [VIRTIO_BLK_F_TOPOLOGY, 'TOPOLOGY'],
  [VIRTIO_BLK_F_CONFIG_WCE, 'CONFIG_WCE'],
  [VIRTIO_BLK_F_MQ, 'MQ'],
  [VIRTIO_BLK_F_DISCARD, 'DISCARD'],
  [VIRTIO_BLK_F_WRITE_ZEROES, 'WRITE_ZEROES'],
  [VIRTIO_BLK_F_LIFETIME, 'LIFETIME'],
  [VIRTIO_BLK_F_SECURE_ERASE, 'SECURE_ERASE'],
  [VIRTIO_BLK_F_ZONED, 'ZONED'],
]);
