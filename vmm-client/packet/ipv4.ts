/**
 * IPv4 packets in Ethernet frames: ICMP echo both ways, and UDP and TCP as a load. No options, no fragments.
 * Source: RFC 791, RFC 792, RFC 768, RFC 9293.
 *
 *     IPv4 @14: version and length u8, TOS u8, length u16 @16, id u16 @18, fragment u16 @20, TTL u8 @22, protocol u8 @23,
 *               checksum u16 @24, source u32 @26, destination u32 @30       ICMP, UDP or TCP @34
 */

import { ETHERNET_ADDRESS_BYTES, ETHERNET_HEADER_BYTES } from '../../protocol/virtio/net.ts';
import { ETHERTYPE_IPV4, etherTypeOf, macAt, type Station, viewOf, writeEthernetHeader } from './arp.ts';
import { addToSum, checksumOf, foldSum } from './checksum.ts';

const IP_AT = ETHERNET_HEADER_BYTES;
const IP_BYTES = 20;
const PROTOCOL_ICMP = 1;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;
const DEFAULT_TTL = 64;
const DONT_FRAGMENT = 0x4000;
/** More fragments, and the offset of this one. */
const FRAGMENT_BITS = 0x3fff;

const ICMP_ECHO_REPLY = 0;
export const ICMP_ECHO_REQUEST = 8;
const ICMP_HEADER_BYTES = 8;
const UDP_HEADER_BYTES = 8;
const TCP_HEADER_BYTES = 20;
const TCP_ACK_PSH = 0x18;

/** Where TCP or UDP begins, and where in TCP the checksum is: what the header of a packet says that is not complete. */
export const TRANSPORT_AT = IP_AT + IP_BYTES;
export const TCP_CHECKSUM_AT = 16;
/** Bytes of all headers. */
export const ECHO_HEADERS_BYTES = TRANSPORT_AT + ICMP_HEADER_BYTES;
export const UDP_HEADERS_BYTES = TRANSPORT_AT + UDP_HEADER_BYTES;
export const TCP_HEADERS_BYTES = TRANSPORT_AT + TCP_HEADER_BYTES;
/** The largest frame whose IPv4 length fits into its field. */
export const MAX_IPV4_FRAME_BYTES = IP_AT + 0xffff;

/** An ICMP echo request or reply. */
export interface Echo {
  readonly type: number;
  readonly from: Station;
  readonly toIp: number;
  readonly ttl: number;
  readonly identifier: number;
  readonly sequence: number;
  /** What is sent back as it is; in the frame that was parsed. */
  readonly data: Uint8Array;
}

function writeIpHeader(frame: Uint8Array, from: Station, to: Station, protocol: number): void {
  const view = viewOf(frame);
  writeEthernetHeader(frame, to.mac, from.mac, ETHERTYPE_IPV4);
  view.setUint8(IP_AT, 0x45);
  view.setUint16(IP_AT + 2, frame.length - IP_AT);
  view.setUint16(IP_AT + 6, DONT_FRAGMENT);
  view.setUint8(IP_AT + 8, DEFAULT_TTL);
  view.setUint8(IP_AT + 9, protocol);
  view.setUint32(IP_AT + 12, from.ip);
  view.setUint32(IP_AT + 16, to.ip);
  view.setUint16(IP_AT + 10, checksumOf(addToSum(frame, IP_AT, TRANSPORT_AT)));
}

/** The sum of what TCP and UDP check besides their own bytes: addresses, protocol, length. */
function pseudoHeaderSum(frame: Uint8Array, protocol: number): number {
  return addToSum(frame, IP_AT + 12, TRANSPORT_AT) + protocol + (frame.length - TRANSPORT_AT);
}

/** An echo request. `data` comes back in the reply. */
export function encodeEchoRequest(
  from: Station,
  to: Station,
  identifier: number,
  sequence: number,
  data: Uint8Array,
): Uint8Array {
  return encodeEcho(ICMP_ECHO_REQUEST, from, to, identifier, sequence, data);
}

/** The answer of `from` to a request. */
export function encodeEchoReply(from: Station, request: Echo): Uint8Array {
  return encodeEcho(ICMP_ECHO_REPLY, from, request.from, request.identifier, request.sequence, request.data);
}

function encodeEcho(
  type: number,
  from: Station,
  to: Station,
  identifier: number,
  sequence: number,
  data: Uint8Array,
): Uint8Array {
  const frame = new Uint8Array(ECHO_HEADERS_BYTES + data.length);
  const view = viewOf(frame);
  writeIpHeader(frame, from, to, PROTOCOL_ICMP);
  view.setUint8(TRANSPORT_AT, type);
  view.setUint16(TRANSPORT_AT + 4, identifier);
  view.setUint16(TRANSPORT_AT + 6, sequence);
  frame.set(data, ECHO_HEADERS_BYTES);
  view.setUint16(TRANSPORT_AT + 2, checksumOf(addToSum(frame, TRANSPORT_AT, frame.length)));
  return frame;
}

