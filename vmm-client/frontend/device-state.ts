/**
 * What a back end knows of its device and nobody else does, taken out of one and given to another while their rings are
 * stopped (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE). Source: vhost-user, Migrating back-end state.
 */

import { makeBlocking, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll } from '../../protocol/vhost-user/endpoint.ts';
import { PeerError, ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import type { FrontendConnection } from './connection.ts';
import { readState, writeState } from './state-channel.ts';

const DIRECTION_SAVE = 0;
const DIRECTION_LOAD = 1;
const PHASE_STOPPED = 0;

/** Of the answer: an error code, and whether the back end brings no channel of its own. */
const ERROR_MASK = 0xffn;
const NO_FD = 0x100n;

/**
 * Takes the state of a suspended device, which may be empty.
 * @throws PeerError - refused, or not there within `timeoutMs` milliseconds
 * @throws ProtocolError - the answer lacks the descriptor that it speaks of
 */
export async function saveDeviceState(connection: FrontendConnection, timeoutMs: number): Promise<Uint8Array> {
  const channel = await openChannel(connection, DIRECTION_SAVE);
  const state = await readState(channel, timeoutMs);
  await checkDeviceState(connection, 'save');
  return state;
}

/** Gives a state to a suspended device. @throws like `saveDeviceState`; the device refused it */
export async function loadDeviceState(
  connection: FrontendConnection,
  state: Uint8Array,
  timeoutMs: number,
): Promise<void> {
  const channel = await openChannel(connection, DIRECTION_LOAD);
  await writeState(channel, state, timeoutMs).catch((error: unknown) => {
    if (error instanceof PeerError) throw error;
    throw new PeerError(`the back end took only a part of the device state`, { cause: error });
  });
  await checkDeviceState(connection, 'load');
}

async function checkDeviceState(connection: FrontendConnection, what: string): Promise<void> {
  const code = await connection.call(FRONTEND.CHECK_DEVICE_STATE, undefined);
  if (code !== 0n) throw new PeerError(`the back end failed to ${what} the device state (code ${code})`);
}

/** Agrees on a channel, ours or the back end's. Returns our end of it, the caller's. */
async function openChannel(connection: FrontendConnection, direction: number): Promise<OwnedFd> {
  const [mine, other] = UnixStream.pair();
  const [ours, theirs] = [mine.detach(), other.detach()];
  try {
    // Back ends use it with plain reads and writes, as a pipe.
    makeBlocking(theirs.fd);
    const transfer = { direction, phase: PHASE_STOPPED };
    const { value, fds } = await connection.callWithFds(FRONTEND.SET_DEVICE_STATE_FD, transfer, [theirs]);
    const [brought, ...surplus] = fds;
    closeAll(surplus);
    const error = value & ERROR_MASK;
    if (error === 0n && (value & NO_FD) === 0n && brought !== undefined) {
      ours.close();
      return brought;
    }
    brought?.close();
    if (error !== 0n) throw new PeerError(`SET_DEVICE_STATE_FD was refused by the back end (code ${error})`);
    if ((value & NO_FD) === 0n) throw new ProtocolError('SET_DEVICE_STATE_FD was answered without its descriptor');
    return ours;
  } catch (error) {
    ours.close();
    throw error;
  } finally {
    // Where it is kept open, the end of the state is never seen.
    theirs.close();
  }
}
