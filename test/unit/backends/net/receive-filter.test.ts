/**
 * The receive filter: programs run by a small interpreter of classic BPF, against the rules told plainly. Source:
 * linux/filter.h, Documentation/networking/filter.rst.
 */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { compileReceiveFilter, MAX_TABLE_ADDRESSES, ReceiveFilter } from '../../../../backends/net/receive-filter.ts';

/** A packet as the kernel has it: the outer VLAN tag may be beside the frame. */
interface Packet {
  readonly frame: Uint8Array;
  readonly tag?: { readonly protocol: number; readonly tci: number } | undefined;
}

/** Bytes that the program keeps of the packet. @throws Error - on what the kernel would not take */
const run = (program: Uint8Array, { frame, tag }: Packet): number => {
  const code = new DataView(program.buffer, program.byteOffset, program.length);
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const metadata = new Map([
    [0xffff_f000 + 44, tag?.tci ?? 0],
    [0xffff_f000 + 48, tag === undefined ? 0 : 1],
    [0xffff_f000 + 60, tag?.protocol ?? 0],
  ]);
  let [a, x, scratch] = [0, 0, 0];
  for (let pc = 0; ; ) {
    if (8 * pc >= program.length) throw new Error(`the program ends at ${pc} without a verdict`);
    const opcode = code.getUint16(8 * pc, true);
    const [jt, jf] = [code.getUint8(8 * pc + 2), code.getUint8(8 * pc + 3)];
    const k = code.getUint32(8 * pc + 4, true);
    pc += 1;
    switch (opcode) {
      case 0x00:
        a = k;
        break;
      case 0x20:
        if (k >= 0xffff_f000) {
          const value = metadata.get(k);
          if (value === undefined) throw new Error(`no such metadata: ${k}`);
          a = value;
        } else if (k + 4 > frame.length) return 0;
        else a = view.getUint32(k);
        break;
      case 0x28:
        if (k + 2 > frame.length) return 0;
        a = view.getUint16(k);
        break;
      case 0x02:
        expect(k).toBe(0);
        scratch = a;
        break;
      case 0x60:
        expect(k).toBe(0);
        a = scratch;
        break;
      case 0x05:
        pc += k;
        break;
      case 0x15:
        pc += a === k ? jt : jf;
        break;
      case 0x35:
        pc += a >= k ? jt : jf;
        break;
      case 0x45:
        pc += (a & k) !== 0 ? jt : jf;
        break;
      case 0x54:
        a = (a & k) >>> 0;
        break;
      case 0x74:
        a >>>= k;
        break;
      case 0x7c:
        if (x > 31) throw new Error(`shift by ${x}`);
        a >>>= x;
        break;
      case 0x07:
        x = a;
        break;
      case 0x87:
        a = x;
        break;
      case 0x06:
        return k;
      default:
        throw new Error(`instruction ${opcode.toString(16)} at ${pc - 1}`);
    }
  }
};

/** Every instruction's jumps stay inside, and the last one ends: what the kernel checks first. */
const checkShape = (program: Uint8Array): void => {
  const code = new DataView(program.buffer, program.byteOffset, program.length);
  const count = program.length / 8;
  expect(count).toBeLessThanOrEqual(4096);
  for (let pc = 0; pc < count; pc += 1) {
    const opcode = code.getUint16(8 * pc, true);
    const skip = opcode === 0x05 ? code.getUint32(8 * pc + 4, true) : 0;
    const longest = Math.max(skip, code.getUint8(8 * pc + 2), code.getUint8(8 * pc + 3));
    if ((opcode & 7) === 5 && pc + 1 + longest >= count) throw new Error(`the jump at ${pc} leaves the program`);
  }
  expect(code.getUint16(program.length - 8, true)).toBe(6);
};

const isSame = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;
const isIn = (table: readonly Uint8Array[], address: Uint8Array): boolean => table.some((a) => isSame(a, address));
const BROADCAST = new Uint8Array(6).fill(0xff);

/** VIRTIO 1.3, 5.1.6.5.1 to 5.1.6.5.3, and QEMU's order of modes. */
const wants = (filter: ReceiveFilter, { frame, tag }: Packet): boolean => {
  if (filter.promiscuous) return true;
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const destination = frame.subarray(0, 6);
  if (filter.filtersVlans) {
    const inside = view.getUint16(12);
    if ((tag?.protocol ?? inside) === 0x8100) {
      if (tag === undefined && frame.length < 16) return false;
      const id = (tag?.tci ?? view.getUint16(14)) % 4096;
      if (((filter.vlans[Math.floor(id / 32)]! >>> (id % 32)) & 1) === 0) return false;
    }
  }
  if (destination[0]! % 2 === 0) {
    if (filter.noUnicast) return false;
    if (filter.allUnicast || filter.unicast === undefined || filter.mac === undefined) return true;
    return isSame(filter.mac, destination) || isIn(filter.unicast, destination);
  }
  if (isSame(destination, BROADCAST)) return !filter.noBroadcast;
  if (filter.noMulticast) return false;
  return filter.allMulticast || filter.multicast === undefined || isIn(filter.multicast, destination);
};

