#!/usr/bin/env node

/** The vhost-user-blk program. */

import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';
import { runProgram, type Service } from '../core/program.ts';
import { BlkDevice } from './device.ts';
import { openDisk } from './disk.ts';
import { type BlkOptions, parseBlkOptions } from './options.ts';

async function open(options: BlkOptions, log: Logger): Promise<readonly Service[]> {
  const { blkFile: path, readOnly, direct, incoming } = options;
  const disk = await openDisk({ path, readOnly, direct, incoming }, log);
  if (options.blkSize !== 0 && options.blkSize < disk.logicalBlock) {
    throw new UsageError(`--blk-size=${options.blkSize}: the blocks of ${path} have ${disk.logicalBlock} bytes`);
  }
  const blockSize = options.blkSize === 0 ? disk.logicalBlock : options.blkSize;
  const device = new BlkDevice(disk, { ...options, blockSize }, log);
  const mode = `${device.capacityBytes} bytes${disk.files.readOnly ? ', read-only' : ''}${direct ? ', direct' : ''}`;
  log.info({ file: path }, `serving ${path} (${mode})`);
  return [{ device, options, log }];
}

const PROGRAM = {
  name: 'vhost-user-blk',
  capabilities: { type: 'block', features: ['read-only', 'blk-file'] },
  parse: parseBlkOptions,
  open,
};

process.title = PROGRAM.name;
const { output, complaint, status } = await runProgram(PROGRAM, process.argv.slice(2), ({ stop, reload }) => {
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  process.on('SIGHUP', reload);
});
process.stdout.write(output);
process.stderr.write(complaint);
process.exit(status);
