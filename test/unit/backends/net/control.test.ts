/** Commands on a control queue in memory: what each changes, and how they may be cut into descriptors. */

import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { RingAttachment } from '../../../../backends/core/device.ts';
import { createLogger, type Logger } from '../../../../backends/core/logging.ts';
import { REQUEST_RING } from '../../../../backends/core/ring-traits.ts';
import { Vring } from '../../../../backends/core/vring.ts';
import { type ControlCommand, type Controlled, processControlQueue } from '../../../../backends/net/control.ts';
import { ReceiveFilter } from '../../../../backends/net/receive-filter.ts';
import { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import { GuestRam } from '../../../support/frontend/guest-ram.ts';
import { INDIRECT, type RawDescriptor, RawRing, WRITE } from '../../../support/frontend/raw-ring.ts';

const DATA = 0x8000;
const ACK = 0x7000;
const TABLE = 0x6000;
const OK = 0;
const ERR = 1;
const UNTOUCHED = 0xa5;

// Feature bits, VIRTIO 1.3, 5.1.3.
const CTRL_GUEST_OFFLOADS = 2;
const CTRL_RX = 18;
const CTRL_VLAN = 19;
const CTRL_RX_EXTRA = 20;
const GUEST_ANNOUNCE = 21;
const MQ = 22;
const CTRL_MAC_ADDR = 23;
const EVERYTHING = [CTRL_GUEST_OFFLOADS, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR];

/** Notes what it is told, and does what it can do. */
class Noted implements Controlled {
  readonly filter = new ReceiveFilter(Uint8Array.of(2, 0, 0, 0, 0, 1), true);
  features: readonly number[] = EVERYTHING;
  filterChanges = 0;
  acknowledged = 0;
  pairs = 1;
  offloads = 0n;

  hasNegotiated(feature: number): boolean {
    return this.features.includes(feature);
  }

  perform(command: ControlCommand): boolean {
    if (command.kind === 'announced') this.acknowledged += 1;
    else if (command.kind === 'pairs') {
      if (command.count < 1 || command.count > 4) return false;
      this.pairs = command.count;
    } else if (command.kind === 'offloads') {
      if (command.features > 0xffn) return false;
      this.offloads = command.features;
    } else this.#changeFilter(command);
    return true;
  }

  #changeFilter(command: ControlCommand): void {
    this.filterChanges += 1;
    if (command.kind === 'mode') this.filter[command.mode] = command.on;
    else if (command.kind === 'vlan') this.filter.setVlan(command.id, command.passes);
    else if (command.kind === 'address') this.filter.mac = command.mac;
    else if (command.kind === 'tables') {
      this.filter.unicast = command.unicast;
      this.filter.multicast = command.multicast;
    }
  }
}

const ram = new GuestRam(0x4_0000);
const memory = new GuestMemory();
const { guestAddress, size, userAddress, mmapOffset } = ram.region();
memory.add(
  {
    guestAddress: Number(guestAddress),
    size: Number(size),
    userAddress: Number(userAddress),
    mmapOffset: Number(mmapOffset),
  },
  ram.fd,
);
const ring = new RawRing(ram, 0, 64, 0x1000);
let log: Logger;
let vring: Vring;
let noted: Noted;

beforeAll(async () => {
  log = await createLogger('test', { logLevel: 'silent', logFormat: 'json' });
});

beforeEach(async () => {
  noted = new Noted();
  ring.setAvailIndex(0);
  ring.seen = 0;
  ram.view.setUint16(ring.used + 2, 0, true);
  const attachment = { ringTraits: () => REQUEST_RING, ringChanged: () => undefined } as unknown as RingAttachment;
  vring = new Vring(0, {
    attachment,
    memory,
    iotlb: undefined,
    dirtyLog: undefined,
    awaitsLog: false,
    ringFeatures: { packed: false, indirect: true, eventIdx: false, inOrder: false },
    log,
    wake: () => undefined,
    memoryFaulted: false,
    onMemoryFault: () => undefined,
    requestTranslations: () => 0,
  });
  const { descriptor, used, available } = ring.addresses();
  vring.start({
    size: ring.size,
    base: 0,
    addresses: { descriptor: Number(descriptor), used: Number(used), available: Number(available) },
    usedLog: undefined,
    inflight: undefined,
  });
  vring.enabled = true;
});

