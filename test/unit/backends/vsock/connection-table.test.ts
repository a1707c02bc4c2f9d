import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Connection } from '../../../../backends/vsock/connection.ts';
import { REQUESTED } from '../../../../backends/vsock/connection-state.ts';
import { ConnectionTable } from '../../../../backends/vsock/connection-table.ts';
import { Outbox } from '../../../../backends/vsock/outbox.ts';
import { PacketHeader } from '../../../../backends/vsock/packet.ts';

const owner = { onSocketEvents: () => undefined, onDeadline: () => undefined };

/** One that wants to send its REQUEST. */
const make = (guestPort: number, peerPort: number, peerCid = 2): Connection =>
  new Connection({ type: 1, guestPort, peerPort, peerCid }, REQUESTED, 4096, owner);

// Port 0x8000_0000 collides with 0 where multiplication loses the upper bits; all of them are 32 bits.
const port = fc.constantFrom(0, 1, 2, 0x8000_0000, 0xc000_0000, 0xffff_ffff);

describe('a table of connections', () => {
  it('finds what was added and not removed, however hashes collide', () => {
    const steps = fc.array(fc.tuple(port, port, fc.constantFrom(2, 3, 0xffff_fffe)), { maxLength: 200, size: 'max' });
    fc.assert(
      fc.property(steps, (addresses) => {
        const table = new ConnectionTable();
        const expected = new Map<string, Connection>();
        for (const [guestPort, peerPort, peerCid] of addresses) {
          const key = `${guestPort} ${peerCid} ${peerPort}`;
          const found = table.find(guestPort, peerCid, peerPort);
          expect(found).toBe(expected.get(key));
          if (found === undefined) {
            const connection = make(guestPort, peerPort, peerCid);
            table.add(connection);
            expected.set(key, connection);
          } else {
            table.remove(found);
            expected.delete(key);
          }
          expect(table.size).toBe(expected.size);
          expect(new Set(table.all())).toEqual(new Set(expected.values()));
        }
      }),
    );
  });
});

describe('an outbox', () => {
  it('gives connections their turns, and forgets those that want nothing', () => {
    const outbox = new Outbox(4);
    const [a, b, c] = [make(1, 1), make(2, 1), make(3, 1)];
    for (const connection of [a, b, c, a]) outbox.add(connection);
    expect(outbox.peek()).toBe(a);
    outbox.remove(a);
    outbox.add(a);
    b.end();
    expect(outbox.peek()).toBe(c);
    outbox.remove(c);
    expect(outbox.peek()).toBe(a);
    outbox.remove(a);
    expect(outbox.peek()).toBe(undefined);
  });

  it('keeps resets in order, as many as it has room for', () => {
    const outbox = new Outbox(2);
    const header = new PacketHeader();
    const take = (): number[] => {
      outbox.takeReset(header);
      return [header.srcCid, header.srcPort, header.dstPort, header.type, header.op];
    };
    for (const i of [1, 2, 3]) outbox.addReset(2, 100 + i, 0xffff_fff0 + i, 7);
    expect(take()).toEqual([2, 101, 0xffff_fff1, 7, 3]);
    outbox.addReset(0xffff_ffff_ffff, 104, 5, 1);
    expect(take()).toEqual([2, 102, 0xffff_fff2, 7, 3]);
    expect(take()).toEqual([0xffff_ffff_ffff, 104, 5, 1, 3]);
    expect(outbox.resets).toBe(0);
  });
});
