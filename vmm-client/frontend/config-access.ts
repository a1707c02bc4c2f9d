/** The configuration space of the device, read and written by messages. Source: vhost-user, Virtio device config space. */

import { closeAll } from '../../protocol/vhost-user/endpoint.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import type { FrontendConnection } from './connection.ts';

/** SET_CONFIG: a driver writes. */
export const CONFIG_FLAG_WRITE = 0;
/** SET_CONFIG: this is what the device had before it was moved, fields that no driver writes included. */
export const CONFIG_FLAG_MIGRATION = 1;

/** Reads `length` bytes at `offset`. @throws PeerError - the back end refuses that range */
export async function readConfig(connection: FrontendConnection, offset: number, length: number): Promise<Uint8Array> {
  const request = { offset, size: length, flags: CONFIG_FLAG_WRITE, data: new Uint8Array(length) };
  const { payload, fds } = await connection.callRaw(FRONTEND.GET_CONFIG, request);
  closeAll(fds);
  // An empty answer is how a back end refuses.
  const reply = payload.length === 0 ? undefined : connection.decodeReply(FRONTEND.GET_CONFIG, payload);
  if (reply === undefined || reply.size !== length) {
    throw new PeerError(`the back end refuses to read ${length} bytes of configuration at ${offset}`);
  }
  return reply.data;
}

/** Writes `data` at `offset`. @throws PeerError - the back end refuses, where commands are acknowledged */
export async function writeConfig(
  connection: FrontendConnection,
  offset: number,
  data: Uint8Array,
  flags: number,
): Promise<void> {
  await connection.command(FRONTEND.SET_CONFIG, { offset, size: data.length, flags, data });
}
