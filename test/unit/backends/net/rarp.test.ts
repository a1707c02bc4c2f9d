import { expect, it } from 'vitest';
import { rarpAnnouncement } from '../../../../backends/net/rarp.ts';
import { dump, hex } from '../../../support/hex.ts';

// RFC 903: hardware 1, protocol 0x0800, lengths 6 and 4, opcode 3 (request reverse); sender and target are the asker.
it('is a broadcast of a reverse request for the address itself, of 60 bytes', () => {
  const expected = hex(`
    ff ff ff ff ff ff  02 03 04 05 06 07  80 35
    00 01  08 00  06 04  00 03
    02 03 04 05 06 07  00 00 00 00
    02 03 04 05 06 07  00 00 00 00
    ${'00'.repeat(18)}`);

  expect(dump(rarpAnnouncement(hex('020304050607')))).toBe(dump(expected));
});
