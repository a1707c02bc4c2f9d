import { describe, expect, it } from 'vitest';
import { SysError } from '../../../../protocol/sys/errors.ts';
import { createSealedMemfd } from '../../../../protocol/sys/owned-fd.ts';
import { explainTapError, inspectTap } from '../../../../protocol/sys/tap.ts';

describe('why a TAP cannot be had', () => {
  it.each<[string, string, number, number, RegExp]>([
    ['no driver', 'open', 2, 1, /\/dev\/net\/tun cannot be opened.*ENOENT/],
    ['not permitted', 'ioctl', 1, 1, /CAP_NET_ADMIN/],
    ['one queue, taken', 'ioctl', 16, 1, /in use by another program/],
    ['several queues, taken', 'ioctl', 16, 4, /fewer than 4 queues/],
    ['one queue, for several', 'ioctl', 22, 2, /ip tuntap add vm1 mode tap multi_queue/],
    ['something else', 'ioctl', 22, 1, /not a TAP/],
    ['anything', 'ioctl', 12, 1, /ENOMEM/],
  ])('(%s) is said in one line', (_, syscall, errno, queues, sentence) => {
    const line = explainTapError(new SysError(syscall, errno), 'vm1', queues);

    expect(line).toMatch(sentence);
    expect(line).not.toContain('\n');
  });

  it('is found out of a descriptor that is none', () => {
    const memfd = createSealedMemfd('no-tap', 4096);

    expect(() => inspectTap(memfd.fd)).toThrow(SysError);
    memfd.close();
  });
});
