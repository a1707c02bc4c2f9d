import { describe, expect, it } from 'vitest';
import { findLongFiles } from '../../../scripts/checks/file-size.ts';
import { findLawBreakers } from '../../../scripts/checks/import-law.ts';

const messagesFor = (path: string, text: string): string[] =>
  findLawBreakers([{ path, text }]).map(({ message }) => message);

describe('the import law forbids', () => {
  it.each([
    ['protocol/virtio/blk.ts', "import { x } from '../sys/libc.ts';"],
    ['protocol/virtio/blk.ts', "import { x } from 'node:fs';"],
    ['protocol/memory/guest-memory.ts', "import koffi from 'koffi';"],
    ['protocol/memory/guest-memory.ts', "import { x } from '../virtqueue/chain.ts';"],
    ['protocol/vhost-user/endpoint.ts', "import { x } from '../memory/guest-memory.ts';"],
    ['protocol/sys/libc.ts', "import { x } from '../virtio/blk.ts';"],
    ['protocol/sys/libc.ts', "import { x } from 'pino';"],
    ['backends/core/session.ts', "import { x } from '../blk/device.ts';"],
    ['backends/core/session.ts', "import koffi from 'koffi';"],
    ['backends/blk/device.ts', "import { x } from '../net/device.ts';"],
    ['backends/blk/engines/uring.ts', "import type { x } from '../../../vmm-client/driver/blk.ts';"],
    ['vmm-client/frontend/frontend.ts', "import { x } from '../../backends/core/session.ts';"],
    ['vmm-client/frontend/frontend.ts', "const x = await import('../../backends/core/session.ts');"],
    ['vmm-client/frontend/frontend.ts', "export * from '../../backends/core/session.ts';"],
    ['test/support/child.ts', "import { x } from '../../backends/core/session.ts';"],
    ['test/support/frontend/ring.ts', "import { x } from '../../../vmm-client/driver/blk.ts';"],
    ['test/spec/x.test.ts', "import koffi from 'koffi';"],
    ['scripts/bench/main.ts', "import { x } from '../../backends/core/session.ts';"],
  ])('%s: %s', (path, text) => {
    expect(messagesFor(path, text)).toHaveLength(1);
  });

  it.each([
    ['backends/core/options.ts', 'const x = process.argv;'],
    ['backends/core/options.ts', "const x = process.env['HOME'];"],
    ['backends/core/daemon.ts', 'process.exit(1);'],
    ['backends/core/daemon.ts', "process.on('SIGTERM', stop);"],
    ['vmm-client/frontend/frontend.ts', 'process.exitCode = 1;'],
  ])('%s: %s', (path, text) => {
    expect(messagesFor(path, text)).toHaveLength(1);
  });
});

describe('the import law allows', () => {
  it.each([
    ['protocol/virtio/blk.ts', "import { x } from './split-ring.ts';"],
    ['protocol/sys/libc.ts', "import koffi from 'koffi'; import { x } from 'node:util';"],
    [
      'protocol/virtqueue/chain.ts',
      "import { x } from '../memory/guest-memory.ts'; import { y } from '../virtio/blk.ts';",
    ],
    ['backends/core/session.ts', "import { x } from '../../protocol/sys/libc.ts'; import { pino } from 'pino';"],
    ['backends/blk/engines/uring.ts', "import { x } from '../request.ts'; import { y } from '../../core/vring.ts';"],
    ['vmm-client/cli/main.ts', "import { x } from '../frontend/frontend.ts'; process.exit(process.argv.length);"],
    ['test/unit/backends/core/x.test.ts', "import { x } from '../../../../backends/core/session.ts';"],
    ['backends/core/daemon.ts', "process.on('warning', log); const x = process.pid; // process.exit"],
  ])('%s: %s', (path, text) => {
    expect(messagesFor(path, text)).toEqual([]);
  });
});

describe('the size of a file', () => {
  it('may be 500 lines and no more', () => {
    const lines = (count: number): string => 'x\n'.repeat(count);
    const sources = [
      { path: 'protocol/a.ts', text: lines(500) },
      { path: 'protocol/b.ts', text: lines(501) },
      { path: 'scripts/long', text: lines(501) },
      { path: 'test/data.json', text: lines(9000) },
    ];

    expect(findLongFiles(sources).map(({ path }) => path)).toEqual(['protocol/b.ts', 'scripts/long']);
  });
});
