/** The `blk` commands, their options and help. */

import { Command, Option } from 'commander';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { ACCESS_PATTERNS } from './bench-choices.ts';
import type { BenchOptions } from './blk-bench.ts';
import type { ReadOptions, WriteOptions } from './blk-transfer.ts';
import type { VerifyOptions } from './blk-verify.ts';
import { duration, integer, option, queueOptions, SOCKET, size } from './command-options.ts';
import type { CliContext } from './context.ts';

/** A command on a disk: its own options, then those that all of them have. */
function diskCommand(name: string, description: string, options: readonly Option[]): Command {
  const command = new Command(name).description(description).argument('<socket>', SOCKET);
  const queues = option('--queues <number>', 'request queues to use', integer(1, 256), 1);
  for (const each of [...options, queues, ...queueOptions()]) command.addOption(each);
  return command;
}

export function createBlkCommands(context: CliContext): Command {
  const offset = (what: string) => option('--offset <bytes>', what, size, 0);
  const length = () => option('--length <bytes>', 'how much (default: to the end of the disk)', size);
  const blk = new Command('blk').description('Reads, writes, verifies or measures a disk.').helpCommand(false);
  blk.addCommand(
    diskCommand('read', 'Copies a disk, or a part of it, to a file.', [
      offset('where to begin'),
      length(),
      new Option('-o, --output <file>', 'where to, - is standard output').default('-'),
    ]).action(async (socket, options) => {
      const { readDisk } = await import('./blk-transfer.ts');
      return readDisk(context, socket, options as ReadOptions);
    }),
  );
  blk.addCommand(
    diskCommand('write', 'Copies a file onto a disk, and flushes.', [
      offset('where to begin, a multiple of the block size'),
      new Option('-i, --input <file>', 'where from, - is standard input').default('-'),
    ]).action(async (socket, options) => {
      const { writeDisk } = await import('./blk-transfer.ts');
      return writeDisk(context, socket, options as WriteOptions);
    }),
  );
  blk.addCommand(
    diskCommand('verify', 'OVERWRITES a range with a pattern, reads it back and compares.', [
      offset('where to begin, a multiple of the block size'),
      length(),
      option('--seed <number>', 'which pattern', integer(0, 0xffff_ffff), 1),
      new Option('--read-only-pass', 'only compare, with what an earlier run wrote'),
    ]).action(async (socket, options) => {
      const { verifyDisk } = await import('./blk-verify.ts');
      return verifyDisk(context, socket, options as VerifyOptions);
    }),
  );
  blk.addCommand(
    diskCommand('bench', 'Measures a disk. Patterns with "write" OVERWRITE it.', [
      new Option('--rw <pattern>', 'access pattern').choices(ACCESS_PATTERNS).default('randread'),
      option('--bs <bytes>', 'size of one request', size, 4096, '4k'),
      option('--qd <number>', 'requests in flight on each queue', integer(1, VIRTQ_MAX_SIZE), 32),
      option('--time <time>', 'how long to measure', duration, 5000, '5s'),
      option('--ramp <time>', 'how long to run before measuring', duration, 500, '500ms'),
      offset('where the range begins'),
      option('--size <bytes>', 'length of the range (default: to the end of the disk)', size),
      option('--poll <us>', 'microseconds to poll in vain before sleeping', integer(0, 10_000_000), 200),
      new Option('--json', 'print JSON'),
    ]).action(async (socket, options) => {
      const { benchDisk } = await import('./blk-bench.ts');
      return benchDisk(context, socket, options as BenchOptions);
    }),
  );
  return blk;
}
