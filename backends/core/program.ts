/** What the main.ts of every daemon does around its device: signals, exit statuses, one sentence for each failure. */

import { SysError } from '../../protocol/sys/errors.ts';
import type { Daemon } from './daemon.ts';
import type { Device } from './device.ts';
import type { Logger } from './logging.ts';
import { UsageError } from './options.ts';

/** The sentence and exit status for an error that ends the program: 2 usage, 1 the host; others are our mistakes. */
export function explainFailure(error: unknown): { message: string; status: number } {
  if (error instanceof UsageError) return { message: error.message, status: 2 };
  if (error instanceof SysError) return { message: error.message, status: 1 };
  throw error;
}

/** The hooks a main.ts installs for signals. */
export interface SignalHandlers {
  /** SIGTERM and SIGINT. */
  readonly stop: () => void;
  /** SIGHUP. */
  readonly reload: () => void;
}

/**
 * Runs the daemon to its end; `install` attaches the handlers. The device is closed only when nothing of it is in flight:
 * otherwise its locks must last until the kernel is done.
 */
export async function serve(
  daemon: Daemon,
  device: Device,
  log: Logger,
  install: (handlers: SignalHandlers) => void,
): Promise<void> {
  const reload = (): void => {
    try {
      device.reload();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      log.error(error.message);
    }
  };
  install({ stop: () => void daemon.stop(), reload });
  daemon.start();
  if (await daemon.finished) device.close();
  log.info('stopped');
}
