import { describe, expect, it } from 'vitest';
import { parseFileUrl, parsePeerUrl } from '../../../../vmm-client/vmm/urls.ts';

describe('places of snapshots and migrations', () => {
  it.each([
    ['file:///var/tmp/vm1', '/var/tmp/vm1'],
    ['file:///a%20b/c', '/a b/c'],
    ['file:///', '/'],
  ])('%s is %s', (url, path) => {
    expect(parseFileUrl('source_url', url)).toBe(path);
  });

  it.each([
    ['unix:/run/m.sock', { kind: 'unix', path: '/run/m.sock' }],
    ['unix:relative', { kind: 'unix', path: 'relative' }],
    [`unix:/${'x'.repeat(106)}`, { kind: 'unix', path: `/${'x'.repeat(106)}` }],
    ['tcp:192.0.2.7:4444', { kind: 'tcp', host: '192.0.2.7', port: 4444 }],
    ['tcp:host-1.example:1', { kind: 'tcp', host: 'host-1.example', port: 1 }],
    ['tcp:[2001:db8::1]:65535', { kind: 'tcp', host: '2001:db8::1', port: 65535 }],
  ])('%s is %o', (url, address) => {
    expect(parsePeerUrl('receiver_url', url)).toEqual(address);
  });

  it.each([
    ['/var/tmp', 'source_url: "/var/tmp" is not file:///DIRECTORY'],
    ['file://host/a', 'source_url: "file://host/a" is not file:///DIRECTORY'],
    ['file:///a%00b', 'source_url contains a zero byte'],
    ['file:///a%2Fb', 'source_url: "file:///a%2Fb" names no file: File URL path must not include encoded / characters'],
    ['file:///%', 'source_url: "file:///%" names no file: URI malformed'],
  ])('%s is no directory', (url, sentence) => {
    expect(() => parseFileUrl('source_url', url)).toThrow(
      expect.objectContaining({ code: 'VM_CONFIG', message: sentence }),
    );
  });

  it.each([
    ['unix:', 'u: "unix:" is neither unix:PATH nor tcp:HOST:PORT'],
    [`unix:/${'x'.repeat(107)}`, 'u: a path of 108 bytes, at most 107 are possible'],
    ['unix:a\0b', 'u contains a zero byte'],
    ['tcp:host', 'u: "tcp:host" is neither unix:PATH nor tcp:HOST:PORT'],
    ['tcp::4444', 'u: "tcp::4444" is neither unix:PATH nor tcp:HOST:PORT'],
    ['tcp:2001:db8::1:4444', 'u: "tcp:2001:db8::1:4444" is neither unix:PATH nor tcp:HOST:PORT'],
    ['tcp:h:0', 'u: port 0 is not from 1 to 65535'],
    ['tcp:h:65536', 'u: port 65536 is not from 1 to 65535'],
    ['http://host', 'u: "http://host" is neither unix:PATH nor tcp:HOST:PORT'],
  ])('%s leads nowhere', (url, sentence) => {
    expect(() => parsePeerUrl('u', url)).toThrow(expect.objectContaining({ code: 'VM_CONFIG', message: sentence }));
  });
});
