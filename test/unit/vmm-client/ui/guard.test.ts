import { describe, expect, it } from 'vitest';
import {
  bearerOf,
  checkHost,
  checkReader,
  checkWriter,
  cookieOf,
  hostNameOf,
  isLoopback,
  SECURITY_HEADERS,
  TokenCheck,
} from '../../../../vmm-client/ui/guard.ts';

const NAMES = new Set(['vms.example.org']);

describe('The Host header', () => {
  it('is an address, localhost or a name that was allowed, with or without a port', () => {
    for (const host of [
      ...['127.0.0.1:8600', '127.0.0.1', 'localhost:1', '[::1]:8600', '[::1]', '192.168.1.7:8600'],
      ...['LOCALHOST:8600', 'vms.example.org', 'VMS.example.org:443'],
    ]) {
      expect([host, checkHost(host, NAMES)]).toEqual([host, undefined]);
    }
  });

  it('is no name that leads here by DNS', () => {
    for (const host of [
      'evil.example:8600',
      'localhost.evil.example',
      '127.0.0.1.nip.io:8600',
      'vms.example.org.evil',
    ]) {
      expect([host, checkHost(host, NAMES)?.status]).toEqual([host, 421]);
    }
  });

  it('is there, and is one', () => {
    for (const host of [
      undefined,
      '',
      'a b',
      'localhost:8600:1',
      'http://localhost',
      '[::1',
      'x@localhost',
      'localhost:',
    ]) {
      expect([host, checkHost(host, NAMES)?.status]).toEqual([host, 400]);
    }
    expect(hostNameOf('[2001:DB8::1]:80')).toBe('2001:db8::1');
  });
});

describe('Loopback addresses', () => {
  it('are those that no other machine reaches', () => {
    expect(['127.0.0.1', '127.8.9.1', '::1', 'localhost'].map(isLoopback)).toEqual([true, true, true, true]);
    expect(['0.0.0.0', '::', '192.168.0.1', '128.0.0.1', '127.0.0.1.evil'].map(isLoopback)).not.toContain(true);
  });
});

describe('Where a request comes from', () => {
  const host = 'localhost:8600';
  const from = (origin: string | undefined, site?: string, hasBearer = false) =>
    checkWriter({ host, origin, site, hasBearer })?.status;

  it('is our page, for one that changes something', () => {
    expect(from('http://localhost:8600', 'same-origin')).toBeUndefined();
    expect(from('https://localhost:8600')).toBeUndefined();
    expect(from('http://localhost:8601')).toBe(403);
    expect(from('http://localhost')).toBe(403);
    expect(from('http://evil.example')).toBe(403);
    expect(from('null')).toBe(403);
    // A form of another site sends its own.
    expect(from('http://localhost:8600', 'cross-site')).toBe(403);
  });

  it('is said, but for a program that has the token', () => {
    expect(from(undefined)).toBe(403);
    expect(from(undefined, undefined, true)).toBeUndefined();
    expect(from('http://evil.example', undefined, true)).toBe(403);
  });

  it('is no other site, for one that reads', () => {
    const read = (site: string | undefined) => checkReader({ host, origin: undefined, site, hasBearer: false })?.status;
    expect([undefined, 'same-origin', 'none'].map(read)).toEqual([undefined, undefined, undefined]);
    expect(['cross-site', 'same-site', 'anything'].map(read)).toEqual([403, 403, 403]);
  });
});

describe('A token', () => {
  it('comes in the Authorization header', () => {
    expect(bearerOf('Bearer abc123')).toBe('abc123');
    expect(bearerOf('bearer  abc123')).toBe('abc123');
    expect([undefined, '', 'Basic abc', 'Bearer', 'Bearer a b', 'XBearer a'].map(bearerOf)).toEqual(
      Array.from({ length: 6 }, () => undefined),
    );
  });

  it('is compared as a whole', () => {
    const check = new TokenCheck('0123456789abcdef0123456789abcdef');
    expect(check.accepts('0123456789abcdef0123456789abcdef')).toBe(true);
    for (const wrong of ['', '0', '0123456789abcdef0123456789abcdeg', '0123456789abcdef0123456789abcdef0', '\ud800']) {
      expect([wrong, check.accepts(wrong)]).toEqual([wrong, false]);
    }
  });
});

describe('A cookie', () => {
  it('is found by its whole name', () => {
    const header = 'a=1; ringside-8600=secret; xringside-8600=other; b';
    expect(cookieOf(header, 'ringside-8600')).toBe('secret');
    expect(cookieOf(header, 'ringside-860')).toBeUndefined();
    expect(cookieOf(header, 'b')).toBeUndefined();
    expect(cookieOf(undefined, 'a')).toBeUndefined();
  });
});

describe('The policy', () => {
  it('allows nothing from elsewhere, no script in the page and no frame', () => {
    const policy = SECURITY_HEADERS['Content-Security-Policy'] ?? '';
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("script-src 'self'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toMatch(/unsafe|http:|https:|\*/);
  });
});
