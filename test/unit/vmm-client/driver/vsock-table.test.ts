import { beforeEach, describe, expect, it } from 'vitest';
import { type VsockEntry, VsockTable } from '../../../../vmm-client/driver/vsock-table.ts';

let table: VsockTable<VsockEntry>;

beforeEach(() => {
  table = new VsockTable(0);
});

const entry = (localPort: number, remoteCid: number, remotePort: number): VsockEntry => ({
  localPort,
  remoteCid,
  remotePort,
});

describe('the table of connections', () => {
  it('tells connections apart by each of their three numbers', () => {
    const entries = [entry(1, 2, 3), entry(2, 2, 3), entry(1, 3, 3), entry(1, 2, 4)];
    for (const each of entries) table.add(each);
    for (const each of entries) expect(table.find(each.localPort, each.remoteCid, each.remotePort)).toBe(each);
    expect([table.find(2, 2, 4), table.size]).toEqual([undefined, 4]);
  });

  it('finds what shares a bucket, and removes it alone', () => {
    // The CID is mixed in as it is: with ports of 0 two entries differ in nothing else.
    const hash = (port: number) => Math.imul(port, 0x85eb_ca6b) >>> 0;
    const [first, second] = [entry(0, hash(7), 0), entry(0, 0, 7)];
    for (const each of [first, second]) table.add(each);
    expect([table.find(0, hash(7), 0), table.find(0, 0, 7)]).toEqual([first, second]);
    table.remove(first);
    table.remove(first);
    expect([table.find(0, hash(7), 0), table.find(0, 0, 7), table.size]).toEqual([undefined, second, 1]);
    table.remove(second);
    expect([table.find(0, 0, 7), table.size, table.entries()]).toEqual([undefined, 0, []]);
  });

  it('has all entries', () => {
    const entries = Array.from({ length: 50 }, (_, i) => entry(i, 2, 5000));
    for (const each of entries) table.add(each);
    expect(new Set(table.entries())).toEqual(new Set(entries));
  });

  it('gives ports that nobody has, from 1024 on, and again when they are free', () => {
    const first = table.allocatePort(() => false);
    const taken = entry(first + 1, 2, 1);
    table.add(taken);
    expect([first, table.allocatePort((port) => port === first + 2)]).toEqual([1025, first + 3]);
    const last = new VsockTable<VsockEntry>(0xffff_ffff - 1024 - 2);
    expect([last.allocatePort(() => false), last.allocatePort(() => false)]).toEqual([0xffff_fffe, 1024]);
  });
});
