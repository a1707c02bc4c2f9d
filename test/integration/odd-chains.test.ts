/**
 * Descriptor chains that are unusual and legal, on rings of both layouts: they are served. And chains whose buffers lie
 * over each other or over the ring, which harm nobody but their driver.
 * Source: VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table; 2.8.6 Next Flag, 2.8.7 Indirect Flag.
 */

import { describe, expect, it } from 'vitest';
import { RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import {
  CHAIN_RING_SIZE,
  indirect,
  type Layout,
  RINGS,
  readRequest,
  submitChain,
} from '../support/frontend/chain-probe.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { INDIRECT, NEXT, type RawDescriptor, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { FEATURE } from '../support/frontend/wire.ts';

const daemon = hostileDaemon();

const ODD: [string, Layout][] = [
  [
    'an indirect descriptor with WRITE set, which is ignored',
    (ring, area) => indirect(ring, area, readRequest(area), { flags: INDIRECT | WRITE }),
  ],
  [
    'empty descriptors between header, data and status',
    (ring, area) => {
      const [header, data, status] = readRequest(area) as [RawDescriptor, RawDescriptor, RawDescriptor];
      const empty = { address: 0, length: 0 };
      ring.setChain(0, [header, empty, { ...empty, flags: WRITE }, data, { ...empty, flags: WRITE }, status]);
    },
  ],
  [
    'an empty writable descriptor at the end, so that the status is the byte before',
    (ring, area) => ring.setChain(0, [...readRequest(area), { address: 0, length: 0, flags: WRITE }]),
  ],
  [
    'reserved flag bits set',
    (ring, area) =>
      ring.setChain(
        0,
        readRequest(area).map((d) => ({ ...d, flags: (d.flags ?? 0) | 0xfff8 })),
      ),
  ],
  [
    'a header in 16 descriptors and data in one-byte descriptors up to the queue size',
    (ring, area, { ram }) => {
      const header = Array.from({ length: 16 }, (_, i) => ({ address: ram.guest(area.header + i), length: 1 }));
      const data = Array.from({ length: CHAIN_RING_SIZE - 17 - 1 }, (_, i) => area.dataDescriptor(1, WRITE, i));
      const rest = area.dataDescriptor(512 - data.length, WRITE, data.length);
      ring.setChain(0, [...header, ...data, rest, area.statusDescriptor()]);
    },
  ],
  [
    'an indirect chain longer than the ring, as Linux makes them on short rings',
    (ring, area, { ram }) => {
      const table = area.data + 0x8000;
      const data = Array.from({ length: 256 }, (_, i) => area.dataDescriptor(2, WRITE, 2 * i));
      const chain = [area.headerDescriptor(), ...data, area.statusDescriptor()];
      ring.setChain(0, chain, table);
      ring.setDescriptor(0, { address: ram.guest(table), length: 16 * chain.length, flags: INDIRECT });
    },
  ],
];

/** Links in an order of their own, and tables of which NEXT says the end. */
const ODD_SPLIT: [string, Layout][] = [
  [
    'normal descriptors followed by an indirect table',
    (ring, area) => {
      ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 5 });
      ring.setDescriptor(5, area.indirect([area.dataDescriptor(512, WRITE), area.statusDescriptor()]));
    },
  ],
  [
    'an indirect table that is longer than the chain in it',
    (ring, area) => indirect(ring, area, readRequest(area), { length: 16 * 64 }),
  ],
  [
    'descriptors used in falling order',
    (ring, area) => {
      const [header, data, status] = readRequest(area) as [RawDescriptor, RawDescriptor, RawDescriptor];
      ring.setDescriptor(0, { ...header, flags: NEXT, next: 127 });
      ring.setDescriptor(127, { ...data, flags: WRITE | NEXT, next: 64 });
      ring.setDescriptor(64, status);
    },
  ],
];

