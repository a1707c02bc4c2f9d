/**
 * What a driver can do wrong with one descriptor chain. A chain that cannot be walked to its end goes back with used
 * length 0 and nothing written; one that can goes back with IOERR in its status byte. The ring goes on either way.
 * Source: VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table; 2.8.6 Next Flag, 2.8.7 Indirect Flag.
 */

import { describe, expect, it } from 'vitest';
import { type RequestArea, STATUS, UNTOUCHED } from '../support/frontend/blk-request.ts';
import {
  behind,
  CHAIN_RING_SIZE,
  indirect,
  type Layout,
  RINGS,
  readRequest,
  submitChain,
} from '../support/frontend/chain-probe.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { INDIRECT, NEXT, type RawDescriptor, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { FEATURE } from '../support/frontend/wire.ts';

const daemon = hostileDaemon();

/** Links that lead astray: only a split ring has them, and only in its tables INDIRECT and NEXT mean something. */
const ASTRAY: [string, Layout][] = [
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
      for (let i = 0; i < CHAIN_RING_SIZE; i += 1) {
        ring.setDescriptor(i, { ...area.dataDescriptor(1), flags: NEXT, next: (i + 1) % CHAIN_RING_SIZE });
      }
    },
  ],
  [
    'with next equal to the queue size',
    (ring, area) => ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: CHAIN_RING_SIZE }),
  ],
  ['with next 65535', (ring, area) => ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 0xffff })],
  [
    'with a writable status before a next that is out of range',
    (ring, area) => {
      ring.setDescriptor(0, { ...area.headerDescriptor(), flags: NEXT, next: 1 });
      ring.setDescriptor(1, { ...area.statusDescriptor(), flags: WRITE | NEXT, next: CHAIN_RING_SIZE });
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
    'with a next beyond its indirect table',
    (ring, area) => {
      indirect(ring, area, readRequest(area));
      ring.setDescriptor(1, { ...area.dataDescriptor(512, WRITE), flags: WRITE | NEXT, next: 3 }, area.table);
    },
  ],
  [
    'with a loop in its indirect table',
    (ring, area) => {
      indirect(ring, area, readRequest(area));
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
];

/** What cannot be in either ring. */
const UNWALKABLE: [string, Layout][] = [
  [
    'with INDIRECT and NEXT together',
    (ring, area) => indirect(ring, area, readRequest(area), { flags: INDIRECT | NEXT, next: 1 }),
  ],
  ['with an indirect table of length 0', (ring, area) => indirect(ring, area, readRequest(area), { length: 0 })],
  ['with an indirect table of length 1', (ring, area) => indirect(ring, area, readRequest(area), { length: 1 })],
  ['with an indirect table of length 49', (ring, area) => indirect(ring, area, readRequest(area), { length: 49 })],
  [
    'with an indirect table behind the memory',
    (ring, area, frontend) => indirect(ring, area, readRequest(area), { address: behind(frontend) }),
  ],
  [
    'with an indirect table that leaves the memory',
    (ring, area, frontend) => indirect(ring, area, readRequest(area), { address: behind(frontend) - 16 }),
  ],
  ['with an indirect table at 2^64 - 16', (ring, area) => indirect(ring, area, readRequest(area), { address: -16n })],
  [
    'of buffers that sum up to 2^32 bytes',
    (ring, area, { ram }) => {
      const huge = { address: ram.guest(area.data), length: 0x8000_0000, flags: WRITE };
      ring.setChain(0, [area.headerDescriptor(), huge, huge, area.statusDescriptor()]);
    },
  ],
];

/** Lists that only a packed ring can be given. */
const UNWALKABLE_PACKED: [string, Layout][] = [
  [
    'with an indirect table in the middle of a list',
    (ring, area) => {
      const table = area.indirect([area.dataDescriptor(512, WRITE)]);
      ring.setChain(0, [area.headerDescriptor(), table, area.statusDescriptor()]);
    },
  ],
  [
    'with an indirect table at the end of a list',
    (ring, area) => {
      ring.setChain(0, [
        area.headerDescriptor(),
        area.indirect([area.dataDescriptor(512, WRITE), area.statusDescriptor()]),
      ]);
    },
  ],
  [
    'with an indirect table of 65536 entries',
    (ring, area, { ram }) => {
      const table = ram.length - 0x10_0000;
      for (let i = 0; i < 65536; i += 1) ring.setDescriptor(i, { address: ram.guest(area.data), length: 1 }, table);
      ring.setDescriptor(0, { address: ram.guest(table), length: 0x10_0000, flags: INDIRECT });
    },
  ],
];

describe.each(RINGS)('in a %s ring a chain that cannot be walked', (name, features) => {
  it.each([...(name === 'split' ? ASTRAY : UNWALKABLE_PACKED), ...UNWALKABLE])(
    '%s is returned with length 0, unserved',
    async (_, layout) => {
      const answer = await submitChain(daemon(), layout, features);

      expect(answer).toMatchObject({ id: 0, usedLength: 0, status: UNTOUCHED });
      expect(answer.data).toEqual(new Uint8Array(512).fill(0xee));
    },
  );

  it('because INDIRECT_DESC was not negotiated is returned with length 0', async () => {
    const layout: Layout = (ring, area) => indirect(ring, area, readRequest(area));

    const answer = await submitChain(daemon(), layout, features, [FEATURE.FLUSH]);

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

describe.each(RINGS)('in a %s ring a chain with a status byte but a fault elsewhere gets IOERR:', (_, features) => {
  it.each(UNMAPPED)('a data buffer %s', async (_, data) => {
    const answer = await submitChain(
      daemon(),
      (ring, area, frontend) => {
        ring.setChain(0, readRequest(area, { data: data(frontend, area) }));
      },
      features,
    );

    expect(answer).toMatchObject({ id: 0, usedLength: 1, status: STATUS.IOERR });
  });

  it('a header that is not mapped', async () => {
    const answer = await submitChain(
      daemon(),
      (ring, area, frontend) => {
        const [, ...rest] = readRequest(area);
        ring.setChain(0, [{ address: behind(frontend), length: 16 }, ...rest]);
      },
      features,
    );

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
    const answer = await submitChain(
      daemon(),
      (ring, area) => {
        ring.setChain(0, [...front(area), area.statusDescriptor()]);
      },
      features,
    );

    expect(answer).toMatchObject({ usedLength: 1, status: STATUS.IOERR });
  });

  it('readable data behind the status, which stays as it is', async () => {
    const answer = await submitChain(
      daemon(),
      (ring, area) => {
        ring.setChain(0, [area.headerDescriptor(), area.statusDescriptor(), area.dataDescriptor(512)]);
      },
      features,
    );

    expect(answer).toMatchObject({ usedLength: 1, status: STATUS.IOERR });
    expect(answer.data).toEqual(new Uint8Array(512).fill(0xee));
  });
});

describe.each(RINGS)('in a %s ring a chain without a usable status byte is returned with length 0:', (_, features) => {
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
        ring.setChain(0, readRequest(area, { status: { address: behind(frontend), length: 1, flags: WRITE } })),
    ],
  ])('%s', async (_, layout) => {
    const answer = await submitChain(daemon(), layout, features);

    expect(answer).toMatchObject({ id: 0, usedLength: 0, status: UNTOUCHED });
  });
});