/** The echo in a frame; undefined where there is none, or a checksum is wrong. Fragments are nobody's echo. */
export function parseEcho(frame: Uint8Array): Echo | undefined {
  if (etherTypeOf(frame) !== ETHERTYPE_IPV4 || frame.length < TRANSPORT_AT) return undefined;
  const view = viewOf(frame);
  const version = view.getUint8(IP_AT);
  const icmpAt = IP_AT + (version & 0xf) * 4;
  const end = IP_AT + view.getUint16(IP_AT + 2);
  const isIcmp = view.getUint8(IP_AT + 9) === PROTOCOL_ICMP && (view.getUint16(IP_AT + 6) & FRAGMENT_BITS) === 0;
  if (version >> 4 !== 4 || !isIcmp || icmpAt < TRANSPORT_AT) return undefined;
  if (end > frame.length || icmpAt > end || ICMP_HEADER_BYTES > end - icmpAt) return undefined;
  const type = view.getUint8(icmpAt);
  if ((type !== ICMP_ECHO_REPLY && type !== ICMP_ECHO_REQUEST) || view.getUint8(icmpAt + 1) !== 0) return undefined;
  // A sum that includes a right checksum is all ones.
  if (checksumOf(addToSum(frame, IP_AT, icmpAt)) !== 0 || checksumOf(addToSum(frame, icmpAt, end)) !== 0) {
    return undefined;
  }
  return {
    type,
    from: { mac: macAt(frame, ETHERNET_ADDRESS_BYTES), ip: view.getUint32(IP_AT + 12) },
    toIp: view.getUint32(IP_AT + 16),
    ttl: view.getUint8(IP_AT + 8),
    identifier: view.getUint16(icmpAt + 4),
    sequence: view.getUint16(icmpAt + 6),
    data: frame.subarray(icmpAt + ICMP_HEADER_BYTES, end),
  };
}

/** A complete UDP datagram in a frame of `frameBytes` (at least UDP_HEADERS_BYTES), filled with a pattern. */
export function encodeUdp(
  from: Station,
  to: Station,
  fromPort: number,
  toPort: number,
  frameBytes: number,
): Uint8Array {
  const frame = startFrame(from, to, PROTOCOL_UDP, fromPort, toPort, frameBytes);
  const view = viewOf(frame);
  view.setUint16(TRANSPORT_AT + 4, frameBytes - TRANSPORT_AT);
  fillPattern(frame, UDP_HEADERS_BYTES);
  const sum = addToSum(frame, TRANSPORT_AT, frameBytes, pseudoHeaderSum(frame, PROTOCOL_UDP));
  // 0 says that there is no checksum.
  view.setUint16(TRANSPORT_AT + 6, checksumOf(sum) || 0xffff);
  return frame;
}

/**
 * A TCP segment in a frame of `frameBytes` (at least TCP_HEADERS_BYTES), filled with a pattern. Its checksum is that of
 * the pseudo-header alone: the device completes it, for each of the segments that it makes of this one.
 */
export function encodeTcp(
  from: Station,
  to: Station,
  fromPort: number,
  toPort: number,
  frameBytes: number,
): Uint8Array {
  const frame = startFrame(from, to, PROTOCOL_TCP, fromPort, toPort, frameBytes);
  const view = viewOf(frame);
  view.setUint32(TRANSPORT_AT + 4, 1);
  view.setUint32(TRANSPORT_AT + 8, 1);
  view.setUint8(TRANSPORT_AT + 12, (TCP_HEADER_BYTES / 4) << 4);
  view.setUint8(TRANSPORT_AT + 13, TCP_ACK_PSH);
  view.setUint16(TRANSPORT_AT + 14, 0xffff);
  view.setUint16(TRANSPORT_AT + TCP_CHECKSUM_AT, foldSum(pseudoHeaderSum(frame, PROTOCOL_TCP)));
  fillPattern(frame, TCP_HEADERS_BYTES);
  return frame;
}

/** A frame with everything up to and with the ports. */
function startFrame(
  from: Station,
  to: Station,
  protocol: number,
  fromPort: number,
  toPort: number,
  frameBytes: number,
): Uint8Array {
  const frame = new Uint8Array(frameBytes);
  writeIpHeader(frame, from, to, protocol);
  const view = viewOf(frame);
  view.setUint16(TRANSPORT_AT, fromPort);
  view.setUint16(TRANSPORT_AT + 2, toPort);
  return frame;
}

/** Not zeroes: what looks empty might be treated specially. */
function fillPattern(frame: Uint8Array, from: number): void {
  for (let at = from; at < frame.length; at++) frame[at] = at & 0xff;
}
