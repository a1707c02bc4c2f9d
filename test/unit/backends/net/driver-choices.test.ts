/** What a driver chose on the control queue, as bytes: there and back, and bytes that nobody wrote. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type DriverChoices,
  decodeDriverChoices,
  encodeDriverChoices,
} from '../../../../backends/net/driver-choices.ts';
import { ReceiveFilter } from '../../../../backends/net/receive-filter.ts';
import { dump, hex } from '../../../support/hex.ts';

// Feature bits, VIRTIO 1.3, 5.1.3: GUEST_CSUM 1, GUEST_TSO4 7, CTRL_RX 18.
const FEATURES = (1n << 1n) | (1n << 7n) | (1n << 18n);

const choices = (more: Partial<DriverChoices> = {}): DriverChoices => ({
  features: FEATURES,
  offloads: 1n << 1n,
  pairs: 3,
  filter: new ReceiveFilter(undefined, false),
  announces: false,
  ...more,
});

const address = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((bytes) => new Uint8Array(bytes));
const table = fc.option(fc.array(address, { maxLength: 64 }), { nil: undefined });

const anyFilter = fc
  .record({
    mac: fc.option(address, { nil: undefined }),
    modes: fc.array(fc.boolean(), { minLength: 6, maxLength: 6 }),
    unicast: table,
    multicast: table,
    vlans: fc.option(fc.array(fc.nat(4095), { maxLength: 20 }), { nil: undefined }),
  })
  .map(({ mac, modes, unicast, multicast, vlans }) => {
    const filter = new ReceiveFilter(mac, vlans !== undefined);
    [
      filter.promiscuous,
      filter.allMulticast,
      filter.allUnicast,
      filter.noMulticast,
      filter.noUnicast,
      filter.noBroadcast,
    ] = modes as [boolean, boolean, boolean, boolean, boolean, boolean];
    filter.unicast = unicast;
    filter.multicast = multicast;
    for (const id of vlans ?? []) filter.setVlan(id, true);
    return filter;
  });

const anyChoices = fc.record({
  features: fc.constantFrom(FEATURES, FEATURES | (1n << 63n)),
  offloads: fc.constantFrom(0n, 1n << 1n, (1n << 1n) | (1n << 7n)),
  pairs: fc.nat(0xffff),
  filter: anyFilter,
  announces: fc.boolean(),
});

describe('the choices of a driver', () => {
  it('have this form', () => {
    const filter = new ReceiveFilter(hex('525400123456'), false);
    filter.promiscuous = false;
    filter.noBroadcast = true;
    filter.unicast = [hex('020000000001')];
    filter.multicast = [hex('01005e000001'), hex('01005e000002')];

    const bytes = encodeDriverChoices(choices({ filter, announces: true }));

    expect(dump(bytes)).toBe(
      dump(
        hex(`52 4e 45 54  01 00  03 00  82 00 04 00 00 00 00 00  02 00 00 00 00 00 00 00
             03 00  20  01 02  00  52 54 00 12 34 56
             02 00 00 00 00 01  01 00 5e 00 00 01  01 00 5e 00 00 02`),
      ),
    );
  });

  it('come back as they were', () => {
    fc.assert(
      fc.property(anyChoices, (before) => {
        expect(decodeDriverChoices(encodeDriverChoices(before))).toEqual(before);
      }),
    );
  });

  it.each<[string, number, number[]]>([
    ['another magic', 0, [0]],
    ['version 0', 4, [0]],
    ['version 2', 4, [2]],
    ['an unknown flag', 6, [0x20]],
    ['an unknown flag in the other byte', 7, [1]],
    ['VLANs that are not there', 6, [0x10]],
    ['offloads that were not negotiated', 17, [1]],
    ['offloads that are no offloads', 18, [4]],
    ['an unknown mode', 26, [0x40]],
    ['an address that is not there', 27, [1]],
    ['another one', 28, [1]],
    ['too many addresses', 27, [65]],
    ['255 addresses in both tables', 27, [255, 255]],
    ['a reserved byte', 29, [1]],
    ['an address that is not known', 30, [2]],
  ])('with %s are refused', (_, at, bytes) => {
    const state = encodeDriverChoices(choices());
    expect(decodeDriverChoices(state)).toBeTypeOf('object');
    state.set(bytes, at);
    expect(decodeDriverChoices(state)).toBeTypeOf('string');
  });

  it('are refused when they are cut or too long', () => {
    fc.assert(
      fc.property(anyChoices, fc.nat(), (before, cut) => {
        const bytes = encodeDriverChoices(before);
        expect(decodeDriverChoices(bytes.subarray(0, cut % bytes.length))).toBeTypeOf('string');
        expect(decodeDriverChoices(new Uint8Array([...bytes, 0]))).toBeTypeOf('string');
      }),
    );
  });

  it('that somebody changed are others or refused: there is one form of each', () => {
    const changes = fc.array(fc.tuple(fc.nat(60), fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 2))), { maxLength: 3 });
    fc.assert(
      fc.property(anyChoices, changes, (before, changed) => {
        const bytes = encodeDriverChoices(before);
        for (const [at, value] of changed) bytes[at % bytes.length] = value;
        const decoded = decodeDriverChoices(bytes);
        if (typeof decoded === 'object') expect(dump(encodeDriverChoices(decoded))).toBe(dump(bytes));
      }),
      { numRuns: 2000 },
    );
  });
});
