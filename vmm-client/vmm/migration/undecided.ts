/** The one end of a migration that is neither. */

import { VmError } from '../errors.ts';

/**
 * The source told the destination to run the guest and did not hear whether it does. The source's machine is held: it is
 * up to whoever finds out to let it go on or to shut it down.
 */
export class UndecidedError extends VmError {}
