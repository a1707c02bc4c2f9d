/**
 * What another host needs to go on with a guest, as bytes for a migration. Connections cannot move: their other ends are
 * sockets of this host. The driver is told by TRANSPORT_RESET on the other one, ends its own and reads its CID again, which
 * may be another one there (5.10.6.7.1). So all there is to know is that there was a driver, and what it believes its CID
 * to be. Little-endian:
 *
 *     magic u32, version u16, reserved u16, guest CID u64
 *
 * Whoever sends it is not trusted: what is not exactly of this form is refused.
 */

import { VIRTIO_VSOCK_MAX_CID, VIRTIO_VSOCK_MIN_CID } from '../../protocol/virtio/vsock.ts';

/** "RVSK". */
const MAGIC = 0x4b53_5652;
const VERSION = 1;
const STATE_BYTES = 16;

export function encodeGuestState(guestCid: number): Uint8Array {
  const bytes = new Uint8Array(STATE_BYTES);
  const data = new DataView(bytes.buffer);
  data.setUint32(0, MAGIC, true);
  data.setUint16(4, VERSION, true);
  data.setBigUint64(8, BigInt(guestCid), true);
  return bytes;
}

/** The guest's CID. Returns a sentence when this is no state of a guest. */
export function decodeGuestState(bytes: Uint8Array): number | string {
  if (bytes.length !== STATE_BYTES) return `${bytes.length} bytes, ${STATE_BYTES} are expected`;
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (data.getUint32(0, true) !== MAGIC) return 'this is no state of a socket device';
  const version = data.getUint16(4, true);
  if (version !== VERSION) return `version ${version}, ${VERSION} is known`;
  if (data.getUint16(6, true) !== 0) return 'unknown bits are set';
  const cid = data.getBigUint64(8, true);
  if (cid < VIRTIO_VSOCK_MIN_CID || cid > VIRTIO_VSOCK_MAX_CID) return `${cid} is no CID of a guest`;
  return Number(cid);
}
