#!/usr/bin/env node

/** The vhost-user-net program. */

import type { Logger } from '../core/logging.ts';
import { runProgram, type Service } from '../core/program.ts';
import { NetDevice } from './device.ts';
import { type NetOptions, parseNetOptions } from './options.ts';
import { Tap } from './tap.ts';

const DEFAULT_MTU = 1500;

async function open(options: NetOptions, log: Logger): Promise<readonly Service[]> {
  const tap = options.null === true ? undefined : new Tap(options, log);
  const profile = {
    mac: options.mac,
    pairs: options.numQueuePairs,
    mtu: options.mtu ?? tap?.mtu ?? DEFAULT_MTU,
    speed: options.speed,
    controlQueue: options.ctrlVq,
    uso: tap?.uso ?? true,
  };
  const device = new NetDevice(tap, profile, options.threads, log);
  const where = tap === undefined ? 'nothing' : `${tap.name} (MTU ${tap.mtu}, link ${tap.running ? 'up' : 'down'})`;
  log.info({ tap: tap?.name }, `serving ${where}`);
  return [{ device, options, log }];
}

const PROGRAM = {
  name: 'vhost-user-net',
  capabilities: { type: 'net', features: [] },
  parse: parseNetOptions,
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
