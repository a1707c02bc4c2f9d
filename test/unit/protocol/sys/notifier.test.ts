import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { libc } from '../../../../protocol/sys/libc.ts';
import { Notifier } from '../../../../protocol/sys/notifier.ts';
import { createEventFd, OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import {
  createBlockingEventFd,
  createMemfd,
  createPipe,
  openPath,
  takeEvent,
  waitReadable,
  writeEvent,
} from '../../../support/frontend/descriptors.ts';
import { countOwnFds } from '../../../support/frontend/process-probe.ts';

const O_DIRECTORY = 0x10000;
const FULL = 0xffff_ffff_ffff_fffen;
const open: { close(): void }[] = [];

const keep = <T extends { close(): void }>(closable: T): T => {
  open.push(closable);
  return closable;
};

/** A notifier on a duplicate, and the descriptor that the peer keeps. */
const notifierOf = (fd: OwnedFd): Notifier => keep(new Notifier(keep(fd).duplicate()));

const socketPair = (): [Notifier, UnixStream] => {
  const [ours, theirs] = UnixStream.pair();
  return [keep(new Notifier(ours.detach())), keep(theirs)];
};

afterEach(() => {
  for (const closable of open.splice(0)) closable.close();
});

describe('signal', () => {
  it.each([
    ['an eventfd', createEventFd],
    ['an eventfd that blocks', createBlockingEventFd],
  ])('adds one to %s', (_, create) => {
    const fd = create();
    const notifier = notifierOf(fd);

    notifier.signal();
    notifier.signal();

    expect(takeEvent(fd)).toBe(2n);
  });

  it.each([
    ['an eventfd', createEventFd],
    ['an eventfd that blocks', createBlockingEventFd],
  ])('returns at once when the peer filled %s', (_, create) => {
    const fd = create();
    writeEvent(fd, FULL);
    const notifier = notifierOf(fd);

    notifier.signal();

    expect(takeEvent(fd)).toBe(FULL);
  });

  it.each([
    ['', true],
    [' that blocks', false],
  ])('makes a pipe%s readable and returns at once when it is full', async (_, nonBlocking) => {
    const [read, write] = createPipe(nonBlocking);
    keep(read);
    const notifier = notifierOf(write);

    for (let i = 0; i < 20_000; i += 1) notifier.signal();

    await waitReadable(read, 1000, 'byte in the pipe');
  });

  it('is lost quietly on a pipe whose reader is gone', () => {
    const [read, write] = createPipe();
    const notifier = notifierOf(write);
    read.close();

    expect(() => notifier.signal()).not.toThrow();
  });

  it('sends to a socket until it is full, then returns at once', () => {
    const [notifier, peer] = socketPair();

    for (let i = 0; i < 100_000; i += 1) notifier.signal();

    expect(peer.receive(new Uint8Array(8), 0, 8)?.length).toBe(8);
  });

  it('is lost quietly on a socket whose other end is gone', () => {
    const [notifier, peer] = socketPair();
    peer.close();

    expect(() => notifier.signal()).not.toThrow();
  });
});

describe('drain', () => {
  it.each([
    ['an eventfd', createEventFd],
    ['an eventfd that blocks', createBlockingEventFd],
  ])('takes what is pending in %s, and returns at once when nothing is', (_, create) => {
    const fd = create();
    const notifier = notifierOf(fd);
    writeEvent(fd, 5n);

    expect(notifier.drain()).toBe(true);
    expect(notifier.drain()).toBe(true);

    writeEvent(fd, 1n);
    expect(takeEvent(fd)).toBe(1n);
  });

  it.each([
    ['', true],
    [' that blocks', false],
  ])('empties a pipe%s and returns at once when it is empty', (_, nonBlocking) => {
    const [read, write] = createPipe(nonBlocking);
    keep(write);
    const notifier = notifierOf(read);
    writeEvent(write);

    expect([notifier.drain(), notifier.drain()]).toEqual([true, true]);
  });

  it('tells when the writer of a pipe is gone', () => {
    const [read, write] = createPipe();
    const notifier = notifierOf(read);
    write.close();

    expect(notifier.drain()).toBe(false);
  });

  it('tells when the other end of a socket is gone, after what it sent', () => {
    const [notifier, peer] = socketPair();
    peer.send(new Uint8Array(8));
    expect(notifier.drain()).toBe(true);
    expect(notifier.drain()).toBe(true);

    peer.close();

    expect(notifier.drain()).toBe(false);
  });
});

describe('drain of a descriptor that knows no RWF_NOWAIT, as pipes before Linux 6.5', () => {
  it('returns at once when nothing is pending', () => {
    const SYS_inotify_init1 = 294;
    const inotify = new OwnedFd(libc.syscall(SYS_inotify_init1, 0, 0, 0, 0, 0, 0));

    expect(notifierOf(inotify).drain()).toBe(true);
  });
});

describe('a notifier is not made of', () => {
  it.each<[string, () => OwnedFd]>([
    ['a memfd', () => createMemfd(4096)],
    ['a directory', () => openPath('/', O_DIRECTORY)],
    ['/dev/null', () => openPath('/dev/null')],
    [
      'a regular file',
      () => {
        const directory = mkdtempSync(join(tmpdir(), 'ringside-'));
        const fd = openPath(join(directory, 'file'), 2 | 0o100);
        rmSync(directory, { recursive: true });
        return fd;
      },
    ],
  ])('%s, which is closed', (_, create) => {
    const before = countOwnFds();

    expect(() => new Notifier(create())).toThrow(/neither an eventfd nor a pipe nor a socket/);
    expect(countOwnFds()).toBe(before);
  });

  it('a descriptor that is not open', () => {
    expect(() => new Notifier(new OwnedFd(9999))).toThrow(/EBADF/);
  });
});
