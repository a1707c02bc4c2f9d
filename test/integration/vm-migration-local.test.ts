/** A guest that goes to another VMM on the same host with its memory handed over, not sent. */

import { readFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { createSealedMemfd } from '../../protocol/sys/owned-fd.ts';
import { watchReadable } from '../../protocol/sys/readiness.ts';
import { UnixListener, UnixStream } from '../../protocol/sys/unix-socket.ts';
import { Channel } from '../../vmm-client/vmm/migration/channel.ts';
import { ACCEPT, CONFIG, GO, READY, STATE } from '../../vmm-client/vmm/migration/frames.ts';
import { encodePreamble, hearSource, welcome } from '../../vmm-client/vmm/migration/greeting.ts';
import { UnixLine } from '../../vmm-client/vmm/migration/line.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll, cleanupAfterEach } from '../support/cleanup.ts';
import { eventually, openFiles } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { MovingGuest } from '../support/vm/moving-guest.ts';
import { type VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const ROUNDS = 20;
const SILENCE_MS = 20_000;

/** Device and inode of each memfd that is mapped into a VMM as guest memory: fields 4 and 5 of proc_pid_maps(5). */
const memoryOf = (vmm: VmmProcess): string[] => {
  const lines = readFileSync(`/proc/${vmm.child.pid}/maps`, 'utf8').split('\n');
  const files = lines.filter((line) => line.includes('/memfd:ringside-ram'));
  return [...new Set(files.map((line) => line.split(' ').slice(3, 5).join(' ')))];
};

describeWithPeers(vmGuestPeers, 'A guest whose memory is handed over', () => {
  const cleanup = cleanupAfterEach();

  it('goes there and back 20 times and has the same memory, with back ends killed in between and on the way', async () => {
    const image = createImage(join(cleanup.directory(), 'disk'), 4 * MiB);
    const url = `unix:${join(cleanup.directory(), 'm')}`;
    const open = () => BlkBackend.start(cleanup, { image, extra: ['--incoming'] });
    const places = [await open(), await open()] as const;
    const guest = await MovingGuest.start(cleanup, {
      parameters: { disk: 1, every: 20 },
      cpus: 2,
      memoryMiB: 256,
      devices: { disks: [{ id: 'disk', vhost_socket: places[0].socket }] },
    });
    const memory = memoryOf(guest.source);
    expect(memory).toHaveLength(1);
    for (let round = 1; round <= ROUNDS; round += 1) {
      const [here, there] = [places[(round + 1) % 2], places[round % 2]];
      const moving = guest.migrate(url, [{ id: 'disk', socket: there?.socket ?? '' }], { local: true });
      if (round % 3 === 0) {
        await here?.kill9();
        await here?.restart();
      }
      expect(await moving).toMatchObject({ phase: 'completed', round: 0, bytes_done: 0 });
      expect(memoryOf(guest.source)).toEqual(memory);
      await guest.works();
      await eventually(
        'memory of the VMM that the guest has left',
        () => memoryOf(guest.destination).length,
        (count) => count === 0,
      );
    }
    await guest.source.put('vm.reboot');
    guest.goesBack(false);
    await guest.works(2);
  }, 120_000);

  it('is paused all the while where it was paused', async () => {
    const guest = await MovingGuest.start(cleanup);
    await guest.source.put('vm.pause');
    await guest.migrate(`unix:${join(cleanup.directory(), 'm')}`, [], { local: true });
    expect(await guest.source.state()).toBe('Paused');
    await guest.source.put('vm.resume');
    await guest.works();
  });
});

describeWithPeers(vmGuestPeers, 'Memory that is not handed over', () => {
  const cleanup = cleanupAfterAll();
  let guest: MovingGuest;
  let path: string;

  beforeAll(async () => {
    path = join(cleanup.directory(), 'm');
    const image = createImage(join(cleanup.directory(), 'disk'), 4 * MiB);
    guest = await MovingGuest.start(cleanup, {
      parameters: { disk: 1, every: 20 },
      devices: { disks: [{ id: 'disk', path: image }] },
    });
  });

  const stays = async (): Promise<void> => {
    expect(await guest.source.state()).toBe('Running');
    await guest.works();
  };

  /** A destination that this test is, up to a frame of the source's. */
  const stopAt = async (last: 'CONFIG' | 'STATE' | 'GO', act: (channel: Channel) => void) => {
    const listener = UnixListener.listen(path);
    cleanup.add(() => listener.close());
    const sent = guest.send(`unix:${path}`, { local: true });
    const stream = await new Promise<UnixStream>((resolve) => {
      const watch = watchReadable(listener.fd, () => {
        const accepted = listener.accept();
        if (accepted === undefined) return;
        watch.close();
        resolve(accepted);
      });
    });
    listener.close();
    const line = new UnixLine(stream);
    const memory = await hearSource(line);
    expect(memory).toHaveLength(1);
    for (const each of memory) each.close();
    welcome(line);
    const channel = new Channel(line.toSocket(), SILENCE_MS);
    await channel.receive([CONFIG]);
    if (last !== 'CONFIG') {
      await channel.send(ACCEPT);
      await channel.receive([STATE]);
    }
    if (last === 'GO') {
      await channel.send(READY);
      await channel.receive([GO]);
    }
    act(channel);
    const answer = await sent;
    channel.close();
    return answer;
  };

  it('stays with the guest where the destination gives up or is gone before GO', async () => {
    for (const last of ['CONFIG', 'STATE'] as const) {
      expect(await stopAt(last, (channel) => channel.refuse('not today'))).toMatchObject({
        status: 500,
        body: [expect.stringContaining('the peer gave up: not today')],
      });
      await stays();
      expect((await stopAt(last, (channel) => channel.fail(new Error('the end')))).status).toBe(500);
      await stays();
    }
  });

  it('leaves the guest paused where the destination gives up or is gone after GO, as its devices may have begun', async () => {
    for (const act of [
      (channel: Channel) => channel.refuse('not today'),
      (channel: Channel) => channel.fail(new Error('the end')),
    ]) {
      const { status, body } = await stopAt('GO', act);
      expect(status).toBe(500);
      expect(JSON.stringify(body)).toMatch(/the guest is paused here/);
      expect(await guest.source.state()).toBe('Paused');
      await guest.source.put('vm.reboot');
      guest.goesBack(false);
      await guest.works();
    }
  });

  it('cannot be asked for over TCP, or where memory is in files', async () => {
    expect(await guest.send('tcp:127.0.0.1:17329', { local: true })).toMatchObject({
      status: 400,
      body: [expect.stringMatching(/^vm.send-migration: local: memory is handed over by unix:PATH alone/)],
    });
    await stays();
    const inFiles = await MovingGuest.start(cleanup, { memory: { file: cleanup.directory() } });
    const refused = await inFiles.send(`unix:${path}`, { local: true });
    expect(refused).toMatchObject({ status: 400, body: [expect.stringMatching(/local: memory.file is /)] });
    await inFiles.works();
  });

  it('ends the waiting for a guest whose memory is none, and leaves nothing', async () => {
    const { pid } = guest.destination.child;
    // Connections of its API come and go.
    const fds = (): number => openFiles(pid).filter((file) => !file.startsWith('socket:')).length;
    const before = fds();
    const { answer } = await guest.receive(`unix:${path}`);
    const memfd = createSealedMemfd('none', 4096);
    cleanup.add(() => memfd.close());
    const stream = UnixStream.connect(path);
    const line = new UnixLine(stream);
    line.send(encodePreamble(2), [memfd.fd, memfd.fd]);
    await line.receive(16);
    const channel = new Channel(line.toSocket(), SILENCE_MS);
    await channel.send(CONFIG, Buffer.from('{"config":{},"layout":{},"isRunning":true}'));
    await expect(channel.receive([ACCEPT])).rejects.toThrow(/the peer gave up/);
    expect((await answer).status).toBe(400);
    await eventually('descriptors', fds, (now) => now <= before);
  });

  it('comes after whoever else connects first', async () => {
    const { answer } = await guest.receive(`unix:${path}`);
    const ended = (bytes: string): Promise<void> =>
      new Promise((resolve) => {
        const socket = createConnection(path, () => socket.write(bytes));
        socket.on('error', () => undefined);
        socket.once('close', () => resolve());
      });
    await ended('GET / HTTP/1.1\r\n\r\n');
    // With descriptors that it does not speak of.
    const memfd = createSealedMemfd('none', 4096);
    const stream = UnixStream.connect(path);
    stream.send(encodePreamble(0), [memfd.fd]);
    memfd.close();
    // Nine that say nothing: the first has to make way for the last.
    const silent = Array.from({ length: 9 }, () => ended(''));
    await Promise.race(silent);
    expect(await guest.send(`unix:${path}`, { local: true })).toMatchObject({ status: 204 });
    expect((await answer).status).toBe(204);
    await Promise.all(silent);
    stream.close();
    expect(guest.destination.log()).toMatch(
      /a connection to .* was closed: the peer sends something that is no migration/,
    );
    guest.arrived();
    await guest.works();
  });
});