/** 2.8.7: in a table only WRITE has a meaning, and every entry is an element. */
const ODD_PACKED: [string, Layout][] = [
  [
    'an indirect table whose descriptors have NEXT and INDIRECT set, which are ignored',
    (ring, area) => {
      const flags = [NEXT | INDIRECT, NEXT | INDIRECT | WRITE, INDIRECT | WRITE];
      ring.setChain(
        0,
        readRequest(area).map((d, i) => ({ ...d, flags: flags[i] ?? 0 })),
        area.table,
      );
      ring.setDescriptor(0, { ...area.indirect([]), length: 48 });
    },
  ],
];

describe.each(RINGS)('in a %s ring an odd chain that is valid is served:', (name, features) => {
  const served = { id: 0, usedLength: 513, status: STATUS.OK };

  it.each([...(name === 'split' ? ODD_SPLIT : ODD_PACKED), ...ODD])('%s', async (_, layout) => {
    expect(await submitChain(daemon(), layout, features)).toMatchObject(served);
  });

  it('data and status in one descriptor', async () => {
    const layout: Layout = (ring, area) => {
      ring.setChain(0, [area.headerDescriptor(), area.dataDescriptor(513, WRITE)]);
    };

    const answer = await submitChain(daemon(), layout, features);

    expect(answer.usedLength).toBe(513);
    expect(answer.data).not.toEqual(new Uint8Array(512).fill(0xee));
  });
});

describe.each(RINGS)('in a %s ring a chain that overlaps', (_, features) => {
  it('its own indirect table is served from what was read before, and harms only itself', async () => {
    const layout: Layout = (ring, area, { ram }) => {
      const data = { address: ram.guest(area.table), length: 512, flags: WRITE };
      indirect(ring, area, readRequest(area, { data }));
    };

    expect(await submitChain(daemon(), layout, features)).toMatchObject({ usedLength: 513, status: STATUS.OK });
  });

  it('its status with its data leaves the status in place', async () => {
    const layout: Layout = (ring, area, { ram }) => {
      const status = { address: ram.guest(area.data + 100), length: 1, flags: WRITE };
      ring.setChain(0, readRequest(area, { status }));
    };

    const answer = await submitChain(daemon(), layout, features);

    expect(answer.usedLength).toBe(513);
    expect(answer.data[100]).toBe(STATUS.OK);
  });
});

describe('a chain that overlaps', () => {
  it('the descriptor table of its ring with disk content lets the daemon live', async () => {
    const frontend = await daemon().start({ queueSize: CHAIN_RING_SIZE });
    const ring = frontend.ring();
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const data = { address: frontend.ram.guest(ring.table + 64), length: 1536, flags: WRITE };
    ring.setChain(0, readRequest(area, { data }));

    const [used] = await ring.run(0);

    expect(used).toEqual({ id: 0, length: 1537 });
    // Random descriptors now, from the disk: each is returned or breaks the ring, none is worse.
    ring.publish(...Array.from({ length: 90 }, (_, i) => 5 + i));
    ring.signal();
  });

  it('the used ring of its ring lets the daemon live', async () => {
    const frontend = await daemon().start({ queueSize: CHAIN_RING_SIZE });
    const ring = frontend.ring();
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const data = { address: frontend.ram.guest(ring.used), length: 1024, flags: WRITE };
    ring.setChain(0, readRequest(area, { data }));

    ring.publish(0);
    ring.signal();
    await frontend.stopRing(ring);

    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('a packed ring with disk content lets the daemon live', async () => {
    const frontend = await daemon().start({ queueSize: CHAIN_RING_SIZE, features: [FEATURE.RING_PACKED] });
    const ring = frontend.packedRing();
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    // From its own last slot on, over the event suppression of both sides.
    const at = frontend.ram.guest(ring.ringAt + 16 * 3);
    const data = { address: at, length: Math.ceil((16 * (CHAIN_RING_SIZE - 3) + 8) / 512) * 512, flags: WRITE };
    ring.setChain(0, readRequest(area, { data }));

    ring.publish(0);
    ring.signal();
    await frontend.stopRing(ring);

    expect(area.statusByte).toBe(STATUS.OK);
  });
});
