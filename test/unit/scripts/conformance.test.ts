import { describe, expect, it } from 'vitest';
import { wordsOf } from '../../../scripts/checks/conformance/observed.ts';
import { testNames } from '../../../scripts/checks/conformance/test-names.ts';

const namesIn = (text: string): string[] => [...testNames([{ path: 'test/unit/x/y.test.ts', text }])];

describe('the names of tests', () => {
  it('have the groups that they are in', () => {
    const text = `
      describe('a ring', () => {
        const daemon = hostileDaemon();
        describe('that is started', () => { it('is served', async () => { await x('no test', () => 1); }); });
        it('is stopped', () => {});
      });
      it('alone', function () {});`;

    expect(namesIn(text)).toEqual([
      'unit/x/y: a ring',
      'unit/x/y: a ring > that is started',
      'unit/x/y: a ring > that is started > is served',
      'unit/x/y: a ring > is stopped',
      'unit/x/y: alone',
    ]);
  });

  it.each([
    ["it.each([[1, 'x'], [2, 'y']])('of %i', (n) => {});", 'of %i'],
    ["it.each<[string, () => number]>([['a', () => 1]])('is %s', async (_, f) => {});", 'is %s'],
    ["describe.skipIf(free < 4)('on huge pages', () => {});", 'on huge pages'],
    ["describeWithPeers([...peers, 'ethtool'], 'on a TAP', () => {});", 'on a TAP'],
    ["it('waits', { timeout: 1000 }, () => {});", 'waits'],
    ['it(`is a template`, () => {});', 'is a template'],
  ])('are found in %s', (text, name) => {
    expect(namesIn(text)).toEqual([`unit/x/y: ${name}`]);
  });

  it('are those of test files only', () => {
    const text = "it('works', () => {});";

    expect([...testNames([{ path: 'test/support/x.ts', text }])]).toEqual([]);
    expect(namesIn(`itself('works', () => {}); expect('it').toBe(() => {}); ${text.replace('it', 'audit')}`)).toEqual(
      [],
    );
  });
});

describe('the words of sources', () => {
  it('are names of the standards, messages with the direction that they go in', () => {
    const text = 'call(FRONTEND.SET_OWNER); const x = VIRTIO_F_VERSION_1 | BACKEND.VRING_CALL.id;';
    const sources = [
      { path: 'vmm-client/frontend/a.ts', text },
      { path: 'vmm-client/vmm/b.ts', text: 'OTHER' },
    ];

    const words = wordsOf(sources, /^vmm-client\/frontend\//);

    expect(words).toContain('FRONTEND.SET_OWNER');
    expect(words).toContain('BACKEND.VRING_CALL');
    expect(words).toContain('VIRTIO_F_VERSION_1');
    expect(words).not.toContain('OTHER');
  });
});
