/**
 * Transfer of device state by a raw front end. Source: vhost-user, Migrating back-end state: SET_DEVICE_STATE_FD has
 * direction u32 (0 save, 1 load) and phase u32 (0 stopped); the reply is a u64, bits 0-7 an error, bit 8 "no descriptor".
 */

import { libc } from '../../../protocol/sys/libc.ts';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { createPipe, waitReadable } from './descriptors.ts';
import { DEADLINE_MS } from './raw-connection.ts';
import type { RawFrontend } from './raw-frontend.ts';
import { REQUEST, readU64 } from './wire.ts';

const SAVE = 0;
const LOAD = 1;
const USES_OURS = 0x100n;
const PIPE_BYTES = 65_536;

const buffer = allocatePinned(PIPE_BYTES);

/** Sends the request. @throws Error - it was refused */
const begin = async ({ connection }: RawFrontend, direction: number, fd: OwnedFd): Promise<void> => {
  const payload = new Uint8Array(new Uint32Array([direction, 0]).buffer);
  const reply = await connection.call(REQUEST.SET_DEVICE_STATE_FD, payload, [fd]);
  const code = readU64(reply.payload);
  if (code !== USES_OURS) throw new Error(`SET_DEVICE_STATE_FD was answered by 0x${code.toString(16)}`);
};

/** The device's state. @throws Error - it does not come, or its end is not told */
export const saveState = async (frontend: RawFrontend): Promise<Uint8Array> => {
  const [ours, theirs] = createPipe();
  try {
    await begin(frontend, SAVE, theirs);
    theirs.close();
    const pieces: Uint8Array[] = [];
    for (;;) {
      await waitReadable(ours, DEADLINE_MS, 'device state');
      const length = libc.read(ours.fd, buffer.address, PIPE_BYTES);
      if (length <= 0) break;
      pieces.push(buffer.bytes.slice(0, length));
    }
    const code = await frontend.connection.ask(REQUEST.CHECK_DEVICE_STATE);
    if (code !== 0n) throw new Error(`the state was not saved: ${code}`);
    return new Uint8Array(Buffer.concat(pieces));
  } finally {
    ours.close();
    theirs.close();
  }
};

/** Gives a device a state of at most 64 KiB. Returns what CHECK_DEVICE_STATE answers: 0 when it was taken up. */
export const loadState = async (frontend: RawFrontend, state: Uint8Array): Promise<bigint> => {
  const [theirs, ours] = createPipe();
  try {
    await begin(frontend, LOAD, theirs);
    theirs.close();
    buffer.bytes.set(state);
    if (libc.write(ours.fd, buffer.address, state.length) !== state.length) throw new Error('the pipe is too small');
    ours.close();
    return await frontend.connection.ask(REQUEST.CHECK_DEVICE_STATE);
  } finally {
    ours.close();
    theirs.close();
  }
};
