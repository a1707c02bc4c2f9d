/**
 * What a driver can do wrong with one descriptor chain. A chain that cannot be walked to its end goes back with used
 * length 0 and nothing written; one that can goes back with IOERR in its status byte. The ring goes on either way.
 * Source: VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table.
 */

import { describe, expect, it } from 'vitest';
import { doRequest, RequestArea, STATUS, TYPE, UNTOUCHED } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { INDIRECT, NEXT, type RawDescriptor, type RawRing, WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE } from '../support/frontend/wire.ts';

const SIZE = 128;
const daemon = hostileDaemon();

/** Lays a chain out from descriptor 0 on. */
type Layout = (ring: RawRing, area: RequestArea, frontend: RawFrontend) => void;

const FEATURES = [FEATURE.INDIRECT_DESC, FEATURE.FLUSH];

/** Guest address of the first byte behind the memory. */
const behind = (frontend: RawFrontend): number => frontend.ram.guest(frontend.ram.length);

/** Submits the chain once, then a good request on the same ring: it must still be served. */
const submit = async (layout: Layout, type: number = TYPE.IN, features = FEATURES) => {
  const frontend = await daemon().start({ features, queueSize: SIZE });
  const ring = frontend.ring();
  const area = new RequestArea(frontend);
  area.putHeader(type, 0);
  frontend.ram.bytes.fill(0xee, area.data, area.data + 0x1_0000);
  layout(ring, area, frontend);
  const [used] = await ring.run(0);
  const answer = {
    id: used?.id,
    usedLength: used?.length,
    status: area.statusByte,
    data: frontend.ram.bytes.slice(area.data, area.data + 512),
  };
  expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
  return answer;
};

/** An IN request of one sector whose pieces can be replaced. */
const request = (
  area: RequestArea,
  replace: { data?: RawDescriptor; status?: RawDescriptor } = {},
): RawDescriptor[] => [
  area.headerDescriptor(),
  replace.data ?? area.dataDescriptor(512, WRITE),
  replace.status ?? area.statusDescriptor(),
];

/** Writes a table of `chain` into the area and descriptor 0 that refers to it, with lies. */
const indirect = (ring: RawRing, area: RequestArea, chain: RawDescriptor[], lies: Partial<RawDescriptor> = {}): void =>
  ring.setDescriptor(0, { ...area.indirect(chain), ...lies });

const UNWALKABLE: [string, Layout][] = [
  [
    'that points at itself',
    (ring, area) => ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 0 }),
  ],
  [
    'of two that point at each other',
    (ring, area) => {
      ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 1 });
      ring.setDescriptor(1, { ...area.statusDescriptor(), flags: NEXT | WRITE, next: 0 });
    },
  ],
  [
    'with a long cycle',
    (ring, area) => {
      for (let i = 0; i < SIZE; i += 1) {
        ring.setDescriptor(i, { ...area.dataDescriptor(1), flags: NEXT, next: (i + 1) % SIZE });
      }
    },
  ],
  [
    'with next equal to the queue size',
    (ring, area) => ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: SIZE }),
  ],
  ['with next 65535', (ring, area) => ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 0xffff })],
  [
    'with a writable status before a next that is out of range',
    (ring, area) => {
      ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 1 });
      ring.setDescriptor(1, { ...area.statusDescriptor(), flags: WRITE | NEXT, next: SIZE });
    },
  ],
  [
    'with a nested indirect table',
    (ring, area) =>
      indirect(ring, area, [area.headerDescriptor(), { ...area.indirect([]), length: 48, flags: INDIRECT }]),
  ],
  [
    'with an indirect table that refers to itself',
    (ring, area, { ram }) => indirect(ring, area, [{ address: ram.guest(area.table), length: 16, flags: INDIRECT }]),
  ],
  [
    'with INDIRECT and NEXT together',
    (ring, area) => indirect(ring, area, request(area), { flags: INDIRECT | NEXT, next: 1 }),
  ],
  ['with an indirect table of length 0', (ring, area) => indirect(ring, area, request(area), { length: 0 })],
  ['with an indirect table of length 1', (ring, area) => indirect(ring, area, request(area), { length: 1 })],
  ['with an indirect table of length 49', (ring, area) => indirect(ring, area, request(area), { length: 49 })],
  [
    'with an indirect table behind the memory',
    (ring, area, frontend) => indirect(ring, area, request(area), { address: behind(frontend) }),
  ],
  [
    'with an indirect table that leaves the memory',
    (ring, area, frontend) => indirect(ring, area, request(area), { address: behind(frontend) - 16 }),
  ],
  ['with an indirect table at 2^64 - 16', (ring, area) => indirect(ring, area, request(area), { address: -16n })],
  [
    'with a next beyond its indirect table',
    (ring, area) => {
      indirect(ring, area, request(area));
      ring.setDescriptor(1, { ...area.dataDescriptor(512, WRITE), flags: WRITE | NEXT, next: 3 }, area.table);
    },
  ],
  [
    'with a loop in its indirect table',
    (ring, area) => {
      indirect(ring, area, request(area));
      ring.setDescriptor(2, { ...area.statusDescriptor(), flags: WRITE | NEXT, next: 1 }, area.table);
    },
  ],
  [
    'with an endless loop in an indirect table of 65536 entries',
    (ring, area, { ram }) => {
      const table = ram.length - 0x10_0000;
      for (let i = 0; i < 65536; i += 1) {
        ring.setDescriptor(i, { address: ram.guest(area.data), length: 1, flags: NEXT, next: (i + 1) & 0xffff }, table);
      }
      ring.setDescriptor(0, { address: ram.guest(table), length: 0x10_0000, flags: INDIRECT });
    },
  ],
  [
    'of buffers that sum up to 2^32 bytes',
    (ring, area, { ram }) => {
      const huge = { address: ram.guest(area.data), length: 0x8000_0000, flags: WRITE };
      ring.setChain(0, [area.headerDescriptor(), huge, huge, area.statusDescriptor()]);
    },
  ],
];

