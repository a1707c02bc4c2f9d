/**
 * Packets as a capture file with times in nanoseconds. All fields little-endian.
 * Source: draft-ietf-opsawg-pcap, PCAP Capture File Format.
 *
 *     file:   magic u32 @0 (0xa1b23c4d), major u16 @4, minor u16 @6, reserved @8 (8 bytes), snaplen u32 @16, link u32 @20
 *     record: seconds u32 @0, nanoseconds u32 @4, captured bytes u32 @8, original bytes u32 @12, packet
 */

export const PCAP_HEADER_BYTES = 24;
export const PCAP_RECORD_BYTES = 16;
const MAGIC_NANOSECONDS = 0xa1b23c4d;
const LINKTYPE_ETHERNET = 1;
/** Bytes of a packet that a reader must be prepared for. */
const SNAPSHOT_BYTES = 262_144;

/** The beginning of a file of Ethernet frames. */
export function encodePcapHeader(): Buffer {
  const header = Buffer.alloc(PCAP_HEADER_BYTES);
  header.writeUInt32LE(MAGIC_NANOSECONDS, 0);
  header.writeUInt16LE(2, 4);
  header.writeUInt16LE(4, 6);
  header.writeUInt32LE(SNAPSHOT_BYTES, 16);
  header.writeUInt32LE(LINKTYPE_ETHERNET, 20);
  return header;
}

/**
 * Appends a packet at `offset` of `target`, which has room for PCAP_RECORD_BYTES and the packet. `timeMs` is since 1970,
 * with as many decimals as are known. Returns where the record ends.
 */
export function writePcapRecord(target: Buffer, offset: number, packet: Uint8Array, timeMs: number): number {
  const seconds = Math.floor(timeMs / 1000);
  const nanoseconds = Math.min(999_999_999, Math.round((timeMs - seconds * 1000) * 1e6));
  target.writeUInt32LE(seconds, offset);
  target.writeUInt32LE(nanoseconds, offset + 4);
  target.writeUInt32LE(packet.length, offset + 8);
  target.writeUInt32LE(packet.length, offset + 12);
  target.set(packet, offset + PCAP_RECORD_BYTES);
  return offset + PCAP_RECORD_BYTES + packet.length;
}
