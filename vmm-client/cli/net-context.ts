/** How the `net` commands get at a network device. */

import { NetDriver } from '../driver/net-driver.ts';
import type { NetDriverOptions } from '../driver/net-setup.ts';
import { type CliContext, checkQueueSize, connectTo } from './context.ts';

/** Options of every `net` command. */
export interface NetOptions {
  readonly timeout: number;
  readonly reconnect: number;
  readonly queueSize: number;
}

/** A station's address where the device has none: locally administered. */
export const DEFAULT_MAC: Uint8Array = Uint8Array.of(0x02, 0, 0, 0, 0, 0x02);

/** Runs `use` with a driver of the device at `socket`, closed afterwards in every case. */
export async function withNet<T>(
  context: CliContext,
  socket: string,
  options: NetOptions,
  driverOptions: NetDriverOptions,
  use: (driver: NetDriver) => Promise<T>,
): Promise<T> {
  checkQueueSize(options);
  const frontend = await connectTo(context, socket, options);
  let driver: NetDriver;
  try {
    driver = await NetDriver.open(frontend, {
      queueSize: options.queueSize,
      timeoutMs: options.timeout,
      ...driverOptions,
    });
  } catch (error) {
    frontend.close();
    throw error;
  }
  let failed = true;
  try {
    tellLink(context, driver);
    const result = await use(driver);
    failed = false;
    return result;
  } finally {
    const closing = driver.close();
    // The first failure is the one to tell.
    await (failed ? closing.catch(() => undefined) : closing);
  }
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
