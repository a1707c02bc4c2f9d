import { closeSync, readSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createSealedMemfd, makeNonBlocking, OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { FrontendConnection } from '../../../../vmm-client/frontend/connection.ts';
import { loadDeviceState, saveDeviceState } from '../../../../vmm-client/frontend/device-state.ts';
import { FrontendBench } from './frontend-bench.ts';
import { type Script, u64 } from './scripted-backend.ts';

const bench = new FrontendBench();
const NO_FD = 0x100n;

const connect = (script: Partial<Script>) => {
  const backend = bench.listen(script);
  const connection = new FrontendConnection(UnixStream.connect(bench.socket()), 5000, () => undefined);
  return { backend, connection: bench.keep(connection) };
};

/** A back end that answers SET_DEVICE_STATE_FD as told, and CHECK_DEVICE_STATE with `check`. */
const scripted = (onChannel: (fds: OwnedFd[]) => ReturnType<Script['answer']>, check = 0n): Partial<Script> => ({
  answer: (name, _, fds) => {
    if (name === 'CHECK_DEVICE_STATE') return { payload: u64(check) };
    return name === 'SET_DEVICE_STATE_FD' ? onChannel(fds) : undefined;
  },
});

/** Writes to a channel and closes it. */
const fill = (fd: number, bytes: Uint8Array): void => {
  writeSync(fd, bytes);
  closeSync(fd);
};

const SAVE = 'SET_DEVICE_STATE_FD 1 0000000000000000';
const LOAD = 'SET_DEVICE_STATE_FD 1 0100000000000000';
const CHECK = 'CHECK_DEVICE_STATE 1';

describe('saving device state', () => {
  it('reads our channel to its end, then asks whether it was all', async () => {
    const { backend, connection } = connect(
      scripted(([fd]) => {
        fill(fd?.take() ?? -1, Buffer.from('the state'));
        return { payload: u64(NO_FD) };
      }),
    );
    expect(Buffer.from(await saveDeviceState(connection, 5000)).toString()).toBe('the state');
    expect(backend.wire).toEqual([SAVE, CHECK]);
    expect(backend.log).toEqual(['SET_DEVICE_STATE_FD+1', 'CHECK_DEVICE_STATE']);
  });

  it('takes an empty state', async () => {
    const { connection } = connect(scripted(() => ({ payload: u64(NO_FD) })));
    expect((await saveDeviceState(connection, 5000)).length).toBe(0);
  });

  it('reads a channel of the back end instead, a file too', async () => {
    const { connection } = connect(
      scripted(() => {
        const file = createSealedMemfd('state', 200_000);
        writeSync(file.fd, Uint8Array.of(1, 2, 3), 0, 3, 0);
        return { payload: u64(0n), fds: [file] };
      }),
    );
    const state = await saveDeviceState(connection, 5000);
    expect([state.length, ...state.subarray(0, 4)]).toEqual([200_000, 1, 2, 3, 0]);
  });

  it('has a deadline', async () => {
    const kept: OwnedFd[] = [];
    const { connection } = connect(
      scripted((fds) => {
        kept.push(...fds.map((fd) => bench.keep(new OwnedFd(fd.take()))));
        return { payload: u64(NO_FD) };
      }),
    );
    await expect(saveDeviceState(connection, 50)).rejects.toThrow('was not transferred within 50 ms');
    expect(kept.length).toBe(1);
  });

  it.each([
    ['an error code', { payload: u64(NO_FD | 5n) }, 'refused by the back end (code 5)'],
    ['an error code beside a descriptor', { payload: u64(5n), fds: [] }, 'refused by the back end (code 5)'],
    ['no descriptor where it speaks of one', { payload: u64(0n) }, 'answered without its descriptor'],
  ])('fails at %s', async (_, reply, message) => {
    const { connection } = connect(scripted(() => reply));
    await expect(saveDeviceState(connection, 5000)).rejects.toThrow(message);
  });

  it('closes a descriptor that comes with an error', async () => {
    const { connection } = connect(scripted(() => ({ payload: u64(1n), fds: [createSealedMemfd('state', 4096)] })));
    await expect(saveDeviceState(connection, 5000)).rejects.toThrow('(code 1)');
  });

  it('fails where the back end says that it failed', async () => {
    const { connection } = connect(scripted(() => ({ payload: u64(NO_FD) }), 7n));
    await expect(saveDeviceState(connection, 5000)).rejects.toThrow('failed to save the device state (code 7)');
  });
});

describe('loading device state', () => {
  /** More than a socket holds: it has to be read while it is written. */
  const STATE = Uint8Array.from({ length: 1_000_000 }, (_, i) => (i * 7) ^ (i >> 8));

  /** Reads a channel piece by piece until its end. The one who writes is in this process: nothing may block. */
  const drain = async (fd: number): Promise<Uint8Array> => {
    makeNonBlocking(fd);
    const chunks: Buffer[] = [];
    for (const deadline = performance.now() + 5000; performance.now() < deadline; ) {
      const chunk = Buffer.alloc(65536);
      const got = readSome(fd, chunk);
      if (got === 0) return Buffer.concat(chunks);
      if (got > 0) chunks.push(chunk.subarray(0, got));
      await new Promise(setImmediate);
    }
    throw new Error('the state has no end');
  };

  const readSome = (fd: number, chunk: Buffer): number => {
    try {
      return readSync(fd, chunk);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return -1;
      throw error;
    }
  };

  it('writes all of it and closes the channel', async () => {
    let received: Promise<Uint8Array> | undefined;
    const { backend, connection } = connect(
      scripted(([fd]) => {
        const channel = bench.keep(new OwnedFd(fd?.take() ?? -1));
        received = drain(channel.fd);
        return { payload: u64(NO_FD) };
      }),
    );
    await loadDeviceState(connection, STATE, 5000);
    expect(Buffer.compare((await received) ?? new Uint8Array(), STATE)).toBe(0);
    expect(backend.wire).toEqual([LOAD, CHECK]);
  });

  it('writes to a channel of the back end instead', async () => {
    let file: OwnedFd | undefined;
    const { connection } = connect(
      scripted(() => {
        const memfd = createSealedMemfd('state', STATE.length);
        file = bench.keep(memfd.duplicate());
        return { payload: u64(0n), fds: [memfd] };
      }),
    );
    await loadDeviceState(connection, STATE, 5000);
    const written = Buffer.alloc(STATE.length);
    readSync(file?.fd ?? -1, written, 0, written.length, 0);
    expect(Buffer.compare(written, STATE)).toBe(0);
  });

  it('has a deadline', async () => {
    const { connection } = connect(
      scripted(([fd]) => {
        bench.keep(new OwnedFd(fd?.take() ?? -1));
        return { payload: u64(NO_FD) };
      }),
    );
    await expect(loadDeviceState(connection, STATE, 50)).rejects.toThrow('was not transferred within 50 ms');
  });

  it('fails where the back end stops reading', async () => {
    const { connection } = connect(scripted(() => ({ payload: u64(NO_FD) })));
    await expect(loadDeviceState(connection, STATE, 5000)).rejects.toThrow('took only a part of the device state');
  });

  it('fails where the back end does not understand it', async () => {
    const { connection } = connect(
      scripted(([fd]) => {
        bench.keep(new OwnedFd(fd?.take() ?? -1));
        return { payload: u64(NO_FD) };
      }, 3n),
    );
    await expect(loadDeviceState(connection, STATE.subarray(0, 8), 5000)).rejects.toThrow('failed to load');
  });
});
