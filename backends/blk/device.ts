/**
 * The block device as a front end sees it: features, configuration space, cache mode. One per daemon; each front end has
 * an attachment with what it negotiated. Requests are served by data paths (`data-path.ts`), one a thread, which read
 * what they need to know of the device and the driver in memory that they share with it (`state.ts`).
 */

import { unlock } from '../../protocol/sys/storage.ts';
import {
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from '../../protocol/virtio/blk.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { Attachment, DataPathWorker, Device } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';
import { Refused } from '../core/refused.ts';
import { type BlkGeometry, blkFeatures, encodeBlkConfig } from './config-space.ts';
import { BlkDataPath, type BlkDataPathOptions, type BlkWorkerData } from './data-path.ts';
import { type Disk, diskCapacity, lockDisk } from './disk.ts';
import { BlkDiskState, BlkDriverState } from './state.ts';

export interface BlkDeviceOptions extends BlkDataPathOptions {
  readonly numQueues: number;
  /** Bytes: 512 or 4096. */
  readonly blockSize: number;
  /** The disk is not locked yet. */
  readonly incoming: boolean;
}

export class BlkDevice implements Device<SharedArrayBuffer> {
  readonly type = 'block';
  readonly maxQueues: number;
  readonly features: bigint;
  readonly protocolFeatures = 0n;
  readonly worker: DataPathWorker;
  onConfigChange: () => void = () => undefined;

  readonly geometry: BlkGeometry;
  readonly #disk: Disk;
  readonly #options: BlkDeviceOptions;
  readonly #state = new BlkDiskState();
  readonly #log: Logger;
  #locked: boolean;

  /** Takes over the disk. */
  constructor(disk: Disk, options: BlkDeviceOptions, log: Logger) {
    this.#disk = disk;
    this.#options = options;
    this.#log = log;
    this.#locked = !options.incoming;
    this.maxQueues = options.numQueues;
    this.geometry = {
      readOnly: disk.files.readOnly,
      numQueues: options.numQueues,
      blockSize: options.blockSize,
      physicalBlock: Math.max(disk.physicalBlock, options.blockSize),
    };
    this.features = blkFeatures(this.geometry);
    this.#state.capacityBytes = diskCapacity(disk);
    this.worker = {
      module: new URL('./data-path.js', import.meta.url).href,
      data: { disk: disk.files, options, state: this.#state.shared } satisfies BlkWorkerData,
      laneOf: (ring) => ring,
    };
  }

  /** Whole sectors, in bytes. */
  get capacityBytes(): number {
    return this.#state.capacityBytes;
  }

  /** @throws UsageError - the engine is not to be had */
  openDataPath(): BlkDataPath {
    return new BlkDataPath(this.#disk.files, this.#options, this.#state.shared, this.#log);
  }

  attach(): Attachment<SharedArrayBuffer> {
    return new BlkAttachment(this);
  }

  async claim(): Promise<boolean> {
    if (this.#locked) return false;
    const { main, files } = this.#disk;
    try {
      await lockDisk(main, files.readOnly, files.path);
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      throw new Refused(error.message);
    }
    this.#locked = true;
    this.#log.info(`${files.path}: locked, a guest has arrived`);
    return true;
  }

  disclaim(): void {
    this.#unlock('its guest is not here');
  }

  handOver(): void {
    this.#unlock('its guest migrates');
  }

  #unlock(why: string): void {
    if (!this.#locked) return;
    unlock(this.#disk.main.fd);
    this.#locked = false;
    this.#log.info(`${this.#disk.files.path}: unlocked, ${why}`);
  }

  /** Looks at the size of the file again, and tells front ends when it changed. @throws SysError */
  reload(): void {
    const capacity = diskCapacity(this.#disk);
    const { path } = this.#disk.files;
    const before = this.#state.capacityBytes;
    if (capacity === before) {
      this.#log.info(`${path}: still ${capacity} bytes`);
      return;
    }
    this.#log.info(`${path}: ${before} -> ${capacity} bytes`);
    this.#state.capacityBytes = capacity;
    this.onConfigChange();
  }

  close(): void {
    if (this.#locked) unlock(this.#disk.main.fd);
    this.#disk.main.close();
    this.#disk.buffered.close();
  }
}

/** What one front end negotiated. */
class BlkAttachment implements Attachment<SharedArrayBuffer> {
  readonly #device: BlkDevice;
  readonly #driver = new BlkDriverState();
  #accepted = 0n;
  #writeback = true;

  constructor(device: BlkDevice) {
    this.#device = device;
    this.setFeatures(0n);
  }

  get shared(): SharedArrayBuffer {
    return this.#driver.shared;
  }

  setFeatures(accepted: bigint): void {
    this.#accepted = accepted;
    this.#driver.discard = hasFeature(accepted, VIRTIO_BLK_F_DISCARD);
    this.#driver.writeZeroes = hasFeature(accepted, VIRTIO_BLK_F_WRITE_ZEROES);
    // 5.2.5.2: with CONFIG_WCE but without FLUSH the cache starts in writethrough mode.
    const wce = hasFeature(accepted, VIRTIO_BLK_F_CONFIG_WCE);
    if (wce && !hasFeature(accepted, VIRTIO_BLK_F_FLUSH)) this.#writeback = false;
    this.#updateCacheMode();
  }

  /** 5.2.6.2: with neither FLUSH nor CONFIG_WCE accepted the driver cannot ask for stability, so it always gets it. */
  #updateCacheMode(): void {
    const flush = hasFeature(this.#accepted, VIRTIO_BLK_F_FLUSH);
    const wce = hasFeature(this.#accepted, VIRTIO_BLK_F_CONFIG_WCE);
    this.#driver.writethrough = wce ? !this.#writeback : !flush;
  }

  readConfig(): Uint8Array {
    return encodeBlkConfig(this.#device.geometry, this.#device.capacityBytes, this.#writeback);
  }

  writeConfig(offset: number, data: Uint8Array, migration: boolean): string | undefined {
    // A migrated configuration space comes whole; only the cache mode is state.
    const value = migration ? data[VIRTIO_BLK_CONFIG.writeback - offset] : data[0];
    if (!migration && (offset !== VIRTIO_BLK_CONFIG.writeback || data.length !== 1)) {
      return `${data.length} bytes at ${offset} of the configuration space: only the byte at 32 (writeback) is writable`;
    }
    if (value !== undefined && value > 1) return `writeback = ${value}, 0 or 1 is possible`;
    this.#writeback = value === undefined ? this.#writeback : value === 1;
    this.#updateCacheMode();
    return undefined;
  }

  /** True in writethrough mode by the driver's choice: Linux then sends no flushes. */
  saveState(): boolean {
    return !this.#writeback;
  }

  restoreState(state: boolean): void {
    this.#writeback = !state;
    this.#updateCacheMode();
  }

  reset(): void {
    this.#accepted = 0n;
    this.#writeback = true;
    this.setFeatures(0n);
  }
}
