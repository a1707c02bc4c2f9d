/** Pieces through pipes and sockets that block: nothing to read, no room to write, the end. */

import { expect, it } from 'vitest';
import type { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { readPiece, writePiece } from '../../../../protocol/sys/pipe-transfer.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';
import { createPipe, setBlocking } from '../../../support/frontend/descriptors.ts';

const cleanup = cleanupAfterEach();

const open: Record<string, () => [OwnedFd, OwnedFd]> = {
  pipe: () => createPipe(false),
  socket: () => UnixStream.pair().map((stream) => setBlocking(stream.detach())) as [OwnedFd, OwnedFd],
};

it.each(Object.keys(open))('a %s that blocks is not waited for', (kind) => {
  const [from, to] = (open[kind] as () => [OwnedFd, OwnedFd])();
  cleanup.add(() => from.close());
  cleanup.add(() => to.close());
  expect(readPiece(from.fd)).toBeUndefined();
  const bytes = Uint8Array.from({ length: 10_000 }, (_, i) => i);
  let written = 0;
  for (let part = writePiece(to.fd, bytes); part > 0; part = writePiece(to.fd, bytes)) written += part;
  expect(written).toBeGreaterThanOrEqual(4096);
  to.close();
  let read = 0;
  for (let part = readPiece(from.fd); part !== undefined && part.length > 0; part = readPiece(from.fd)) {
    expect(part).toEqual(bytes.slice(0, part.length));
    read += part.length;
  }
  expect(read).toBe(written);
  expect(readPiece(from.fd)).toEqual(new Uint8Array(0));
});

it('what cannot be read or written is an error', () => {
  const [from, to] = createPipe();
  cleanup.add(() => from.close());
  cleanup.add(() => to.close());
  expect(() => writePiece(from.fd, Uint8Array.of(1))).toThrow('EBADF');
  from.close();
  expect(() => writePiece(to.fd, Uint8Array.of(1))).toThrow('EPIPE');
});