describe('a chain that cannot be walked', () => {
  it.each(UNWALKABLE)('%s is returned with length 0, unserved', async (_, layout) => {
    const answer = await submit(layout);

    expect(answer).toMatchObject({ id: 0, usedLength: 0, status: UNTOUCHED });
    expect(answer.data).toEqual(new Uint8Array(512).fill(0xee));
  });

  it('because INDIRECT_DESC was not negotiated is returned with length 0', async () => {
    const layout: Layout = (ring, area) => indirect(ring, area, request(area));

    const answer = await submit(layout, TYPE.IN, [FEATURE.FLUSH]);

    expect(answer).toMatchObject({ id: 0, usedLength: 0, status: UNTOUCHED });
  });
});

const UNMAPPED: [string, (frontend: RawFrontend, area: RequestArea) => RawDescriptor][] = [
  ['at address 0', () => ({ address: 0, length: 512, flags: WRITE })],
  ['right behind the memory', (frontend) => ({ address: behind(frontend), length: 512, flags: WRITE })],
  ['that leaves the memory', (frontend) => ({ address: behind(frontend) - 511, length: 512, flags: WRITE })],
  ['right before the memory', ({ ram }) => ({ address: ram.guest(0) - 512, length: 512, flags: WRITE })],
  ['that begins before the memory', ({ ram }) => ({ address: ram.guest(0) - 1, length: 512, flags: WRITE })],
  ['at 2^64 - 256, which wraps', () => ({ address: -256n, length: 512, flags: WRITE })],
  ['at 2^53 + 1', () => ({ address: 2n ** 53n + 1n, length: 512, flags: WRITE })],
  ['of nearly 4 GiB', ({ ram }, area) => ({ address: ram.guest(area.data), length: 0xffff_fe00, flags: WRITE })],
];

describe('a chain with a status byte but a fault elsewhere gets IOERR:', () => {
  it.each(UNMAPPED)('a data buffer %s', async (_, data) => {
    const answer = await submit((ring, area, frontend) => {
      ring.setChain(0, request(area, { data: data(frontend, area) }));
    });

    expect(answer).toMatchObject({ id: 0, usedLength: 1, status: STATUS.IOERR });
  });

  it('a header that is not mapped', async () => {
    const answer = await submit((ring, area, frontend) => {
      const [, ...rest] = request(area);
      ring.setChain(0, [{ address: behind(frontend), length: 16 }, ...rest]);
    });

    expect(answer).toMatchObject({ usedLength: 1, status: STATUS.IOERR });
  });

  it.each([
    [
      'writable data before the header',
      (area: RequestArea) => [area.dataDescriptor(512, WRITE), area.headerDescriptor()],
    ],
    [
      'readable data between writable',
      (area: RequestArea) => [
        area.headerDescriptor(),
        area.dataDescriptor(512, WRITE),
        area.dataDescriptor(16, 0, 4096),
      ],
    ],
  ])('%s', async (_, front) => {
    const answer = await submit((ring, area) => {
      ring.setChain(0, [...front(area), area.statusDescriptor()]);
    });

    expect(answer).toMatchObject({ usedLength: 1, status: STATUS.IOERR });
  });

  it('readable data behind the status, which stays as it is', async () => {
    const answer = await submit((ring, area) => {
      ring.setChain(0, [area.headerDescriptor(), area.statusDescriptor(), area.dataDescriptor(512)]);
    });

    expect(answer).toMatchObject({ usedLength: 1, status: STATUS.IOERR });
    expect(answer.data).toEqual(new Uint8Array(512).fill(0xee));
  });
});

describe('a chain without a usable status byte is returned with length 0:', () => {
  it.each<[string, Layout]>([
    ['a header alone', (ring, area) => ring.setChain(0, [area.headerDescriptor()])],
    ['an empty descriptor alone', (ring, area) => ring.setChain(0, [area.headerDescriptor(0)])],
    ['header and readable data', (ring, area) => ring.setChain(0, [area.headerDescriptor(), area.dataDescriptor(512)])],
    [
      'a status descriptor that is readable',
      (ring, area) => ring.setChain(0, [area.headerDescriptor(), { ...area.statusDescriptor(), flags: 0 }]),
    ],
    [
      'a status descriptor of length 0 as the only writable one',
      (ring, area) => ring.setChain(0, [area.headerDescriptor(), area.statusDescriptor(0)]),
    ],
    [
      'a status byte outside of the memory',
      (ring, area, frontend) =>
        ring.setChain(0, request(area, { status: { address: behind(frontend), length: 1, flags: WRITE } })),
    ],
  ])('%s', async (_, layout) => {
    const answer = await submit(layout);

    expect(answer).toMatchObject({ id: 0, usedLength: 0, status: UNTOUCHED });
  });
});

