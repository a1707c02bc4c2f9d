import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { libc } from '../../../../protocol/sys/libc.ts';
import { createEventFd, OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../../protocol/sys/pinned.ts';
import { socketRole, UnixListener, UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { createMemfd } from '../../../support/frontend/descriptors.ts';
import { countOwnFds, eventually } from '../../../support/frontend/process-probe.ts';

const SYS_prlimit64 = 302;
const RLIMIT_NOFILE = 7;
const limits = allocatePinned(32);

/** Runs `body` while this process may open no descriptor at or above `limit`. */
const withFdLimit = (limit: number, body: () => void): void => {
  libc.syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, limits.address + 16, 0, 0);
  limits.setU64(0, limit);
  limits.data.setBigUint64(8, limits.data.getBigUint64(24, true), true);
  expect(libc.syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, limits.address, 0, 0, 0)).toBe(0);
  try {
    body();
  } finally {
    libc.syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, limits.address + 16, 0, 0, 0);
  }
};

let directory: string;
let path: string;
let fdsBefore: number;
const open: { close(): void }[] = [];

const keep = <T extends { close(): void }>(closable: T): T => {
  open.push(closable);
  return closable;
};

const pair = (): [UnixStream, UnixStream] => {
  const [a, b] = UnixStream.pair();
  return [keep(a), keep(b)];
};

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ringside-'));
  path = join(directory, 's');
  fdsBefore = countOwnFds();
});

afterEach(() => {
  for (const closable of open.splice(0)) closable.close();
  expect(countOwnFds()).toBe(fdsBefore);
  rmSync(directory, { recursive: true });
});

describe('a stream', () => {
  it('carries bytes and descriptors, and the descriptors are the same open files', () => {
    const [a, b] = pair();
    const sent = keep(createMemfd(8192));
    a.send(Uint8Array.of(1, 2, 3), [sent.fd]);

    const received = b.receive(new Uint8Array(8), 0, 8);

    expect(received?.length).toBe(3);
    const stats = [...(received?.fds ?? []), sent].map((fd) => statSync(`/proc/self/fd/${fd.fd}`).ino);
    expect(new Set(stats).size).toBe(1);
    for (const fd of received?.fds ?? []) fd.close();
  });

  it('marks received descriptors close-on-exec', () => {
    const [a, b] = pair();
    a.send(Uint8Array.of(1), [keep(createEventFd()).fd]);

    const received = b.receive(new Uint8Array(1), 0, 1);

    const F_GETFD = 1;
    expect(libc.fcntl(received?.fds[0]?.fd ?? -1, F_GETFD, 0)).toBe(1);
    for (const fd of received?.fds ?? []) fd.close();
  });

  it('carries 253 descriptors, the most that the kernel takes', () => {
    const [a, b] = pair();
    const fd = keep(createEventFd());
    a.send(Uint8Array.of(1), Array<number>(253).fill(fd.fd));

    const received = b.receive(new Uint8Array(1), 0, 1);

    expect(received?.fds).toHaveLength(253);
    for (const each of received?.fds ?? []) each.close();
  });

  it('refuses a message whose descriptors did not all fit under the limit, and closes those that did', () => {
    const [a, b] = pair();
    const fd = keep(createEventFd());
    a.send(Uint8Array.of(1), [fd.fd, fd.fd, fd.fd, fd.fd]);
    const before = countOwnFds();
    // The lowest numbers are taken, so the limit leaves room for two more, give or take holes in the sequence.
    const highest = fd.duplicate();
    const limit = highest.fd + 2;
    highest.close();

    withFdLimit(limit, () => {
      expect(() => b.receive(new Uint8Array(1), 0, 1)).toThrow(/ancillary data cut off/);
    });

    expect(countOwnFds()).toBe(before);
  });

  it('has nothing to receive before something was sent, and 0 bytes at the end', () => {
    const [a, b] = pair();
    expect(b.receive(new Uint8Array(1), 0, 1)).toBeUndefined();

    a.close();

    expect(b.receive(new Uint8Array(1), 0, 1)).toEqual({ length: 0, fds: [] });
  });

  it('sends nothing, and no descriptor, into a full buffer', () => {
    const [a, b] = pair();
    while (a.send(new Uint8Array(65536)) > 0);
    const fd = keep(createEventFd());

    expect(a.send(Uint8Array.of(1), [fd.fd])).toBe(0);

    const sink = new Uint8Array(65536);
    for (let part = b.receive(sink, 0, sink.length); part !== undefined; part = b.receive(sink, 0, sink.length)) {
      expect(part.fds).toEqual([]);
    }
  });

  it('throws EPIPE, without a signal, when the other end is gone', () => {
    const [a, b] = pair();
    b.close();

    expect(() => a.send(Uint8Array.of(1))).toThrow(/EPIPE/);
  });

  it('reads into the middle of a buffer and not beyond', () => {
    const [a, b] = pair();
    a.send(new Uint8Array(10).fill(7));
    const target = new Uint8Array(6);

    const received = b.receive(target, 2, 3);

    expect(received?.length).toBe(3);
    expect([...target]).toEqual([0, 0, 7, 7, 7, 0]);
  });
});

