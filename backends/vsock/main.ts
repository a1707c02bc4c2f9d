#!/usr/bin/env node

/** The vhost-user-vsock program. */

import type { Logger } from '../core/logging.ts';
import { runProgram, type Service } from '../core/program.ts';
import { VsockDevice } from './device.ts';
import { parseVsockOptions, type VsockOptions } from './options.ts';
import { Switchboard } from './switchboard.ts';

async function open(options: VsockOptions, log: Logger): Promise<readonly Service[]> {
  const switchboard = new Switchboard();
  const services: Service[] = [];
  try {
    for (const guest of options.guests) {
      const own = options.guests.length === 1 ? log : log.child({ cid: guest.guestCid });
      const device = new VsockDevice(guest, options.limits, switchboard, own);
      const { socketPath } = guest;
      services.push({ device, options: socketPath === undefined ? options : { ...options, socketPath }, log: own });
      own.info({ uds: guest.udsPath }, `serving guest ${guest.guestCid} at ${guest.udsPath}`);
    }
  } catch (error) {
    for (const { device } of services) device.close();
    throw error;
  }
  return services;
}

const PROGRAM = {
  name: 'vhost-user-vsock',
  capabilities: { type: 'vsock', features: [] },
  parse: parseVsockOptions,
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