describe('an odd chain that is valid is served:', () => {
  const served = { id: 0, usedLength: 513, status: STATUS.OK };

  it.each<[string, Layout]>([
    [
      'normal descriptors followed by an indirect table',
      (ring, area) => {
        ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 5 });
        ring.setDescriptor(5, area.indirect([area.dataDescriptor(512, WRITE), area.statusDescriptor()]));
      },
    ],
    [
      'an indirect descriptor with WRITE set, which is ignored',
      (ring, area) => indirect(ring, area, request(area), { flags: INDIRECT | WRITE }),
    ],
    [
      'an indirect table that is longer than the chain in it',
      (ring, area) => indirect(ring, area, request(area), { length: 16 * 64 }),
    ],
    [
      'empty descriptors between header, data and status',
      (ring, area) => {
        const [header, data, status] = request(area) as [RawDescriptor, RawDescriptor, RawDescriptor];
        const empty = { address: 0, length: 0 };
        ring.setChain(0, [header, empty, { ...empty, flags: WRITE }, data, { ...empty, flags: WRITE }, status]);
      },
    ],
    [
      'an empty writable descriptor at the end, so that the status is the byte before',
      (ring, area) => ring.setChain(0, [...request(area), { address: 0, length: 0, flags: WRITE }]),
    ],
    [
      'reserved flag bits set',
      (ring, area) =>
        ring.setChain(
          0,
          request(area).map((d) => ({ ...d, flags: (d.flags ?? 0) | 0xfff8 })),
        ),
    ],
    [
      'descriptors used in falling order',
      (ring, area) => {
        const [header, data, status] = request(area) as [RawDescriptor, RawDescriptor, RawDescriptor];
        ring.setDescriptor(0, { ...header, flags: NEXT, next: 127 });
        ring.setDescriptor(127, { ...data, flags: WRITE | NEXT, next: 64 });
        ring.setDescriptor(64, status);
      },
    ],
    [
      'a header in 16 descriptors and data in one-byte descriptors up to the queue size',
      (ring, area, { ram }) => {
        const header = Array.from({ length: 16 }, (_, i) => ({ address: ram.guest(area.header + i), length: 1 }));
        const data = Array.from({ length: SIZE - 17 - 1 }, (_, i) => area.dataDescriptor(1, WRITE, i));
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
  ])('%s', async (_, layout) => {
    expect(await submit(layout)).toMatchObject(served);
  });

  it('data and status in one descriptor', async () => {
    const answer = await submit((ring, area) => {
      ring.setChain(0, [area.headerDescriptor(), area.dataDescriptor(513, WRITE)]);
    });

    expect(answer.usedLength).toBe(513);
    expect(answer.data).not.toEqual(new Uint8Array(512).fill(0xee));
  });
});

describe('a chain that overlaps', () => {
  it('its own indirect table is served from what was read before, and harms only itself', async () => {
    const answer = await submit((ring, area, { ram }) => {
      const data = { address: ram.guest(area.table), length: 512, flags: WRITE };
      indirect(ring, area, request(area, { data }));
    });

    expect(answer).toMatchObject({ usedLength: 513, status: STATUS.OK });
  });

  it('its status with its data leaves the status in place', async () => {
    const answer = await submit((ring, area, { ram }) => {
      const status = { address: ram.guest(area.data + 100), length: 1, flags: WRITE };
      ring.setChain(0, request(area, { status }));
    });

    expect(answer.usedLength).toBe(513);
    expect(answer.data[100]).toBe(STATUS.OK);
  });

  it('the descriptor table of its ring with disk content lets the daemon live', async () => {
    const frontend = await daemon().start({ queueSize: SIZE });
    const ring = frontend.ring();
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const data = { address: frontend.ram.guest(ring.table + 64), length: 1536, flags: WRITE };
    ring.setChain(0, request(area, { data }));

    const [used] = await ring.run(0);

    expect(used).toEqual({ id: 0, length: 1537 });
    // Random descriptors now, from the disk: each is returned or breaks the ring, none is worse.
    ring.publish(...Array.from({ length: 90 }, (_, i) => 5 + i));
    ring.signal();
  });

  it('the used ring of its ring lets the daemon live', async () => {
    const frontend = await daemon().start({ queueSize: SIZE });
    const ring = frontend.ring();
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const data = { address: frontend.ram.guest(ring.used), length: 1024, flags: WRITE };
    ring.setChain(0, request(area, { data }));

    ring.publish(0);
    ring.signal();
    await frontend.stopRing(ring);

    expect(area.statusByte).toBe(STATUS.OK);
  });
});