describe('connect', () => {
  it.each([
    ['ENOENT where nothing is', () => undefined, /ENOENT/],
    ['ECONNREFUSED where nobody listens', () => writeFileSync(path, ''), /ECONNREFUSED/],
  ])('throws %s', (_, prepare, error) => {
    prepare();

    expect(() => UnixStream.connect(path)).toThrow(error);
  });

  it.each([0, 108, 200])('refuses a path of %i bytes', (length) => {
    expect(() => UnixStream.connect('x'.repeat(length))).toThrow(/1 to 107 are possible/);
  });
});

describe('a listener', () => {
  it('accepts who connected, and has nobody otherwise', () => {
    const listener = keep(UnixListener.listen(path));
    expect(listener.accept()).toBeUndefined();
    keep(UnixStream.connect(path)).send(Uint8Array.of(9));

    const accepted = listener.accept();

    const byte = new Uint8Array(1);
    expect(accepted?.receive(byte, 0, 1)?.length).toBe(1);
    expect(byte[0]).toBe(9);
    accepted?.close();
  });

  it('takes a path of 107 bytes', () => {
    const long = join(directory, 'x'.repeat(107 - directory.length - 1));

    keep(UnixListener.listen(long));

    expect(statSync(long).isSocket()).toBe(true);
  });

  it('replaces a socket file that nobody listens on', () => {
    const first = UnixListener.listen(path);
    // As a process that was killed leaves it: descriptor gone, file there.
    libc.close(first.fd);
    expect(existsSync(path)).toBe(true);

    const listener = keep(UnixListener.listen(path));

    keep(UnixStream.connect(path));
    listener.accept()?.close();
  });

  it('refuses a path where somebody listens, who is not disturbed', () => {
    const listener = keep(UnixListener.listen(path));

    expect(() => UnixListener.listen(path)).toThrow(/EADDRINUSE/);

    listener.accept()?.close();
    keep(UnixStream.connect(path));
    const accepted = listener.accept();
    expect(accepted).toBeDefined();
    accepted?.close();
  });

  it('refuses a path where a file is that is no socket, and leaves it there', () => {
    writeFileSync(path, 'precious');

    expect(() => UnixListener.listen(path)).toThrow(/EADDRINUSE/);

    expect(statSync(path).size).toBe(8);
  });

  it('removes its file when it is closed', () => {
    UnixListener.listen(path).close();

    expect(existsSync(path)).toBe(false);
  });

  it('made of a descriptor leaves the file to who made it', async () => {
    const made = UnixListener.listen(path);
    const listener = UnixListener.fromFd(new OwnedFd(made.fd).duplicate());

    listener.close();

    expect(existsSync(path)).toBe(true);
    made.close();
    await eventually(
      'socket file',
      () => existsSync(path),
      (exists) => !exists,
    );
  });
});

describe('socketRole', () => {
  it('tells a listener from a connection from something else', () => {
    const [a] = pair();
    const listener = keep(UnixListener.listen(path));

    expect([socketRole(listener.fd), socketRole(a.fd), socketRole(keep(createEventFd()).fd)]).toEqual([
      'listening',
      'connected',
      'none',
    ]);
  });
});
