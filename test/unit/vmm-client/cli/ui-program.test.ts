import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { unescapeText } from '../../../../vmm-client/cli/ctl-console.ts';
import { parseHostName, parseListen } from '../../../../vmm-client/cli/ui-program.ts';
import { serveUi } from '../../../../vmm-client/cli/ui-serve.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';

describe('--listen', () => {
  it('is an address and a port', () => {
    expect(parseListen('127.0.0.1:8600')).toEqual({ host: '127.0.0.1', port: 8600 });
    expect(parseListen('[::1]:0')).toEqual({ host: '::1', port: 0 });
    expect(parseListen('localhost:65535')).toEqual({ host: 'localhost', port: 65_535 });
  });

  it('is nothing else', () => {
    for (const text of [
      '',
      '8600',
      ':8600',
      '127.0.0.1',
      '127.0.0.1:65536',
      '::1:80',
      '[127.0.0.1]:80',
      'name:80',
      '[x]:1',
    ]) {
      expect(() => parseListen(text)).toThrow(`'${text}' is not an address and a port`);
    }
  });
});

describe('--host-name', () => {
  it('is a name', () => {
    expect(parseHostName('VMs.example.org')).toBe('vms.example.org');
    for (const text of ['', 'a b', '1.2.3.4', 'a:80', 'http://a', '.a']) {
      expect(() => parseHostName(text)).toThrow('is not the name of a host');
    }
  });
});

describe('ctl console-input', () => {
  it('understands what shells leave alone', () => {
    expect(unescapeText('ls\\r')).toBe('ls\r');
    expect(unescapeText('\\x03\\x1b[A\\t\\n\\\\r')).toBe('\x03\x1b[A\t\n\\r');
    expect(unescapeText('\\q \\x \\')).toBe('\\q \\x \\');
  });
});

describe('ringside ui', () => {
  const cleanup = cleanupAfterEach();
  const serve = (options: object) => {
    const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
    const host = { root: '/', runtimeDirectory: '/', onExit: () => () => undefined };
    const context = { stdin, stdout, stderr, interrupted: new AbortController().signal, host };
    return serveUi(context, { listen: { host: '127.0.0.1', port: 0 }, apiSocket: ['/none'], ...options });
  };

  it('says what is wrong about what was asked for', async () => {
    await expect(serve({ apiSocket: [] })).rejects.toThrow('nothing to show: --api-socket or --api-dir is needed');
    await expect(serve({ apiDir: ['/nowhere'] })).rejects.toThrow('/nowhere cannot be read: no such file or directory');
    await expect(serve({ allowControl: true })).rejects.toThrow('a token is needed (--token-file)');
    await expect(serve({ tokenFile: '/nowhere' })).rejects.toThrow(
      '/nowhere cannot be read: no such file or directory',
    );
  });

  it('takes a token that only its owner can read', async () => {
    const file = join(cleanup.directory(), 'token');
    writeFileSync(file, '0123456789abcdef0123456789abcdef\n');
    chmodSync(file, 0o640);
    await expect(serve({ tokenFile: file })).rejects.toThrow(
      `${file}: others may read it (mode 0640): chmod 600 ${file}`,
    );
    chmodSync(file, 0o600);
    writeFileSync(file, 'x'.repeat(5000));
    await expect(serve({ tokenFile: file })).rejects.toThrow('5000 bytes are too many for a token');
    writeFileSync(file, '');
    await expect(serve({ tokenFile: file })).rejects.toThrow('the token has characters other than');
  });
});
