/** `ringside vsock` as users run it: a process in the guest's place, files through it, its ends and its sentences. */

import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostListener, HostPacketListener, HostStream } from '../support/frontend/vsock-host.ts';
import { projectDirectory } from '../support/peers.ts';

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');
const cleanup = cleanupAfterEach();

function ringside(...args: string[]): Child {
  const child = new Child(process.execPath, [MAIN, 'vsock', ...args]);
  cleanup.add(() => child.stop());
  return child;
}

describe('ringside vsock connect', () => {
  it('copies standard input to the host and what comes to standard output, until both have ended', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_52`);
    const child = ringside('connect', daemon.socket, '52');
    const host = await listener.accept();
    child.stdin.write('question');
    expect((await host.read(8)).toString()).toBe('question');
    child.stdin.end();
    await host.waitForEnd();
    await host.write('answer after the end');
    host.end();
    expect(await child.waitForClose(10_000)).toEqual({ code: 0, signal: null });
    expect(child.output()).toBe('answer after the end');
  });

  it('sends a file of 64 MiB with the checksum it has', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_52`);
    const file = join(daemon.directory, 'data');
    const data = randomBytes(64 * 1024 ** 2);
    writeFileSync(file, data);
    const input = openSync(file, 'r');
    const child = spawn(process.execPath, [MAIN, 'vsock', 'connect', daemon.socket, '52'], {
      stdio: [input, 'ignore', 'inherit'],
    });
    closeSync(input);
    cleanup.add(() => child.kill('SIGKILL'));
    const { socket } = await listener.accept();
    const hash = createHash('sha256');
    socket.on('data', (bytes) => hash.update(bytes));
    const exited = once(child, 'exit');
    socket.resume();
    await once(socket, 'end');
    socket.end();
    expect(hash.digest('hex')).toBe(createHash('sha256').update(data).digest('hex'));
    expect(await exited).toEqual([0, null]);
  }, 60_000);

  it('ends when the host ends the connection, though standard input goes on', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_52`);
    const child = ringside('connect', daemon.socket, '52');
    const host = await listener.accept();
    await host.write('bye');
    host.destroy();
    expect(await child.waitForClose(10_000)).toEqual({ code: 0, signal: null });
    expect(child.output()).toBe('bye');
  });

  it('says where nobody accepts, and ends with 1', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const child = ringside('connect', daemon.socket, '52');
    expect((await child.waitForClose(10_000)).code).toBe(1);
    expect(child.output()).toBe('ringside: nobody accepts connections at 2:52\n');
  });

  it('ends with 130 when interrupted', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_52`);
    const child = ringside('connect', daemon.socket, '52');
    const host = await listener.accept();
    child.kill('SIGINT');
    expect(await child.waitForClose(10_000)).toEqual({ code: 130, signal: null });
    await host.waitForEnd();
    expect(child.output()).toBe('');
  });

  it('sends what it reads as messages', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const listener = new HostPacketListener(cleanup, `${daemon.uds}_52`);
    const child = ringside('connect', daemon.socket, '52', '--seqpacket');
    const host = await listener.accept();
    child.stdin.write('first');
    expect((await host.receive()).toString()).toBe('first');
    host.send('second');
    await child.waitFor(/second/, 10_000);
    child.stdin.end();
    expect((await host.receive()).length).toBe(0);
    host.stream.close();
    expect((await child.waitForClose(10_000)).code).toBe(0);
  });
});

describe('ringside vsock listen', () => {
  it('takes one connection with --once, both ways', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const child = ringside('listen', daemon.socket, '80', '--once');
    await child.waitFor(/listening at port 80 of CID 3\n/, 10_000);
    const mark = child.mark();
    const host = await HostStream.dial(cleanup, daemon.uds, 80);
    expect(await host.readLine()).toMatch(/^OK \d+$/);
    child.stdin.end('from the guest');
    expect((await host.read(14)).toString()).toBe('from the guest');
    await host.write('from the host');
    await child.waitFor(/from the host/, 10_000, mark);
    host.end();
    expect((await child.waitForClose(10_000)).code).toBe(0);
  });

  it('takes one after the other without it, and goes on after one that was cut off', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const child = ringside('listen', daemon.socket, '80');
    await child.waitFor(/listening/, 10_000);
    for (const word of ['first', 'second']) {
      const host = await HostStream.dial(cleanup, daemon.uds, 80);
      await host.readLine();
      await host.write(word);
      await child.waitFor(new RegExp(word), 10_000);
      host.destroy();
    }
    child.kill('SIGTERM');
    expect(await child.waitForClose(10_000)).toEqual({ code: 143, signal: null });
  });

  it('sends back with --echo, to several at the same time', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const child = ringside('listen', daemon.socket, '80', '--echo');
    await child.waitFor(/listening/, 10_000);
    const hosts = await Promise.all(Array.from({ length: 5 }, () => HostStream.dial(cleanup, daemon.uds, 80)));
    for (const host of hosts) await host.readLine();
    for (const [i, host] of hosts.entries()) await host.write(`echo ${i}`);
    for (const [i, host] of hosts.entries()) {
      expect((await host.read(6)).toString()).toBe(`echo ${i}`);
      host.end();
      await host.waitForEnd();
    }
  });
});

describe('ringside vsock bench', () => {
  it.each(['tx', 'rx', 'rr', 'connect', 'accept'])(
    'measures %s with a peer of its own',
    async (load) => {
      const daemon = await VsockDaemon.start(cleanup);
      const options = ['--uds-path', daemon.uds, '--time', '200ms', '--ramp', '50ms', '--connections', '2', '--json'];
      const child = ringside('bench', daemon.socket, '--load', load, ...options);
      expect(await child.waitForClose(20_000)).toEqual({ code: 0, signal: null });
      const { bytesPerSecond, operationsPerSecond, seconds } = JSON.parse(child.output());
      expect(seconds).toBeGreaterThanOrEqual(0.2);
      expect(load === 'tx' || load === 'rx' ? bytesPerSecond : operationsPerSecond).toBeGreaterThan(0);
    },
    30_000,
  );

  it('leaves sockets that others listen at alone, and removes its own', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const listener = await HostListener.listen(cleanup, `${daemon.uds}_5001`);
    const child = ringside('bench', daemon.socket, '--uds-path', daemon.uds, '--time', '100ms');
    expect((await child.waitForClose(10_000)).code).toBe(1);
    expect(child.output()).toContain('the peer cannot listen');
    const sockets = () => readdirSync(daemon.directory).filter((name) => name.startsWith('v_'));
    expect(sockets()).toEqual(['v_5001']);
    listener.close();
    const again = ringside('bench', daemon.socket, '--uds-path', daemon.uds, '--time', '100ms', '--ramp', '10ms');
    expect((await again.waitForClose(10_000)).code).toBe(0);
    expect(sockets()).toEqual([]);
  });

  it('says that the peer is not there', async () => {
    const daemon = await VsockDaemon.start(cleanup);
    const child = ringside('bench', daemon.socket, '--time', '1s');
    expect((await child.waitForClose(10_000)).code).toBe(1);
    expect(child.output()).toBe('ringside: nobody accepts connections at 2:5000\n');
  });
});
