/** What a payload decoder must refuse, as literal bytes; and the few oddities of real front ends that it must take. */

import { describe, expect, it } from 'vitest';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import * as payloads from '../../protocol/vhost-user/payloads.ts';
import { hex } from '../support/hex.ts';

type Codec = payloads.PayloadCodec<unknown>;

const region = '00 00 00 00 00 00 00 00  00 10 00 00 00 00 00 00  00 00 00 00 00 70 00 00  00 00 00 00 00 00 00 00';
const zeros = (n: number): string => '00'.repeat(n);
const huge = 'ff ff ff ff ff ff ff ff';
/** 2^53, the first number that a double cannot count beyond. */
const limit = '00 00 00 00 00 00 20 00';

const REFUSED: { what: string; codec: Codec; bytes: string; sentence: RegExp }[] = [
  { what: 'vring fd with bit 9', codec: payloads.VRING_FD as Codec, bytes: `00 02 ${zeros(6)}`, sentence: /reserved/ },
  {
    what: 'vring fd with bit 32',
    codec: payloads.VRING_FD as Codec,
    bytes: `${zeros(4)} 01 ${zeros(3)}`,
    sentence: /reserved/,
  },
  {
    what: 'nine regions',
    codec: payloads.MEMORY_TABLE as Codec,
    bytes: `09 ${zeros(7)} ${zeros(32 * 9)}`,
    sentence: /9 regions/,
  },
  {
    what: '2^32 - 1 regions',
    codec: payloads.MEMORY_TABLE as Codec,
    bytes: `ff ff ff ff ${zeros(4)}`,
    sentence: /4294967295 regions/,
  },
  {
    what: 'two regions announced, one sent',
    codec: payloads.MEMORY_TABLE as Codec,
    bytes: `02 ${zeros(7)} ${region}`,
    sentence: /2 regions/,
  },
  {
    what: 'half a region',
    codec: payloads.MEMORY_TABLE as Codec,
    bytes: `01 ${zeros(7)} ${zeros(31)}`,
    sentence: /39 bytes/,
  },
  { what: 'an empty memory table payload', codec: payloads.MEMORY_TABLE as Codec, bytes: '', sentence: /0 bytes/ },
  {
    what: 'region at 2^64 - 1',
    codec: payloads.SINGLE_REGION as Codec,
    bytes: `${zeros(8)} ${huge} ${zeros(24)}`,
    sentence: /guest address/,
  },
  {
    what: 'region of 2^53 bytes',
    codec: payloads.SINGLE_REGION as Codec,
    bytes: `${zeros(16)} ${limit} ${zeros(16)}`,
    sentence: /size/,
  },
  {
    what: 'region with a huge offset',
    codec: payloads.SINGLE_REGION as Codec,
    bytes: `${zeros(32)} ${huge}`,
    sentence: /offset/,
  },
  {
    what: 'descriptor table at 2^64 - 1',
    codec: payloads.VRING_ADDRESS as Codec,
    bytes: `${zeros(8)} ${huge} ${zeros(24)}`,
    sentence: /descriptor/,
  },
  {
    what: 'used ring at 2^53',
    codec: payloads.VRING_ADDRESS as Codec,
    bytes: `${zeros(16)} ${limit} ${zeros(16)}`,
    sentence: /used/,
  },
  {
    what: 'available ring at 2^64 - 1',
    codec: payloads.VRING_ADDRESS as Codec,
    bytes: `${zeros(24)} ${huge} ${zeros(8)}`,
    sentence: /available/,
  },
  {
    what: 'config of 257 bytes',
    codec: payloads.CONFIG_SPACE as Codec,
    bytes: `${zeros(4)} 01 01 00 00 ${zeros(4)} ${zeros(257)}`,
    sentence: /256/,
  },
  {
    what: 'config that says more than it has',
    codec: payloads.CONFIG_SPACE as Codec,
    bytes: `${zeros(4)} 08 00 00 00 ${zeros(4)} ${zeros(4)}`,
    sentence: /16 bytes/,
  },
  {
    what: 'config of 2^32 - 1 bytes',
    codec: payloads.CONFIG_SPACE as Codec,
    bytes: `${zeros(4)} ff ff ff ff ${zeros(4)}`,
    sentence: /4294967295/,
  },
  { what: 'config without a header', codec: payloads.CONFIG_SPACE as Codec, bytes: '', sentence: /at least 12/ },
  {
    what: 'inflight without its padding',
    codec: payloads.INFLIGHT as Codec,
    bytes: zeros(20),
    sentence: /24 expected/,
  },
  {
    what: 'inflight area of 2^64 - 1 bytes',
    codec: payloads.INFLIGHT as Codec,
    bytes: `${huge} ${zeros(16)}`,
    sentence: /mmap size/,
  },
  {
    what: 'inflight area at 2^53',
    codec: payloads.INFLIGHT as Codec,
    bytes: `${zeros(8)} ${limit} ${zeros(8)}`,
    sentence: /mmap offset/,
  },
  {
    what: 'log of 2^64 - 1 bytes',
    codec: payloads.LOG_AREA as Codec,
    bytes: `${huge} ${zeros(8)}`,
    sentence: /log size/,
  },
  {
    what: '257 shared memory regions',
    codec: payloads.SHMEM_CONFIG as Codec,
    bytes: `01 01 00 00 ${zeros(2052)}`,
    sentence: /257 regions/,
  },
];

