/**
 * What interop tests of sockets share: socat on either side, files with checksums, many connections, messages. What is
 * looked at is that data arrives, and arrives whole; speed is never looked at.
 */

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { listensAt } from '../backend-process.ts';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { HostStream } from '../frontend/vsock-host.ts';
import type { Guest } from '../guest/guest.ts';
import { cacheDirectory, type PeerName, peerPath } from '../peers.ts';

const SOURCE = fileURLToPath(new URL('vsock-peer.c', import.meta.url));

/** Bytes of the longest message: the daemon's --buffer-size, and what Linux gives a socket of the guest. */
export const MESSAGE_LIMIT = 262_144;

/** Programs that the guest needs, and the host. */
export const socketPrograms: readonly PeerName[] = ['socat'];
export const socketPeers: readonly PeerName[] = [...socketPrograms, 'gcc'];

/** The compiled vsock-peer.c. */
export const vsockPeerProgram = (): string => {
  const directory = join(cacheDirectory, 'vsock');
  const path = join(directory, 'vsock-peer');
  if (existsSync(path) && statSync(path).mtimeMs > statSync(SOURCE).mtimeMs) return path;
  mkdirSync(directory, { recursive: true });
  const own = `${path}.${process.pid}`;
  execFileSync(peerPath('gcc'), ['-std=gnu11', '-O2', '-Wall', '-Werror', '-static', '-o', own, SOURCE], {
    stdio: 'pipe',
  });
  renameSync(own, path);
  return path;
};

/** Programs of the host for the sockets of one guest. */
export class HostPrograms {
  readonly #cleanup: Cleanup;
  readonly #uds: string;

  constructor(cleanup: Cleanup, uds: string) {
    this.#cleanup = cleanup;
    this.#uds = uds;
  }

  /** Path of the socket that stands for a port of the host. */
  port(port: number): string {
    return `${this.#uds}_${port}`;
  }

  /** Runs a shell script in which $SOCAT is socat, $PEER vsock-peer.c and $U the path of the host's sockets. */
  spawn(script: string): Child {
    const programs = { SOCAT: peerPath('socat'), PEER: vsockPeerProgram(), U: this.#uds };
    const child = new Child('/bin/sh', ['-c', script], { ...process.env, ...programs });
    this.#cleanup.add(() => child.stop());
    return child;
  }

  /** The same to its end. Returns what it printed. @throws Error - when its status is not 0, or after the deadline */
  async run(script: string, deadlineMs = 30_000): Promise<string> {
    const child = this.spawn(script);
    child.stdin.end();
    const exit = await child.waitForClose(deadlineMs);
    if (exit.code !== 0) throw new Error(`on the host, ${JSON.stringify(exit)} of\n${script}\n${child.tail()}`);
    return child.output().trim();
  }

  /** A script that listens at a port of the host by socat, and does. */
  async listen(port: number, script: string): Promise<Child> {
    const child = this.spawn(script);
    const end = performance.now() + 10_000;
    while (!listensAt(this.port(port))) {
      if (!child.running) throw new Error(`it ended before it listened:\n${child.tail()}`);
      if (performance.now() > end) throw new Error(`it does not listen:\n${child.tail()}`);
      await delay(5);
    }
    return child;
  }

  /** Sends back what comes to a port, on any number of connections. */
  echo(port: number, type: 'stream' | 'seqpacket'): Promise<Child> {
    return this.listen(port, `$PEER echo ${type} unix:${this.port(port)}`);
  }

  /** Connects to a port of the guest and waits until it is. */
  async connect(port: number): Promise<HostStream> {
    const stream = await HostStream.dial(this.#cleanup, this.#uds, port);
    const answer = await stream.readLine();
    if (!/^OK \d+$/.test(answer)) throw new Error(`"${answer}" is the answer to CONNECT ${port}`);
    return stream;
  }
}

/** A server of the guest that reads a line or all there is, and answers: socat has no shell there to run. */
export const answerInGuest = async (guest: Guest, port: number, script: string): Promise<void> => {
  await guest.run(`cat >/tmp/answer-${port} <<'@@'
${script}
@@`);
  await startInGuest(
    guest,
    `/usr/bin/socat -t 20 -d -d VSOCK-LISTEN:${port} EXEC:"/bin/busybox sh /tmp/answer-${port}"`,
  );
};

/** Starts a server in the guest and waits until it says that it listens. */
export const startInGuest = async (guest: Guest, command: string): Promise<void> => {
  const log = `/tmp/log-${command.replace(/\W+/g, '-')}`;
  await guest.run(`rm -f ${log}; (${command}) >${log} 2>&1 &`);
  await guest.waitUntil(`grep -q listening ${log}`);
};

const sumIn = (text: string): string => {
  const sum = /[0-9a-f]{64}/.exec(text)?.[0];
  if (sum === undefined) throw new Error(`no checksum in ${text}`);
  return sum;
};

/** Sums of what was sent and what came. */
export interface Sums {
  readonly sent: string;
  readonly received: string;
}

/** Random bytes from the guest to a port of the host, which need room in the guest's /tmp. */
export const sendFromGuest = async (guest: Guest, host: HostPrograms, port: number, mib: number): Promise<Sums> => {
  const listener = await host.listen(port, `$SOCAT -u -b 65536 UNIX-LISTEN:$U'_${port}' - | sha256sum`);
  const deadlineMs = 20_000 + mib * 1_000;
  const sent = await guest.run(
    `dd if=/dev/urandom of=/tmp/random bs=1M count=${mib} 2>/dev/null
    sha256sum /tmp/random
    /usr/bin/socat -u -b 65536 OPEN:/tmp/random VSOCK-CONNECT:2:${port}
    rm /tmp/random`,
    deadlineMs,
  );
  await listener.waitForClose(deadlineMs);
  return { sent: sumIn(sent), received: sumIn(listener.output()) };
};

/** Random bytes from the host to a port of the guest. */
export const sendToGuest = async (guest: Guest, host: HostPrograms, port: number, mib: number): Promise<Sums> => {
  await startInGuest(guest, `/usr/bin/socat -d -d -u -b 65536 VSOCK-LISTEN:${port} - | sha256sum >/tmp/sum-${port}`);
  const deadlineMs = 20_000 + mib * 1_000;
  const fifo = `$U-tee-${port}`;
  const sent = await host.run(
    `mkfifo ${fifo}
    (dd if=/dev/urandom bs=1M count=${mib} 2>/dev/null | tee ${fifo}) |
      (echo CONNECT ${port}; cat) | $SOCAT -u -b 65536 - UNIX-CONNECT:$U &
    sha256sum <${fifo}
    wait`,
    deadlineMs,
  );
  await guest.waitUntil(`[ -s /tmp/sum-${port} ]`, deadlineMs);
  return { sent: sumIn(sent), received: sumIn(await guest.run(`cat /tmp/sum-${port}`)) };
};
