/**
 * Ethernet headers, and ARP for IPv4 over Ethernet. MAC addresses are six bytes, IPv4 addresses numbers of 32 bits.
 * Source: RFC 826; RFC 894.
 *
 *     Ethernet: destination @0, source @6, type u16 @12
 *     ARP: hardware type u16 @14, protocol u16 @16, lengths u8 @18 @19, operation u16 @20,
 *          sender MAC @22, sender address u32 @28, target MAC @32, target address u32 @38
 */

import { ETHERNET_ADDRESS_BYTES, ETHERNET_HEADER_BYTES } from '../../protocol/virtio/net.ts';

export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const BROADCAST: Uint8Array = new Uint8Array(ETHERNET_ADDRESS_BYTES).fill(0xff);

export const ARP_REQUEST = 1;
export const ARP_REPLY = 2;
const ARP_FRAME_BYTES = ETHERNET_HEADER_BYTES + 28;
const HARDWARE_ETHERNET = 1;

/** Who a packet is from or for. */
export interface Station {
  readonly mac: Uint8Array;
  readonly ip: number;
}

export interface ArpPacket {
  readonly operation: number;
  readonly sender: Station;
  readonly target: Station;
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A copy: frames are overwritten by the next ones. */
export function macAt(frame: Uint8Array, at: number): Uint8Array {
  // Not by slice, which is a view where the frame is a Buffer.
  return Uint8Array.from(frame.subarray(at, at + ETHERNET_ADDRESS_BYTES));
}

export function writeEthernetHeader(frame: Uint8Array, to: Uint8Array, from: Uint8Array, type: number): void {
  frame.set(to, 0);
  frame.set(from, ETHERNET_ADDRESS_BYTES);
  viewOf(frame).setUint16(12, type);
}

/** The type of a frame; -1 for one that is too short to have a header. */
export function etherTypeOf(frame: Uint8Array): number {
  return frame.length < ETHERNET_HEADER_BYTES ? -1 : (frame[12]! << 8) | frame[13]!;
}

/** A question for everybody: who has this address? */
export function encodeArpRequest(from: Station, ip: number): Uint8Array {
  return encodeArp(BROADCAST, {
    operation: ARP_REQUEST,
    sender: from,
    target: { mac: new Uint8Array(ETHERNET_ADDRESS_BYTES), ip },
  });
}

/** The answer to who asked. */
export function encodeArpReply(from: Station, to: Station): Uint8Array {
  return encodeArp(to.mac, { operation: ARP_REPLY, sender: from, target: to });
}

function encodeArp(to: Uint8Array, { operation, sender, target }: ArpPacket): Uint8Array {
  const frame = new Uint8Array(ARP_FRAME_BYTES);
  const view = viewOf(frame);
  writeEthernetHeader(frame, to, sender.mac, ETHERTYPE_ARP);
  view.setUint16(14, HARDWARE_ETHERNET);
  view.setUint16(16, ETHERTYPE_IPV4);
  view.setUint8(18, ETHERNET_ADDRESS_BYTES);
  view.setUint8(19, 4);
  view.setUint16(20, operation);
  frame.set(sender.mac, 22);
  view.setUint32(28, sender.ip);
  frame.set(target.mac, 32);
  view.setUint32(38, target.ip);
  return frame;
}

/** The ARP packet in a frame; undefined where it is none, or not for IPv4 over Ethernet. */
export function parseArp(frame: Uint8Array): ArpPacket | undefined {
  if (etherTypeOf(frame) !== ETHERTYPE_ARP || frame.length < ARP_FRAME_BYTES) return undefined;
  const view = viewOf(frame);
  const isIpv4 = view.getUint16(14) === HARDWARE_ETHERNET && view.getUint16(16) === ETHERTYPE_IPV4;
  if (!isIpv4 || view.getUint8(18) !== ETHERNET_ADDRESS_BYTES || view.getUint8(19) !== 4) return undefined;
  return {
    operation: view.getUint16(20),
    sender: { mac: macAt(frame, 22), ip: view.getUint32(28) },
    target: { mac: macAt(frame, 32), ip: view.getUint32(38) },
  };
}