const passes = (filter: ReceiveFilter, packet: Packet): boolean => {
  const program = compileReceiveFilter(filter);
  if (program === undefined) return true;
  checkShape(program);
  const kept = run(program, packet);
  expect([0, 0xffff_ffff]).toContain(kept);
  return kept > 0;
};

const frameTo = (destination: string, ...rest: number[]): Uint8Array => {
  const frame = new Uint8Array(60);
  frame.set(Buffer.from(destination.replaceAll(':', ''), 'hex'));
  frame.set([0x52, 0x54, 0, 0, 0, 9, 0x08, 0x00], 6);
  frame.set(rest, 12);
  return frame;
};

const address = (text: string): Uint8Array => frameTo(text).slice(0, 6);

const OWN = '52:54:00:12:34:56';
const OTHER = '52:54:00:12:34:57';
const GROUP = '01:00:5e:00:00:01';
const OTHER_GROUP = '01:00:5e:00:00:02';
const ALL = 'ff:ff:ff:ff:ff:ff';

/** A filter as it is after a driver turned promiscuous mode off. */
const filterWith = (changes: Partial<ReceiveFilter>, filtersVlans = false): ReceiveFilter =>
  Object.assign(new ReceiveFilter(address(OWN), filtersVlans), { promiscuous: false }, changes);

/** Which of five destinations pass. */
const passing = (filter: ReceiveFilter): string[] =>
  [OWN, OTHER, GROUP, OTHER_GROUP, ALL].filter((to) => passes(filter, { frame: frameTo(to) }));

describe('a receive filter', () => {
  it('lets everything pass until the driver says otherwise', () => {
    expect(compileReceiveFilter(new ReceiveFilter(address(OWN), true))).toBeUndefined();
  });

  it.each<[string, Partial<ReceiveFilter>, string[]]>([
    ['nothing else', {}, [OWN, ALL]],
    ['an address in the unicast table', { unicast: [address(OTHER)] }, [OWN, OTHER, ALL]],
    ['an address in the multicast table', { multicast: [address(GROUP)] }, [OWN, GROUP, ALL]],
    ['addresses in the wrong tables', { unicast: [address(GROUP)], multicast: [address(OTHER)] }, [OWN, ALL]],
    ['too many unicast addresses', { unicast: undefined }, [OWN, OTHER, ALL]],
    ['too many multicast addresses', { multicast: undefined }, [OWN, GROUP, OTHER_GROUP, ALL]],
    ['an address that nobody told', { mac: undefined }, [OWN, OTHER, ALL]],
    ['all unicast', { allUnicast: true }, [OWN, OTHER, ALL]],
    ['all multicast', { allMulticast: true }, [OWN, GROUP, OTHER_GROUP, ALL]],
    ['no unicast', { noUnicast: true, allUnicast: true }, [ALL]],
    ['no multicast', { noMulticast: true, allMulticast: true, multicast: [address(GROUP)] }, [OWN, ALL]],
    ['no broadcast', { noBroadcast: true, allMulticast: true }, [OWN, GROUP, OTHER_GROUP]],
    ['no broadcast, which is in the table', { noBroadcast: true, multicast: [address(ALL)] }, [OWN]],
    [
      'promiscuous mode',
      { promiscuous: true, noUnicast: true, noBroadcast: true },
      [OWN, OTHER, GROUP, OTHER_GROUP, ALL],
    ],
  ])('with %s', (_, changes, expected) => {
    expect(passing(filterWith(changes))).toEqual(expected);
  });

  it('tells addresses apart that differ in their first or in their last bytes only', () => {
    const filter = filterWith({ unicast: [address('02:00:00:12:34:56'), address('52:54:ff:12:34:56')] });

    expect(passes(filter, { frame: frameTo('02:00:00:12:34:56') })).toBe(true);
    expect(passes(filter, { frame: frameTo('52:54:ff:12:34:56') })).toBe(true);
    expect(passes(filter, { frame: frameTo('04:00:00:12:34:56') })).toBe(false);
    expect(passes(filter, { frame: frameTo('02:00:ff:12:34:56') })).toBe(false);
  });
});