describe('payload decoders refuse', () => {
  it.each(REFUSED)('$what', ({ codec, bytes, sentence }) => {
    const decode = (): unknown => codec.decode(hex(bytes));

    expect(decode).toThrow(ProtocolError);
    expect(decode).toThrow(sentence);
  });
});

describe('payload decoders take', () => {
  it('a memory table of one region in two slots, as User-mode Linux sends it', () => {
    const table = payloads.MEMORY_TABLE.decode(hex(`01 ${zeros(7)} ${region} ${zeros(32)}`));

    expect(table).toEqual([{ guestAddress: 0, size: 0x1000, userAddress: 0x7000_0000_0000, mmapOffset: 0 }]);
  });

  it('an empty memory table, and one of eight regions', () => {
    expect(payloads.MEMORY_TABLE.decode(hex(zeros(8)))).toEqual([]);
    expect(payloads.MEMORY_TABLE.decode(hex(`08 ${zeros(7)} ${region.repeat(8)}`))).toHaveLength(8);
  });

  it('a ring address of 2^53 - 1, and any log address', () => {
    const bytes = hex(`${zeros(8)} ff ff ff ff ff ff 1f 00 ${zeros(16)} ${huge}`);

    const decoded = payloads.VRING_ADDRESS.decode(bytes);

    expect(decoded.descriptor).toBe(2 ** 53 - 1);
    expect(decoded.log).toBe(2n ** 64n - 1n);
  });

  it('256 bytes of configuration space', () => {
    const bytes = hex(`${zeros(4)} 00 01 00 00 ${zeros(4)} ${'ab'.repeat(256)}`);

    expect(payloads.CONFIG_SPACE.decode(bytes).data).toEqual(new Uint8Array(256).fill(0xab));
  });

  it('config data that stays what it was when the receive buffer is used again', () => {
    const bytes = hex(`${zeros(4)} 01 00 00 00 ${zeros(4)} 07`);

    const { data } = payloads.CONFIG_SPACE.decode(bytes);
    bytes.fill(0xff);

    expect(data).toEqual(Uint8Array.of(7));
  });

  it('a payload that is a view into the middle of a larger buffer', () => {
    const buffer = hex(`ee ee ee ee 05 00 00 00 00 01 00 00 ee ee`);

    expect(payloads.VRING_STATE.decode(buffer.subarray(4, 12))).toEqual({ index: 5, num: 256 });
  });
});
