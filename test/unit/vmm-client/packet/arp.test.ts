import { describe, expect, it } from 'vitest';
import { ARP_REPLY, encodeArpReply, encodeArpRequest, parseArp } from '../../../../vmm-client/packet/arp.ts';

const US = { mac: Uint8Array.of(2, 0, 0, 0, 0, 2), ip: 0xc0000202 };
/** What Linux 6.1 answered on a TAP. */
const LINUX_REPLY = Buffer.from(
  '020000000002' + '82fa7216ff6e' + '0806' + '0001080006040002' + '82fa7216ff6ec0000201' + '020000000002c0000202',
  'hex',
);
const LINUX = { mac: Uint8Array.of(0x82, 0xfa, 0x72, 0x16, 0xff, 0x6e), ip: 0xc0000201 };

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

describe('ARP', () => {
  it('asks everybody', () => {
    expect(hex(encodeArpRequest(US, LINUX.ip))).toBe(
      'ffffffffffff' + '020000000002' + '0806' + '0001080006040001' + '020000000002c0000202' + '000000000000c0000201',
    );
  });

  it('answers as Linux does', () => {
    expect(hex(encodeArpReply(LINUX, US))).toBe(hex(LINUX_REPLY));
  });

  it('understands what Linux answers', () => {
    expect(parseArp(LINUX_REPLY)).toEqual({ operation: ARP_REPLY, sender: LINUX, target: US });
  });

  it('keeps what it understood when the frame is overwritten', () => {
    const frame = Buffer.from(LINUX_REPLY);
    const arp = parseArp(frame);
    frame.fill(0xee);
    expect(arp?.sender.mac).toEqual(LINUX.mac);
  });

  it.each([
    ['cut short', (frame: Buffer) => frame.subarray(0, 41)],
    ['of no bytes', () => Buffer.alloc(0)],
    ['of another type', (frame: Buffer) => Buffer.from(frame).fill(0x08, 12, 14)],
    ['for other hardware', (frame: Buffer) => Buffer.from(frame).fill(6, 15, 16)],
    ['for another protocol', (frame: Buffer) => Buffer.from(frame).fill(0x86, 16, 17)],
    ['of other lengths', (frame: Buffer) => Buffer.from(frame).fill(16, 19, 20)],
  ])('finds none in a frame %s', (_what, change) => {
    expect(parseArp(change(LINUX_REPLY))).toBeUndefined();
  });
});
