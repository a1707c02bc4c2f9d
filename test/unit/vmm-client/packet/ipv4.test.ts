import { describe, expect, it } from 'vitest';
import {
  encodeEchoReply,
  encodeEchoRequest,
  encodeTcp,
  encodeUdp,
  parseEcho,
} from '../../../../vmm-client/packet/ipv4.ts';

const A = { mac: Uint8Array.of(2, 0, 0, 0, 0, 0x0a), ip: 0xc6120001 };
const B = { mac: Uint8Array.of(2, 0, 0, 0, 0, 2), ip: 0xc6120002 };

/** What Linux 6.1 sent on a TAP: `ping -s 8`. */
const LINUX_PING = Buffer.from(
  '020000000002' +
    '02000000000a' +
    '0800' +
    '45000024049e40004001aa13c6120001c6120002' +
    '080099f651f80001' +
    '0001020304050607',
  'hex',
);
/** And a datagram of 5 bytes. */
const LINUX_UDP = Buffer.from(
  '020000000002' + '02000000000a' + '0800' + '45000021397c400040117528c6120001c6120002' + '92ee0009000d9ce268656c6c6f',
  'hex',
);

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** The 16-bit words of a range added up as RFC 1071 says, written once more: 0xffff over what includes a right checksum. */
function sumOf(frame: Uint8Array, start: number, end: number, initial = 0): number {
  let sum = initial;
  for (let at = start; at < end; at += 2) {
    sum += frame[at]! * 256 + (at + 1 < end ? frame[at + 1]! : 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

describe('echo requests', () => {
  it('are those of Linux, but for the identification', () => {
    const ours = encodeEchoRequest(A, B, 0x51f8, 1, Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7));
    const expected = Buffer.from(LINUX_PING);
    expected.writeUInt16BE(0, 18);
    // One's complement: without the identification the checksum is higher by it.
    expected.writeUInt16BE(0xaa13 + 0x049e, 24);
    expect(hex(ours)).toBe(hex(expected));
  });

  it('of Linux are understood, and answered', () => {
    const request = parseEcho(LINUX_PING);
    expect(request).toMatchObject({ type: 8, from: A, toIp: B.ip, ttl: 64, identifier: 0x51f8, sequence: 1 });
    const reply = encodeEchoReply(B, request!);
    expect(parseEcho(reply)).toMatchObject({ type: 0, from: B, toIp: A.ip, identifier: 0x51f8, sequence: 1 });
    expect(hex(reply.subarray(0, 12))).toBe('02000000000a' + '020000000002');
    expect(hex(parseEcho(reply)!.data)).toBe('0001020304050607');
    expect([sumOf(reply, 14, 34), sumOf(reply, 34, reply.length)]).toEqual([0xffff, 0xffff]);
  });

  it('end where IP says, not where the frame does', () => {
    const padded = Buffer.concat([LINUX_PING, Buffer.alloc(10, 0xee)]);
    expect(parseEcho(padded)?.data.length).toBe(8);
  });

  const change = (at: number, value: number) => () => {
    const frame = Buffer.from(LINUX_PING);
    frame[at] = value;
    return frame;
  };
  it.each([
    ['another version', change(14, 0x65)],
    ['a header that is too short', change(14, 0x44)],
    ['a header beyond the packet', change(14, 0x4f)],
    ['a length beyond the frame', change(17, 0xff)],
    ['a fragment', change(21, 1)],
    ['another protocol', change(23, 17)],
    ['a wrong header checksum', change(25, 0x14)],
    ['another ICMP message', change(34, 3)],
    ['a wrong checksum', change(49, 8)],
    ['too few bytes', () => LINUX_PING.subarray(0, 33)],
  ])('are not found in a frame with %s', (_what, create) => {
    expect(parseEcho(create())).toBeUndefined();
  });
});

describe('datagrams', () => {
  it('are those of Linux, but for identification and data', () => {
    const ours = encodeUdp(A, B, 0x92ee, 9, LINUX_UDP.length);
    const expected = Buffer.from(LINUX_UDP);
    expected.writeUInt16BE(0, 18);
    expected.writeUInt16BE(0x7528 + 0x397c, 24);
    expect(hex(ours.subarray(0, 40))).toBe(hex(expected.subarray(0, 40)));
  });

  it.each([42, 43, 64, 1514])('of %d bytes have right checksums', (length) => {
    const frame = encodeUdp(A, B, 1000, 9, length);
    const pseudo = sumOf(frame, 26, 34, 17 + length - 34);
    expect([frame.length, sumOf(frame, 14, 34), sumOf(frame, 34, length, pseudo)]).toEqual([length, 0xffff, 0xffff]);
  });
});

describe('TCP segments to be', () => {
  it('have the checksum of the pseudo-header', () => {
    const frame = encodeTcp(A, B, 1000, 9, 74);
    // c612 + 0001 + c612 + 0002 + protocol 6 + 40 bytes
    expect([frame.length, hex(frame.subarray(50, 52)), sumOf(frame, 14, 34)]).toEqual([74, '8c56', 0xffff]);
  });

  it('are complete when the sum of everything is put in its place', () => {
    const frame = encodeTcp(A, B, 1000, 9, 65_000);
    const checksum = ~sumOf(frame, 34, frame.length) & 0xffff;
    frame.set([checksum >> 8, checksum & 0xff], 50);
    expect(sumOf(frame, 34, frame.length, sumOf(frame, 26, 34, 6 + frame.length - 34))).toBe(0xffff);
  });
});
