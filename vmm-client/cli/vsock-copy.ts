/** Bytes between a connection of the guest and streams of this process, both ways, with ends handed on. */

import type { Readable, Writable } from 'node:stream';
import type { VsockType } from '../driver/vsock-driver.ts';
import { VsockError } from '../driver/vsock-error.ts';
import type { VsockSocket } from '../driver/vsock-socket.ts';

const READ_BYTES = 64 * 1024;

/**
 * Everything that the socket has goes to `output` until the other side has sent all. With SEQPACKET messages follow each
 * other without a mark.
 */
export async function copyFrom(socket: VsockSocket, type: VsockType, output: Writable): Promise<void> {
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  for (;;) {
    let bytes: Uint8Array | undefined;
    if (type === 'seqpacket') {
      bytes = (await socket.readMessage())?.bytes;
    } else {
      const length = await socket.read(buffer);
      bytes = length === 0 ? undefined : buffer.subarray(0, length);
    }
    if (bytes === undefined) return;
    await writeTo(output, bytes);
  }
}

function writeTo(output: Writable, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    output.write(bytes, (error) => (error ? reject(error) : resolve()));
  });
}

/**
 * Everything that `input` has goes to the socket, then the other side is told that there is no more. With SEQPACKET each
 * piece that is read is a message. Ends early when the other side takes no more.
 */
export async function copyTo(socket: VsockSocket, type: VsockType, input: Readable): Promise<void> {
  try {
    for await (const piece of input) {
      if (type === 'seqpacket') await socket.writeMessage(piece as Buffer);
      else await socket.write(piece as Buffer);
    }
    await socket.shutdown();
  } catch (error) {
    // That nothing can be sent is an error of the connection only if it says so itself.
    if (!(error instanceof VsockError && error.code === 'EPIPE')) throw error;
  }
}

/**
 * Copies both ways until both sides have sent all, or the connection has ended, and closes it. What `interrupted` says is
 * thrown.
 */
export async function copyBothWays(
  socket: VsockSocket,
  type: VsockType,
  streams: { readonly stdin: Readable; readonly stdout: Writable; readonly interrupted: AbortSignal },
): Promise<void> {
  const { stdin, stdout, interrupted } = streams;
  const onInterrupt = () => socket.reset();
  interrupted.addEventListener('abort', onInterrupt);
  try {
    interrupted.throwIfAborted();
    const sending = copyTo(socket, type, stdin).catch((error) => {
      // The input was destroyed below.
      if (error.code !== 'ERR_STREAM_PREMATURE_CLOSE') throw error;
    });
    // A failure is told once both ways are at an end.
    sending.catch(() => socket.reset());
    try {
      await copyFrom(socket, type, stdout);
      // The other side may go on to receive.
      await Promise.race([sending, socket.ended()]);
    } finally {
      stdin.destroy();
    }
    if (socket.connection.state !== 'closed') await socket.close();
    interrupted.throwIfAborted();
    await sending;
  } catch (error) {
    interrupted.throwIfAborted();
    throw error;
  } finally {
    interrupted.removeEventListener('abort', onInterrupt);
    socket.reset();
  }
}

/** Sends back what comes, until the other side has sent all, and closes the connection. */
export async function echo(socket: VsockSocket, type: VsockType): Promise<void> {
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  try {
    for (;;) {
      if (type === 'seqpacket') {
        const message = await socket.readMessage();
        if (message === undefined) break;
        await socket.writeMessage(message.bytes, message.endOfRecord);
      } else {
        const length = await socket.read(buffer);
        if (length === 0) break;
        await socket.write(buffer.subarray(0, length));
      }
    }
    await socket.close();
  } finally {
    socket.reset();
  }
}
