/** How the `net` commands get at a network device. */

import { NetDriver } from '../driver/net-driver.ts';
import type { NetDriverOptions } from '../driver/net-setup.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import { type CliContext, type QueueOptions, ringOptions, withDriver } from './context.ts';

/** A station's address where the device has none: locally administered. */
export const DEFAULT_MAC: Uint8Array = Uint8Array.of(0x02, 0, 0, 0, 0, 0x02);

/** Runs `use` with a driver of the device at `socket`, closed afterwards in every case. */
export function withNet<T>(
  context: CliContext,
  socket: string,
  options: QueueOptions,
  driverOptions: NetDriverOptions,
  use: (driver: NetDriver) => Promise<T>,
): Promise<T> {
  const all = { ...ringOptions(options), timeoutMs: options.timeout, ...driverOptions };
  const open = (frontend: VhostUserFrontend) => NetDriver.open(frontend, all);
  return withDriver(context, socket, options, open, (driver) => {
    tellLink(context, driver);
    return use(driver);
  });
}

/** Says when the link is down from the start, and when it changes. */
function tellLink(context: CliContext, driver: NetDriver): void {
  let wasUp = true;
  const tell = () => {
    const isUp = driver.config.linkUp ?? true;
    if (isUp !== wasUp) context.stderr.write(`ringside: the link is ${isUp ? 'up' : 'down'}\n`);
    wasUp = isUp;
  };
  tell();
  driver.onConfig = tell;
}
