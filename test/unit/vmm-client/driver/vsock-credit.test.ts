import { beforeEach, describe, expect, it } from 'vitest';
import { VsockCredit } from '../../../../vmm-client/driver/vsock-credit.ts';

const BUFFER = 1000;
let credit: VsockCredit;

beforeEach(() => {
  credit = new VsockCredit(BUFFER);
});

describe('what may be sent', () => {
  it('is nothing before the other side said what room it has', () => {
    expect(credit.available).toBe(0);
  });

  it('is what the buffer has room for beyond what was not read', () => {
    credit.update({ bufAlloc: 100, fwdCnt: 0 });
    credit.noteSent(70);
    expect([credit.available, credit.unread]).toEqual([30, 70]);
    credit.update({ bufAlloc: 100, fwdCnt: 60 });
    expect(credit.available).toBe(90);
  });

  it('is counted across 2^32', () => {
    const step = 0x4000_0000;
    let read = 0;
    for (let i = 0; i < 9; i++) {
      expect(credit.update({ bufAlloc: 0x7fff_ffff, fwdCnt: read })).toBe(true);
      expect(credit.available).toBe(0x7fff_ffff);
      credit.noteSent(step);
      expect(credit.available).toBe(0x7fff_ffff - step);
      read = (read + step) % 2 ** 32;
    }
    // 36 GiB / 4: one turn and a quarter of the next.
    expect([read, credit.update({ bufAlloc: 0xffff_ffff, fwdCnt: read })]).toEqual([0x4000_0000, true]);
    expect(credit.available).toBe(0xffff_ffff);
  });

  it.each([
    ['more than was sent', 101],
    ['less than it said before', 9],
  ])('is not changed by an other side that has read %s', (_what, fwdCnt) => {
    credit.update({ bufAlloc: 500, fwdCnt: 0 });
    credit.noteSent(100);
    expect(credit.update({ bufAlloc: 500, fwdCnt: 10 })).toBe(true);
    expect(credit.update({ bufAlloc: 9999, fwdCnt })).toBe(false);
    expect([credit.available, credit.peerBufAlloc]).toEqual([410, 500]);
  });
});

describe('what may come', () => {
  it('is what the buffer has room for', () => {
    expect([credit.noteReceived(BUFFER), credit.noteReceived(1)]).toEqual([true, false]);
    credit.noteRead(1);
    expect([credit.noteReceived(1), credit.noteReceived(1)]).toEqual([true, false]);
  });

  it('is told when more than half of the buffer is used up in the eyes of the other side', () => {
    credit.noteReceived(500);
    credit.noteRead(500);
    expect(credit.isUpdateDue).toBe(false);
    credit.noteReceived(1);
    expect(credit.isUpdateDue).toBe(true);
    credit.noteTold();
    expect([credit.isUpdateDue, credit.fwdCnt]).toEqual([false, 500]);
  });

  it('is not told when nothing was read', () => {
    credit.noteReceived(900);
    expect(credit.isUpdateDue).toBe(false);
  });

  it('is counted across 2^32', () => {
    for (let i = 0; i < 5; i++) {
      const big = new VsockCredit(0xffff_ffff);
      for (let turn = 0; turn < 3; turn++) {
        expect(big.noteReceived(0xf000_0000)).toBe(true);
        big.noteRead(0xf000_0000);
        big.noteTold();
      }
      expect(big.fwdCnt).toBe((3 * 0xf000_0000) % 2 ** 32);
    }
  });
});
