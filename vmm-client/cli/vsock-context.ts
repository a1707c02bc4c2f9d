/** How the `vsock` commands get at a socket device. */

import { VsockDriver } from '../driver/vsock-driver.ts';
import type { VsockDriverOptions } from '../driver/vsock-setup.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import { type CliContext, type QueueOptions, ringOptions, withDriver } from './context.ts';

/** Options of every `vsock` command. */
export interface VsockOptions extends QueueOptions {
  /** Bytes that a connection keeps of what has come and nobody has read. */
  readonly buffer: number;
  /** Where the back end does not tell it. */
  readonly guestCid?: number;
}

/** Runs `use` with a driver of the device at `socket`, closed afterwards in every case. */
export function withVsock<T>(
  context: CliContext,
  socket: string,
  options: VsockOptions,
  driverOptions: VsockDriverOptions,
  use: (driver: VsockDriver) => Promise<T>,
): Promise<T> {
  const { timeout: timeoutMs, buffer: bufferBytes, guestCid } = options;
  const cid = guestCid === undefined ? {} : { guestCid };
  const all = { ...ringOptions(options), timeoutMs, bufferBytes, ...cid, ...driverOptions };
  return withDriver(context, socket, options, (frontend: VhostUserFrontend) => VsockDriver.open(frontend, all), use);
}
