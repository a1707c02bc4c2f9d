import { describe, expect, it } from 'vitest';
import { CREDIT_CHANGED, CREDIT_LIE, CREDIT_SAME, Credit } from '../../../../backends/vsock/credit.ts';

const near = 0xffff_fff0;

describe('credit towards the guest', () => {
  it.each([
    // sent, forwarded, alloc, room
    [0, 0, 100, 100],
    [40, 0, 100, 60],
    [100, 0, 100, 0],
    [100, 30, 100, 30],
    [100, 0, 50, 0],
    [100, 100, 0, 0],
    [0x10, near, 100, 100 - 0x20],
    [0, near, 0x10, 0],
  ])('after %i sent and %i forwarded of a buffer of %i: %i', (sent, forwarded, alloc, room) => {
    const credit = new Credit(0);
    credit.sent = sent;
    credit.peerForwarded = forwarded;
    credit.peerBufAlloc = alloc;
    expect(credit.room).toBe(room);
  });

  it('wraps around with what is sent', () => {
    const credit = new Credit(0);
    credit.sent = near;
    credit.peerForwarded = near;
    credit.peerBufAlloc = 1000;
    credit.spend(500);
    expect([credit.sent, credit.room]).toEqual([500 - 16, 500]);
    expect(credit.update(1000, 500 - 16)).toBe(CREDIT_CHANGED);
    expect(credit.room).toBe(1000);
  });

  it.each([
    // sent, known forward count, told forward count
    ['nothing new', 100, 50, 50, 10, CREDIT_SAME],
    ['a larger buffer', 100, 50, 50, 11, CREDIT_CHANGED],
    ['progress', 100, 50, 100, 10, CREDIT_CHANGED],
    ['an older count', 100, 50, 49, 10, CREDIT_SAME],
    ['an older count across zero', 100, 5, near, 10, CREDIT_SAME],
    ['progress across zero', 8, near, 8, 10, CREDIT_CHANGED],
    ['more than was sent', 100, 50, 101, 10, CREDIT_LIE],
    ['more than was sent, across zero', 8, near, 9, 10, CREDIT_LIE],
    ['far more than was sent', 100, 50, 50 + 0x7fff_ffff, 10, CREDIT_LIE],
  ])('is told %s', (_, sent, known, told, alloc, verdict) => {
    const credit = new Credit(0);
    credit.sent = sent;
    credit.peerForwarded = known;
    credit.peerBufAlloc = 10;
    expect(credit.update(alloc, told)).toBe(verdict);
  });
});

describe('credit of the guest', () => {
  it('is what the buffer has left', () => {
    const credit = new Credit(100);
    expect(credit.receive(60)).toBe(true);
    expect(credit.receive(41)).toBe(false);
    expect(credit.receive(40)).toBe(true);
    expect(credit.receive(1)).toBe(false);
    expect(credit.receive(0)).toBe(true);
    credit.forward(1);
    expect(credit.receive(1)).toBe(true);
    expect(credit.receive(0xffff_ffff)).toBe(false);
  });

  it('goes on across zero', () => {
    const credit = new Credit(100);
    credit.received = near;
    credit.forwarded = near;
    expect(credit.receive(100)).toBe(true);
    expect(credit.receive(1)).toBe(false);
    credit.forward(100);
    expect([credit.received, credit.forwarded]).toEqual([84, 84]);
  });

  it('is stale when a quarter of the buffer was forwarded untold', () => {
    const credit = new Credit(100);
    credit.receive(50);
    credit.forward(24);
    expect(credit.isStale).toBe(false);
    credit.forward(1);
    expect(credit.isStale).toBe(true);
    credit.tell();
    expect(credit.isStale).toBe(false);
    credit.forwardAll();
    expect(credit.forwarded).toBe(50);
    expect(credit.isStale).toBe(true);
  });
});
