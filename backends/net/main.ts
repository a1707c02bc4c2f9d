#!/usr/bin/env node

/** The vhost-user-net program. */

import { Daemon } from '../core/daemon.ts';
import { createLogger } from '../core/logging.ts';
import { toUsageError } from '../core/options.ts';
import { explainFailure, serve } from '../core/program.ts';
import { VERSION } from '../core/version.ts';
import { NetDevice } from './device.ts';
import { type NetOptions, parseNetOptions } from './options.ts';
import { Tap } from './tap.ts';

const CAPABILITIES = { type: 'net', features: [] };
const DEFAULT_MTU = 1500;

async function run(options: NetOptions): Promise<void> {
  const log = await createLogger('vhost-user-net', options);
  const tap = options.null === true ? undefined : new Tap(options, log);
  const profile = {
    mac: options.mac,
    pairs: options.numQueuePairs,
    mtu: options.mtu ?? tap?.mtu ?? DEFAULT_MTU,
    speed: options.speed,
    controlQueue: options.ctrlVq,
    uso: tap?.uso ?? true,
  };
  const device = new NetDevice(tap, profile, log);
  const where = tap === undefined ? 'nothing' : `${tap.name} (MTU ${tap.mtu}, link ${tap.running ? 'up' : 'down'})`;
  log.info({ tap: tap?.name, engine: device.engineName }, `serving ${where} by ${device.engineName}`);
  const daemon = new Daemon(device, options, log);
  await serve(daemon, device, log, ({ stop, reload }) => {
    process.on('SIGTERM', stop);
    process.on('SIGINT', stop);
    process.on('SIGHUP', reload);
  });
}

process.title = 'vhost-user-net';
try {
  const argv = process.argv.slice(2);
  if (argv.includes('--print-capabilities')) {
    process.stdout.write(`${JSON.stringify(CAPABILITIES)}\n`);
  } else {
    let options: NetOptions | undefined;
    try {
      options = parseNetOptions(argv, VERSION);
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
  process.stderr.write(`vhost-user-net: ${message}\n`);
  process.exit(status);
}
