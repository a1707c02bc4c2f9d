import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { toUsageError } from '../../../../backends/core/options.ts';
import { parseVsockOptions, type VsockOptions } from '../../../../backends/vsock/options.ts';

const parse = (...argv: string[]): VsockOptions => parseVsockOptions(argv, '1.2.3');

const complaint = (...argv: string[]): string | undefined => {
  try {
    parse(...argv);
  } catch (error) {
    return toUsageError(error)?.message;
  }
  return undefined;
};

const ONE = ['--socket-path=/s', '--guest-cid=3', '--uds-path=/u'];

describe('options of one guest', () => {
  it('have defaults', () => {
    const { guests, limits } = parse(...ONE);
    expect(guests).toEqual([{ guestCid: 3, udsPath: '/u', socketPath: '/s', groups: new Set(['default']) }]);
    expect(limits).toEqual({
      maxConnections: 1024,
      maxHalfOpen: 128,
      bufferSize: 262_144,
      connectTimeout: 2000,
      closeTimeout: 8000,
    });
  });

  it.each([
    [['--socket-path=/s', '--uds-path=/u'], /--guest-cid and --uds-path are needed/],
    [['--guest-cid=3', '--uds-path=/u'], /--socket-path and --fd/],
    [[...ONE, '--threads=2'], /unknown option '--threads=2'/],
    [['--socket-path=/s', '--guest-cid=2', '--uds-path=/u'], /from 3 to 4294967294/],
    [['--socket-path=/s', '--guest-cid=4294967295', '--uds-path=/u'], /from 3 to 4294967294/],
    [['--socket-path=/s', '--guest-cid=3', `--uds-path=/${'u'.repeat(96)}`], /1 to 96 bytes/],
    [[...ONE, '--groups=a++b'], /names joined by \+/],
    [[...ONE, '--vm=guest-cid=4,socket=/t,uds-path=/v'], /cannot be used with/],
    [[...ONE, '--max-connections=0'], /from 1 to 65536/],
    [[...ONE, '--buffer-size=4095'], /from 4096/],
  ])('%j is refused', (argv, message) => {
    expect(complaint(...argv)).toMatch(message);
  });
});

describe('options of several guests', () => {
  it('come by --vm', () => {
    const { guests } = parse(
      '--vm=guest-cid=3,socket=/s3,uds-path=/u3,groups=a+b',
      '--vm',
      'guest_cid=4,socket=/s4,uds_path=/u4',
    );
    expect(guests).toEqual([
      { guestCid: 3, socketPath: '/s3', udsPath: '/u3', groups: new Set(['a', 'b']) },
      { guestCid: 4, socketPath: '/s4', udsPath: '/u4', groups: new Set(['default']) },
    ]);
  });

  it.each([
    ['guest-cid=3,socket=/s', /uds-path is missing/],
    ['guest-cid=3,socket=/s,uds-path=/u,tx-buffer-size=5', /tx-buffer-size is not one of/],
    ['guest-cid=3,guest-cid=4,socket=/s,uds-path=/u', /guest-cid is there twice/],
    ['guest-cid=3,socket,uds-path=/u', /name=value is expected in place of "socket"/],
    ['guest-cid=x,socket=/s,uds-path=/u', /whole number/],
  ])('%s is refused', (vm, message) => {
    expect(complaint(`--vm=${vm}`)).toMatch(message);
  });

  it('have a CID and a path each', () => {
    expect(complaint('--vm=guest-cid=3,socket=/a,uds-path=/b', '--vm=guest-cid=3,socket=/c,uds-path=/d')).toMatch(
      /two guests have the CID 3/,
    );
    expect(complaint('--vm=guest-cid=3,socket=/a,uds-path=/b', '--vm=guest-cid=4,socket=/c,uds-path=/a')).toMatch(
      /two guests have the path \/a/,
    );
  });

  it('come from a file', () => {
    const directory = mkdtempSync(join(tmpdir(), 'ringside-'));
    const file = join(directory, 'c.json');
    try {
      writeFileSync(file, '{"vms": [{"guest_cid": 3, "socket": "/s", "uds_path": "/u", "groups": "g"}]}');
      expect(parse(`--config=${file}`).guests).toEqual([
        { guestCid: 3, socketPath: '/s', udsPath: '/u', groups: new Set(['g']) },
      ]);
      for (const [text, message] of [
        ['{', /JSON/],
        ['[]', /a list "vms" is expected/],
        ['{"vms": [3]}', /vms\[0\] is not an object/],
        ['{"vms": [{"guest_cid": {}}]}', /vms\[0\].guest_cid is neither/],
      ] as const) {
        writeFileSync(file, text);
        expect(complaint(`--config=${file}`)).toMatch(message);
      }
    } finally {
      rmSync(directory, { recursive: true });
    }
    expect(complaint(`--config=${file}`)).toMatch(/ENOENT/);
  });
});