describe('a VLAN filter', () => {
  const filter = filterWith({}, true);
  filter.setVlan(0, true);
  filter.setVlan(5, true);
  filter.setVlan(6, true);
  filter.setVlan(6, false);
  filter.setVlan(4095, true);

  it.each([
    [0, true],
    [1, false],
    [4, false],
    [5, true],
    [6, false],
    [37, false],
    [4094, false],
    [4095, true],
  ])('knows VLAN %i in the frame and beside it, whatever the priority', (id, expected) => {
    for (const priority of [0, 0xf000]) {
      const tci = priority | id;
      expect(passes(filter, { frame: frameTo(OWN, 0x81, 0, tci >> 8, tci & 0xff) })).toBe(expected);
      expect(passes(filter, { frame: frameTo(OWN), tag: { protocol: 0x8100, tci } })).toBe(expected);
    }
  });

  it('goes by the outer tag', () => {
    const inner = frameTo(OWN, 0x81, 0, 0, 1);

    expect(passes(filter, { frame: inner, tag: { protocol: 0x8100, tci: 5 } })).toBe(true);
    expect(passes(filter, { frame: inner, tag: { protocol: 0x88a8, tci: 1 } })).toBe(true);
  });

  it('looks at the address too', () => {
    expect(passes(filter, { frame: frameTo(OTHER), tag: { protocol: 0x8100, tci: 5 } })).toBe(false);
  });

  it('drops a frame that ends in its tag', () => {
    expect(passes(filter, { frame: frameTo(OWN, 0x81, 0).slice(0, 15) })).toBe(false);
  });

  it('that is off lets every VLAN pass', () => {
    expect(passes(filterWith({}), { frame: frameTo(OWN, 0x81, 0, 0, 1) })).toBe(true);
  });
});

describe('any filter', () => {
  // Few values for each byte, so that addresses meet.
  const anyAddress = fc
    .tuple(fc.constantFrom(0, 1, 2, 255), fc.constantFrom(0, 255), fc.constantFrom(0, 255), fc.constantFrom(1, 255))
    .map(([first, second, third, last]) => Uint8Array.of(first, second, third, 255, 255, last));
  const anyTable = fc.option(fc.array(anyAddress, { maxLength: 12 }), { nil: undefined });
  const anyWords = fc.oneof(
    fc.constant(new Map<number, number>()),
    fc.array(fc.tuple(fc.nat(127), fc.nat(0xffff_ffff)), { maxLength: 128 }).map((words) => new Map(words)),
  );
  const anyFilter = fc
    .record({
      modes: fc.array(fc.boolean(), { minLength: 5, maxLength: 5 }),
      mac: fc.option(anyAddress, { nil: undefined }),
      unicast: anyTable,
      multicast: anyTable,
      filtersVlans: fc.boolean(),
      words: anyWords,
      otherWords: fc.constantFrom(0, 0xffff_ffff, 0x8000_0001),
    })
    .map(({ modes, words, otherWords, filtersVlans, mac, unicast, multicast }) => {
      const [allUnicast, allMulticast, noUnicast, noMulticast, noBroadcast] = modes;
      const filter = new ReceiveFilter(mac, filtersVlans);
      Object.assign(filter, { allUnicast, allMulticast, noUnicast, noMulticast, noBroadcast, unicast, multicast });
      filter.promiscuous = false;
      filter.vlans.forEach((_, i) => {
        filter.vlans[i] = words.get(i) ?? otherWords;
      });
      return filter;
    });
  const anyPacket = fc
    .record({
      destination: anyAddress,
      type: fc.constantFrom(0x0800, 0x8100, 0x88a8),
      tci: fc.nat(0xffff),
      length: fc.constantFrom(14, 15, 16, 60),
      tag: fc.option(fc.record({ protocol: fc.constantFrom(0x8100, 0x88a8), tci: fc.nat(0xffff) }), { nil: undefined }),
    })
    .map(({ destination, type, tci, length, tag }): Packet => {
      const frame = new Uint8Array(60);
      frame.set(destination);
      new DataView(frame.buffer).setUint16(12, type);
      new DataView(frame.buffer).setUint16(14, tci);
      return { frame: frame.slice(0, length), tag };
    });

  it('does what the rules say', () => {
    fc.assert(
      fc.property(anyFilter, fc.array(anyPacket, { minLength: 1, maxLength: 30 }), (filter, packets) => {
        for (const packet of packets) expect(passes(filter, packet)).toBe(wants(filter, packet));
      }),
      { numRuns: 400 },
    );
  });

  it('fits the kernel, with full tables and as many VLANs as differ', () => {
    const full = (first: number) =>
      Array.from({ length: MAX_TABLE_ADDRESSES }, (_, i) => Uint8Array.of(first, 0, 0, 0, 0, i));
    const filter = filterWith({ unicast: full(2), multicast: full(3) }, true);
    filter.vlans.forEach((_, i) => {
      filter.vlans[i] = 0x5555_5555 ^ (i % 3);
    });
    const program = compileReceiveFilter(filter)!;

    checkShape(program);
    expect(passes(filter, { frame: frameTo('02:00:00:00:00:3f') })).toBe(true);
    expect(passes(filter, { frame: frameTo('03:00:00:00:00:40') })).toBe(false);
  });
});
