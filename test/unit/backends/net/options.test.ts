import { describe, expect, it } from 'vitest';
import { toUsageError } from '../../../../backends/core/options.ts';
import { parseNetOptions } from '../../../../backends/net/options.ts';
import { dump } from '../../../support/hex.ts';

const parse = (...argv: string[]) => parseNetOptions(['--socket-path=s', ...argv], '1.2.3');

/** The one line that the user gets. */
const complaint = (...argv: string[]): string => {
  try {
    parseNetOptions(argv, '1.2.3');
  } catch (error) {
    return toUsageError(error)?.message ?? 'nothing';
  }
  throw new Error('the command line is taken');
};

describe('the command line', () => {
  it('has values for what is left out', () => {
    expect(parse('--tap=tap0')).toMatchObject({ tap: 'tap0', numQueuePairs: 1, ctrlVq: false, speed: 0, pollUs: 100 });
    expect(parse('--tap=tap0').threads).toBe(1);
    expect(parse('--tap=tap0')).not.toHaveProperty('mac');
    expect(parse('--tap=tap0')).not.toHaveProperty('mtu');
  });

  it('takes everything', () => {
    const options = parse(
      '--tap=vm-1.2_x',
      '--ip=192.0.2.1/24',
      '--ip6=2001:db8::1/64',
      '--bridge=br0',
      '--mac=52:54:00:12:34:56',
      '--host-mac=02:00:00:00:00:01',
      '--mtu=9000',
      '--num-queue-pairs=127',
      '--threads=4',
      '--ctrl-vq',
      '--speed=2147483647',
    );

    expect(options).toMatchObject({ tap: 'vm-1.2_x', bridge: 'br0', mtu: 9000, numQueuePairs: 127, ctrlVq: true });
    expect([options.speed, options.threads]).toEqual([2147483647, 4]);
    expect(dump(options.mac ?? new Uint8Array())).toBe('525400123456');
    expect(dump(options.hostMac ?? new Uint8Array())).toBe('020000000001');
    expect([options.ip?.prefix, options.ip6?.prefix]).toEqual([24, 64]);
  });

  it('takes descriptors, and nothing at all', () => {
    expect(parse('--tap-fd=3').tapFd).toEqual([3]);
    expect(parse('--tap-fd=7,4,5', '--num-queue-pairs=3').tapFd).toEqual([7, 4, 5]);
    expect(parse('--null').null).toBe(true);
  });

  it.each<[string, string[], RegExp]>([
    ['more threads than pairs', ['--tap=t', '--num-queue-pairs=2', '--threads=3'], /--threads=3: .*pairs=2/],
    ['no thread', ['--tap=t', '--threads=0'], /--threads/],
    ['an empty name', ['--tap='], /--tap/],
    ['a name of 16 bytes', ['--tap=0123456789abcdef'], /15 bytes/],
    ['a name of 16 bytes in 8 letters', ['--tap=éééééééé'], /15 bytes/],
    ['a name with a slash', ['--tap=a/b'], /--tap/],
    ['a name with a colon', ['--tap=a:1'], /--tap/],
    ['a name with a blank', ['--tap=a b'], /--tap/],
    ['a name of a directory', ['--tap=..'], /--tap/],
    ['a bridge with a slash', ['--tap=t', '--bridge=/'], /--bridge/],
    ['an address without a prefix', ['--tap=t', '--ip=192.0.2.1'], /--ip.*like 192\.0\.2\.1\/24/],
    ['an address of the wrong kind', ['--tap=t', '--ip=::1/64'], /--ip/],
    ['an address with a zone', ['--tap=t', '--ip6=fe80::1%lo/64'], /--ip6/],
    ['half a MAC', ['--tap=t', '--mac=52:54:00'], /--mac.*like 52:54:00:12:34:56/],
    ['a group as MAC', ['--tap=t', '--mac=33:33:00:00:00:01'], /--mac.*group/],
    ['a group as MAC of the host', ['--tap=t', '--host-mac=ff:ff:ff:ff:ff:ff'], /--host-mac.*group/],
    ['an MTU of 67', ['--tap=t', '--mtu=67'], /--mtu.*68 to 65535/],
    ['an MTU of 65536', ['--tap=t', '--mtu=65536'], /--mtu/],
    ['an MTU in words', ['--tap=t', '--mtu=jumbo'], /--mtu/],
    ['an MTU of 1e3', ['--tap=t', '--mtu=1e3'], /--mtu/],
    ['no pair', ['--tap=t', '--num-queue-pairs=0'], /--num-queue-pairs.*1 to 127/],
    ['128 pairs', ['--tap=t', '--num-queue-pairs=128'], /--num-queue-pairs/],
    ['a pair and a half', ['--tap=t', '--num-queue-pairs=1.5'], /--num-queue-pairs/],
    ['a speed below 0', ['--tap=t', '--speed=-1'], /--speed/],
    ['a speed above 2^31 - 1', ['--tap=t', '--speed=2147483648'], /--speed/],
    ['a descriptor in words', ['--tap-fd=three'], /--tap-fd/],
    ['a descriptor below 0', ['--tap-fd=-1'], /--tap-fd/],
    ['a descriptor missing', ['--tap-fd=3,'], /--tap-fd/],
    ['a descriptor twice', ['--tap-fd=3,4,3'], /--tap-fd.*twice/],
    ['two sources', ['--tap=t', '--tap-fd=3'], /cannot be used with/],
    ['a MAC of no host', ['--null', '--host-mac=02:00:00:00:00:01'], /cannot be used with/],
    ['no source', [], /--tap, --tap-fd and --null/],
    ['--poll-us in words', ['--tap=t', '--poll-us=long'], /--poll-us/],
    ['an unknown log level', ['--tap=t', '--log-level=loud'], /--log-level/],
  ])('refuses %s in one line', (_, argv, sentence) => {
    const line = complaint('--socket-path=s', ...argv);

    expect(line).toMatch(sentence);
    expect(line).not.toContain('\n');
  });

  it('refuses to go without a socket', () => {
    expect(complaint('--null')).toMatch(/--socket-path/);
  });
});
