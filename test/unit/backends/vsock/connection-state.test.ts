import { describe, expect, it } from 'vitest';
import {
  CLOSING,
  CONNECTING,
  ConnectionState,
  DO_DATA,
  DO_DISCARD,
  DO_DROP,
  DO_ESTABLISH,
  DO_FINISH,
  DO_HALF_CLOSE,
  DO_NOTHING,
  DO_RESET,
  DO_TELL_CREDIT,
  OPEN,
  REQUESTED,
} from '../../../../backends/vsock/connection-state.ts';

// Operations and flags of VIRTIO 1.3, 5.10.6.
const [REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, ASK] = [1, 2, 3, 4, 5, 6, 7];
const [RCV, SEND, BOTH] = [1, 2, 3];

const make = (state: string): ConnectionState => {
  if (state === 'connecting') return new ConnectionState(CONNECTING);
  const made = new ConnectionState(REQUESTED);
  if (state === 'requested') return made;
  made.receive(RESPONSE, 0);
  if (state === 'closing') made.shutdown(BOTH);
  if (state === 'guest ended sending') made.receive(SHUTDOWN, SEND);
  if (state === 'guest ended receiving') made.receive(SHUTDOWN, RCV);
  if (state === 'we ended receiving') made.shutdown(RCV);
  return made;
};

describe('a packet', () => {
  it.each([
    // state, REQUEST, RESPONSE, RST, SHUTDOWN SEND, SHUTDOWN both, RW, CREDIT_UPDATE, CREDIT_REQUEST, INVALID
    ['connecting', [DO_RESET, DO_RESET, DO_DROP, DO_RESET, DO_RESET, DO_RESET, DO_NOTHING, DO_NOTHING, DO_RESET]],
    ['requested', [DO_RESET, DO_ESTABLISH, DO_DROP, DO_RESET, DO_RESET, DO_RESET, DO_RESET, DO_RESET, DO_RESET]],
    ['open', [DO_RESET, DO_RESET, DO_DROP, DO_HALF_CLOSE, DO_FINISH, DO_DATA, DO_NOTHING, DO_TELL_CREDIT, DO_RESET]],
    [
      'closing',
      [DO_RESET, DO_RESET, DO_DROP, DO_HALF_CLOSE, DO_FINISH, DO_DISCARD, DO_NOTHING, DO_TELL_CREDIT, DO_RESET],
    ],
    [
      'guest ended sending',
      [DO_RESET, DO_RESET, DO_DROP, DO_NOTHING, DO_FINISH, DO_RESET, DO_NOTHING, DO_TELL_CREDIT, DO_RESET],
    ],
    [
      'guest ended receiving',
      [DO_RESET, DO_RESET, DO_DROP, DO_FINISH, DO_FINISH, DO_DATA, DO_NOTHING, DO_TELL_CREDIT, DO_RESET],
    ],
    [
      'we ended receiving',
      [DO_RESET, DO_RESET, DO_DROP, DO_HALF_CLOSE, DO_FINISH, DO_DISCARD, DO_NOTHING, DO_TELL_CREDIT, DO_RESET],
    ],
  ])('%s', (state, expected) => {
    const packets: [number, number][] = [
      [REQUEST, 0],
      [RESPONSE, 0],
      [RST, 0],
      [SHUTDOWN, SEND],
      [SHUTDOWN, BOTH],
      [RW, 0],
      [UPDATE, 0],
      [ASK, 0],
      [0, 0],
    ];
    expect(packets.map(([op, flags]) => make(state).receive(op, flags))).toEqual(expected);
  });

  it('SHUTDOWN of nothing, and of bits nobody knows, changes nothing', () => {
    const open = make('open');
    expect(open.receive(SHUTDOWN, 0)).toBe(DO_NOTHING);
    expect(open.receive(SHUTDOWN, 0xffff_fffc)).toBe(DO_NOTHING);
    expect(open.guestShutdown).toBe(0);
  });
});

describe('sending', () => {
  it.each([
    ['connecting', false],
    ['requested', false],
    ['open', true],
    ['closing', false],
    ['guest ended sending', true],
    ['guest ended receiving', false],
    ['we ended receiving', true],
  ])('%s: %s', (state, may) => {
    expect(make(state).maySend).toBe(may);
  });

  it('is told once that it ended', () => {
    const open = make('open');
    expect(open.shutdown(SEND)).toBe(true);
    expect(open.shutdown(SEND)).toBe(false);
    expect([open.state, open.maySend]).toEqual([OPEN, false]);
    expect(open.shutdown(BOTH)).toBe(true);
    expect(open.state).toBe(CLOSING);
    expect(open.shutdown(RCV)).toBe(false);
  });
});
