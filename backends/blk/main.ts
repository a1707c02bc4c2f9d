#!/usr/bin/env node

/** The vhost-user-blk program. */

import { Daemon } from '../core/daemon.ts';
import { createLogger } from '../core/logging.ts';
import { toUsageError, UsageError } from '../core/options.ts';
import { explainFailure, serve } from '../core/program.ts';
import { VERSION } from '../core/version.ts';
import { BlkDevice } from './device.ts';
import { openDisk } from './disk.ts';
import { type BlkOptions, parseBlkOptions } from './options.ts';

const CAPABILITIES = { type: 'block', features: ['read-only', 'blk-file'] };

async function run(options: BlkOptions): Promise<void> {
  const log = await createLogger('vhost-user-blk', options);
  const { blkFile: path, readOnly, direct } = options;
  const disk = await openDisk({ path, readOnly, direct }, log);
  if (options.blkSize !== 0 && options.blkSize < disk.logicalBlock) {
    throw new UsageError(`--blk-size=${options.blkSize}: the blocks of ${path} have ${disk.logicalBlock} bytes`);
  }
  const blockSize = options.blkSize === 0 ? disk.logicalBlock : options.blkSize;
  const device = new BlkDevice(disk, { ...options, blockSize }, log);
  const mode = `${device.capacityBytes} bytes${disk.readOnly ? ', read-only' : ''}${direct ? ', direct' : ''}`;
  log.info({ file: path, engine: device.engineName }, `serving ${path} (${mode}) by ${device.engineName}`);
  const daemon = new Daemon(device, options, log);
  await serve(daemon, device, log, ({ stop, reload }) => {
    process.on('SIGTERM', stop);
    process.on('SIGINT', stop);
    process.on('SIGHUP', reload);
  });
}

process.title = 'vhost-user-blk';
try {
  const argv = process.argv.slice(2);
  if (argv.includes('--print-capabilities')) {
    process.stdout.write(`${JSON.stringify(CAPABILITIES)}\n`);
  } else {
    let options: BlkOptions | undefined;
    try {
      options = parseBlkOptions(argv, VERSION);
    } catch (error) {
      const usage = toUsageError(error);
      if (usage !== undefined) throw usage;
    }
    if (options !== undefined) {
      await run(options);
      process.exit(0);
    }
  }
} catch (error) {
  const { message, status } = explainFailure(error);
  process.stderr.write(`vhost-user-blk: ${message}\n`);
  process.exit(status);
}
