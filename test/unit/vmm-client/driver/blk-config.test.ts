import { describe, expect, it } from 'vitest';
import { decodeBlkConfig } from '../../../../vmm-client/driver/blk-config.ts';

/** What qemu-storage-daemon 7.2 answers for a 256 MiB disk with 4 queues. */
const QSD_CONFIG = Buffer.from(
  '0000080000000000' + // capacity: 524288 sectors
    '00000000' + // size_max
    '7e000000' + // seg_max
    '00000000' + // geometry
    '00020000' + // blk_size
    '0000010001000000' + // physical_block_exp, alignment_offset, min_io_size, opt_io_size
    '00000400' + // writeback, unused, num_queues
    '008000000100000001000000' + // discard: sectors, segments, alignment
    '008000000100000000000000', // write zeroes: sectors, segments, may unmap
  'hex',
);
const QSD_FEATURES = 0x1_7500_7e46n;

describe('decodeBlkConfig', () => {
  it('decodes what qemu-storage-daemon sends', () => {
    expect(decodeBlkConfig(QSD_CONFIG, QSD_FEATURES)).toEqual({
      capacityBytes: 256 * 1024 * 1024,
      sizeMax: 0,
      segMax: 126,
      geometry: undefined,
      blockSize: 512,
      topology: { physicalBlockBytes: 512, alignmentOffset: 0, minIoBlocks: 1, optIoBlocks: 1 },
      writeback: false,
      numQueues: 4,
      discard: { maxSectors: 32768, maxSegments: 1, sectorAlignment: 1 },
      writeZeroes: { maxSectors: 32768, maxSegments: 1, sectorAlignment: 0 },
      writeZeroesMayUnmap: false,
    });
  });

  it('reads no field whose feature is not offered', () => {
    const config = decodeBlkConfig(Buffer.alloc(8, 0).fill(1, 0, 1), 0n);
    expect(config).toMatchObject({ capacityBytes: 512, blockSize: 512, numQueues: undefined, discard: undefined });
  });

  it('refuses a space that is shorter than its features say', () => {
    expect(() => decodeBlkConfig(QSD_CONFIG.subarray(0, 56), QSD_FEATURES)).toThrow(
      'the configuration space has 56 bytes, the features offered need 57',
    );
  });

  it('refuses a capacity beyond 2^53 - 1 bytes', () => {
    const huge = Buffer.from(QSD_CONFIG);
    huge.writeBigUInt64LE(2n ** 44n, 0);
    expect(() => decodeBlkConfig(huge, QSD_FEATURES)).toThrow('above the limit');
  });
});