afterAll(() => {
  memory.clear();
  ring.close();
  ram.close();
});

const at = (offset: number, length: number, flags = 0): RawDescriptor => ({
  address: ram.guest(offset),
  length,
  flags,
});
const ackByte = at(ACK, 1, WRITE);

/** Runs one chain; the bytes are at DATA. */
const submit = (bytes: readonly number[], chain: readonly RawDescriptor[]) => {
  ram.bytes.set(bytes, DATA);
  ram.bytes.fill(UNTOUCHED, ACK, ACK + 16);
  ring.setChain(0, chain);
  ring.publish(0);
  expect(processControlQueue(vring, 32, noted)).toBe(1);
  vring.flush(false);
  const entry = ring.usedEntry(ring.seen);
  ring.seen += 1;
  expect(ring.usedIndex).toBe(ring.seen);
  expect(entry.id).toBe(0);
  return { ack: ram.bytes[ACK], usedLength: entry.length };
};

const command = (...bytes: number[]) => submit(bytes, [at(DATA, bytes.length), ackByte]);

const le32 = (value: number): number[] => [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24];
const mac = (last: number, first = 2): number[] => [first, 0, 0, 0, 0, last];
const done = { ack: OK, usedLength: 1 };
const refused = { ack: ERR, usedLength: 1 };

