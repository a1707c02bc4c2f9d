/** The line of connections that wait for the guest's buffers: who is in it, in which order, and who is not any more. */

import { describe, expect, it } from 'vitest';
import { Connection } from '../../../../backends/vsock/connection.ts';
import { REQUESTED } from '../../../../backends/vsock/connection-state.ts';
import { Outbox } from '../../../../backends/vsock/outbox.ts';

const OWNER = { onSocketEvents: () => undefined, onDeadline: () => undefined };

/** Connections that want to send REQUEST each. */
const line = (count: number): { outbox: Outbox; connections: Connection[] } => {
  const outbox = new Outbox(1);
  const connections = Array.from({ length: count }, (_, i) => {
    const address = { type: 1, guestPort: i, peerCid: 2, peerPort: 9 };
    return new Connection(address, REQUESTED, 4096, OWNER);
  });
  for (const connection of connections) outbox.add(connection);
  return { outbox, connections };
};

/** Guest's ports of those in line, in order; it is empty then. */
const drain = (outbox: Outbox): number[] => {
  const ports: number[] = [];
  for (let first = outbox.peek(); first !== undefined; first = outbox.peek()) {
    ports.push(first.guestPort);
    outbox.remove(first);
  }
  return ports;
};

describe('the line', () => {
  it.each([
    [0, [1, 2]],
    [1, [0, 2]],
    [2, [0, 1]],
  ])('goes on without the one at %i', (at, left) => {
    const { outbox, connections } = line(3);
    const gone = connections[at] as Connection;
    outbox.remove(gone);
    outbox.remove(gone);
    expect([gone.previousReady, gone.nextReady]).toEqual([undefined, undefined]);
    expect(drain(outbox)).toEqual(left);
  });

  it('takes one again at its end', () => {
    const { outbox, connections } = line(3);
    const [first, second] = connections as [Connection, Connection];
    outbox.add(second);
    outbox.remove(first);
    outbox.add(first);
    expect(drain(outbox)).toEqual([1, 2, 0]);
    outbox.add(second);
    expect(drain(outbox)).toEqual([1]);
  });

  it('passes over those that have nothing for the guest any more', () => {
    const { outbox, connections } = line(3);
    (connections[0] as Connection).end();
    expect(drain(outbox)).toEqual([1, 2]);
  });
});
