/** Who is to blame for an error of a device: the back end and the host, or this program. */

import { SysError } from '../../../protocol/sys/errors.ts';
import { PeerError, ProtocolError } from '../../../protocol/vhost-user/errors.ts';

/** Whether a back end, or what it was given to work with, explains the error: its message is for people. */
export function isPeersFault(error: unknown): error is Error {
  return (
    error instanceof SysError ||
    error instanceof PeerError ||
    error instanceof ProtocolError ||
    error instanceof RangeError
  );
}