describe('a command', () => {
  it.each([
    [0, 'promiscuous'],
    [1, 'allMulticast'],
    [2, 'allUnicast'],
    [3, 'noMulticast'],
    [4, 'noUnicast'],
    [5, 'noBroadcast'],
  ] as const)('RX %i turns %s on and off', (mode, name) => {
    expect(command(0, mode, 1)).toEqual(done);
    expect(noted.filter[name]).toBe(true);
    expect(command(0, mode, 0)).toEqual(done);
    expect(noted.filter[name]).toBe(false);
    expect(noted.filterChanges).toBe(2);
  });

  it('MAC_TABLE_SET takes two tables', () => {
    expect(command(1, 0, ...le32(2), ...mac(7), ...mac(8), ...le32(1), ...mac(9, 3))).toEqual(done);

    expect(noted.filter.unicast).toEqual([Uint8Array.from(mac(7)), Uint8Array.from(mac(8))]);
    expect(noted.filter.multicast).toEqual([Uint8Array.from(mac(9, 3))]);
  });

  it.each([
    [65, 1],
    [1, 65],
    [300, 300],
  ])('MAC_TABLE_SET with %i and %i addresses takes too many for all', (unicast, multicast) => {
    const tables = [unicast, multicast].flatMap((count) => [...le32(count), ...new Uint8Array(6 * count).fill(2)]);

    expect(command(1, 0, ...tables)).toEqual(done);

    expect(noted.filter.unicast?.length).toBe(unicast > 64 ? undefined : unicast);
    expect(noted.filter.multicast?.length).toBe(multicast > 64 ? undefined : multicast);
  });

  it('MAC_ADDR_SET sets the own address', () => {
    expect(command(1, 1, ...mac(0x42))).toEqual(done);
    expect(noted.filter.mac).toEqual(Uint8Array.from(mac(0x42)));
  });

  it('VLAN adds and removes', () => {
    expect(command(2, 0, 0xff, 0x0f)).toEqual(done);
    expect(command(2, 0, 33, 0)).toEqual(done);
    expect([noted.filter.vlans[1], noted.filter.vlans[127]]).toEqual([2, 0x8000_0000]);
    expect(command(2, 1, 0xff, 0x0f)).toEqual(done);
    expect([noted.filter.vlans[1], noted.filter.vlans[127]]).toEqual([2, 0]);
  });

  it('ANNOUNCE is acknowledged', () => {
    expect(command(3, 0)).toEqual(done);
    expect(noted.acknowledged).toBe(1);
  });

  it('MQ sets the pairs, GUEST_OFFLOADS the offloads', () => {
    expect(command(4, 0, 3, 0)).toEqual(done);
    expect(command(5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0)).toEqual(done);
    expect([noted.pairs, noted.offloads]).toEqual([3, 0x82n]);
  });

  it.each<[string, number[]]>([
    ['no data', [0, 0]],
    ['a mode of 2', [0, 0, 2]],
    ['an unknown mode', [0, 6, 1]],
    ['no tables', [1, 0]],
    ['one table', [1, 0, ...le32(0)]],
    ['a table that is longer than the command', [1, 0, ...le32(2), ...mac(1), ...le32(0)]],
    ['2^32 - 1 addresses', [1, 0, ...le32(0xffff_ffff), ...mac(1), ...le32(0)]],
    ['addresses whose bytes overflow 32 bits', [1, 0, ...le32(0x2aaa_aaab), ...le32(0)]],
    ['a second table that is cut short', [1, 0, ...le32(0), ...le32(1), ...mac(1).slice(1)]],
    ['bytes behind the tables', [1, 0, ...le32(0), ...le32(0), 0]],
    ['an address of 5 bytes', [1, 1, ...mac(1).slice(1)]],
    ['an address of 7 bytes', [1, 1, ...mac(1), 0]],
    ['an unknown command about addresses', [1, 2, ...mac(1)]],
    ['VLAN 4096', [2, 0, 0, 0x10]],
    ['half a VLAN', [2, 0, 1]],
    ['an unknown command about VLANs', [2, 2, 1, 0]],
    ['an unknown command about announcements', [3, 1]],
    ['no pairs', [4, 0, 0, 0]],
    ['too many pairs', [4, 0, 5, 0]],
    ['half a number of pairs', [4, 0, 1]],
    ['a command of RSS', [4, 1, 0, 0, 0, 0]],
    ['offloads that were not negotiated', [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]],
    ['offloads of 7 bytes', [5, 0, 1, 0, 0, 0, 0, 0, 0]],
    ['an unknown command about offloads', [5, 1, 1, 0, 0, 0, 0, 0, 0, 0]],
    ['an unknown class', [6, 0, 0]],
    ['class 255', [255, 255]],
    ['a class only', [0]],
  ])('with %s is refused, and changes nothing', (_, bytes) => {
    expect(command(...bytes)).toEqual(refused);

    expect(noted).toEqual(new Noted());
  });

  it.each<[string, number, number[]]>([
    ['CTRL_RX', CTRL_RX, [0, 0, 1]],
    ['CTRL_RX, for addresses', CTRL_RX, [1, 0, ...le32(0), ...le32(0)]],
    ['CTRL_RX_EXTRA', CTRL_RX_EXTRA, [0, 5, 1]],
    ['CTRL_MAC_ADDR', CTRL_MAC_ADDR, [1, 1, ...mac(1)]],
    ['CTRL_VLAN', CTRL_VLAN, [2, 0, 1, 0]],
    ['GUEST_ANNOUNCE', GUEST_ANNOUNCE, [3, 0]],
    ['MQ', MQ, [4, 0, 1, 0]],
    ['CTRL_GUEST_OFFLOADS', CTRL_GUEST_OFFLOADS, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
  ])('is refused without %s', (_, feature, bytes) => {
    expect(command(...bytes)).toEqual(done);
    noted.features = EVERYTHING.filter((bit) => bit !== feature);
    expect(command(...bytes)).toEqual(refused);
  });

  it('that is followed by another one counts alone', () => {
    expect(command(2, 0, 1, 0, 2, 0, 2, 0)).toEqual(done);
    expect(noted.filter.vlans[0]).toBe(2);
  });
});

describe('a chain', () => {
  it.each<[string, RawDescriptor[], object]>([
    ['without an ack byte', [at(DATA, 3)], { ack: UNTOUCHED, usedLength: 0 }],
    ['with an ack of no bytes', [at(DATA, 3), at(ACK, 0, WRITE)], { ack: UNTOUCHED, usedLength: 0 }],
    ['with nothing to read', [ackByte], refused],
    ['with the ack in front', [ackByte, at(DATA, 3)], refused],
    ['whose data is not mapped', [{ address: 0x10, length: 3 }, ackByte], refused],
    [
      'whose ack is not mapped',
      [at(DATA, 3), { address: 0x10, length: 1, flags: WRITE }],
      { ack: UNTOUCHED, usedLength: 0 },
    ],
    [
      'whose data is not mapped, with a result',
      [{ address: 0x10, length: 3 }, at(ACK, 2, WRITE)],
      { ack: UNTOUCHED, usedLength: 0 },
    ],
    ['that leaves the table', [{ ...at(DATA, 3), flags: 1, next: 64 }], { ack: UNTOUCHED, usedLength: 0 }],
  ])('%s comes back, and nothing is done', (_, chain, expected) => {
    ram.bytes.set([0, 0, 0], DATA);
    ram.bytes.fill(UNTOUCHED, ACK, ACK + 16);
    chain.forEach((descriptor, i) => {
      const more = i + 1 < chain.length;
      ring.setDescriptor(i, { ...descriptor, ...(more && { flags: (descriptor.flags ?? 0) | 1, next: i + 1 }) });
    });
    ring.publish(0);

    expect(processControlQueue(vring, 32, noted)).toBe(1);
    vring.flush(false);

    expect({ ack: ram.bytes[ACK], usedLength: ring.usedEntry(0).length }).toEqual(expected);
    expect(noted).toEqual(new Noted());
  });

  it('with room for a result has its ack in front', () => {
    expect(submit([0, 0, 0], [at(DATA, 3), at(ACK, 1, WRITE), at(ACK + 1, 15, WRITE)])).toEqual(done);
    expect([...ram.bytes.subarray(ACK + 1, ACK + 16)]).toEqual(Array(15).fill(UNTOUCHED));
  });

  it('may be cut anywhere', () => {
    const bytes = [1, 0, ...le32(2), ...mac(7), ...mac(8), ...le32(1), ...mac(9, 3)];
    const cuts = fc.uniqueArray(fc.nat(bytes.length), { maxLength: 12 });
    fc.assert(
      fc.property(cuts, fc.boolean(), (unsorted, isIndirect) => {
        const ends = [...unsorted.sort((a, b) => a - b), bytes.length];
        const pieces = ends.map((end, i) => at(DATA + (ends[i - 1] ?? 0), end - (ends[i - 1] ?? 0)));
        const chain = [...pieces, ackByte];
        noted = new Noted();
        if (isIndirect) ring.setChain(0, chain, TABLE);

        const answer = submit(bytes, isIndirect ? [at(TABLE, 16 * chain.length, INDIRECT)] : chain);

        expect(answer).toEqual(done);
        expect(noted.filter.unicast).toEqual([Uint8Array.from(mac(7)), Uint8Array.from(mac(8))]);
        expect(noted.filter.multicast).toEqual([Uint8Array.from(mac(9, 3))]);
      }),
    );
  });

  it('is one of many that wait: as many are taken as may be', () => {
    ram.bytes.set([0, 1, 1], DATA);
    ring.setChain(0, [at(DATA, 3), ackByte]);
    ring.publish(0);
    ring.setChain(2, [at(DATA, 3), ackByte]);
    ring.publish(2);
    ring.setChain(4, [at(DATA, 3), ackByte]);
    ring.publish(4);

    expect([processControlQueue(vring, 2, noted), processControlQueue(vring, 2, noted)]).toEqual([2, 1]);
    expect(processControlQueue(vring, 2, noted)).toBe(0);
  });
});
