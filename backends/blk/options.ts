/** Options of vhost-user-blk. */

import { basename } from 'node:path';
import { Option } from 'commander';
import { VIRTIO_BLK_ID_BYTES } from '../../protocol/virtio/blk.ts';
import {
  type CoreOptions,
  checkCoreOptions,
  createCommand,
  threadsOption,
  UsageError,
  wholeNumber,
} from '../core/options.ts';
import { ENGINES } from './data-path.ts';
import { MAX_QUEUES } from './limits.ts';

export interface BlkOptions extends CoreOptions {
  readonly blkFile: string;
  readonly readOnly: boolean;
  readonly serial: string;
  readonly numQueues: number;
  readonly blkSize: number;
  readonly direct: boolean;
  readonly iopoll: boolean;
  readonly incoming: boolean;
  readonly engine: (typeof ENGINES)[number];
}

const EXAMPLES = `
Signals:
  SIGHUP   look at the size of the file again and tell the guest
  SIGTERM  finish what is in flight and exit

Examples:
  vhost-user-blk --socket-path=/run/vm1-disk.sock --blk-file=disk.img
  vhost-user-blk --socket-path=/run/vm1-disk.sock --blk-file=/dev/vg/vm1 --direct --serial=vm1-root
`;

/** The file's name, as much of it as fits without cutting a character. */
function defaultSerial(path: string): string {
  const id = new Uint8Array(VIRTIO_BLK_ID_BYTES);
  const { written } = new TextEncoder().encodeInto(basename(path), id);
  return new TextDecoder().decode(id.subarray(0, written));
}

/**
 * Parses the command line (without the program's name).
 * @throws UsageError, CommanderError - see toUsageError
 */
export function parseBlkOptions(argv: readonly string[], version: string): BlkOptions {
  const command = createCommand('vhost-user-blk', 'A vhost-user block device on a file or block device.', version)
    .requiredOption('--blk-file <path>', 'file or block device that holds the disk (raw)')
    .option('--read-only', 'refuse writes (also when the file cannot be written)', false)
    .option('--serial <text>', 'serial number that the guest sees, up to 20 bytes (default: name of the file)')
    .addOption(
      new Option('--num-queues <count>', 'most virtqueues a front end may use')
        .argParser(wholeNumber(1, MAX_QUEUES))
        .default(64),
    )
    .addOption(
      new Option(
        '--blk-size <bytes>',
        'logical block size: 512 or 4096 (default: that of the block device, 512 for files)',
      ).choices(['512', '4096']),
    )
    .option('--direct', 'bypass the page cache (O_DIRECT)', false)
    .option('--iopoll', 'busy-poll the disk for completions; needs --direct and a device with poll queues', false)
    .addOption(threadsOption())
    .option(
      '--incoming',
      'a guest will migrate here: take the disk when it arrives, from the daemon that has it',
      false,
    )
    .addOption(
      new Option('--engine <name>', 'auto is io_uring where it is to be had, threads otherwise; null does no I/O')
        .choices(ENGINES)
        .default('auto'),
    )
    .addHelpText('after', EXAMPLES);
  command.parse(argv, { from: 'user' });
  const raw = command.opts();
  const options: BlkOptions = {
    ...(raw as BlkOptions),
    serial: (raw.serial as string | undefined) ?? defaultSerial(raw.blkFile as string),
    blkSize: Number(raw.blkSize ?? 0),
  };
  checkCoreOptions(options);
  if (Buffer.byteLength(options.serial) > 20) {
    throw new UsageError(`--serial has ${Buffer.byteLength(options.serial)} bytes, at most 20 are possible`);
  }
  if (options.iopoll && !options.direct) throw new UsageError('--iopoll needs --direct');
  return options;
}
