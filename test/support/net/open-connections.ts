/**
 * TCP connections that stay open while something happens to the guest: one from the host and one to it that carry
 * data all the time, and one whose data waits in the guest, where nobody reads it. Both ends take checksums.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import type { Guest } from '../guest/guest.ts';
import { randomImage, sha256OfFile } from '../image.ts';
import { type PeerName, peerPath } from '../peers.ts';
import type { NetworkNamespace } from './namespace.ts';
import { HOST_ADDRESS } from './traffic.ts';

/** Programs of the host. In the guest it is bash, which opens the connections. */
export const openConnectionPeers: readonly PeerName[] = ['socat', 'bash'];

const WAITING_PORT = 9001;
const DOWN_PORT = 9002;
const UP_PORT = 9003;
/** What waits in the guest, in memory that the device has written. */
const WAITING_BYTES = 1 << 20;

/** Sums of what was sent and what came, of each connection. */
export interface ConnectionSums {
  readonly down: readonly [sent: string, received: string];
  readonly up: readonly [sent: string, received: string];
  readonly waiting: readonly [sent: string, received: string];
}

export class OpenConnections {
  readonly #host: NetworkNamespace;
  readonly #directory: string;
  readonly #upload: Child;

  private constructor(host: NetworkNamespace, directory: string, upload: Child) {
    this.#host = host;
    this.#directory = directory;
    this.#upload = upload;
  }

  /** Opens the two that carry data, and waits until they do. */
  static async start(cleanup: Cleanup, host: NetworkNamespace, guest: Guest): Promise<OpenConnections> {
    const directory = cleanup.directory();
    const socat = peerPath('socat');
    randomImage(join(directory, 'waiting'), WAITING_BYTES);
    const download = `while [ ! -e ${directory}/stop ]; do head -c 131072 /dev/urandom; sleep 0.02; done`;
    writeFileSync(join(directory, 'down'), `${download} | tee >(sha256sum >${directory}/sent)`);
    const serve = (script: string): Child => host.spawn('bash', ['-c', script]);
    serve(`${socat} -u OPEN:${directory}/waiting TCP-LISTEN:${WAITING_PORT},reuseaddr`);
    serve(`${socat} -u EXEC:'bash ${directory}/down' TCP-LISTEN:${DOWN_PORT},reuseaddr`);
    const upload = serve(`${socat} -u TCP-LISTEN:${UP_PORT},reuseaddr - | sha256sum`);
    const ports = [WAITING_PORT, DOWN_PORT, UP_PORT].map((port) => port.toString(16).toUpperCase());
    // 0A is TCP_LISTEN (linux/net/tcp_states.h); asked for without a connection, which would be served.
    await host.run(
      `for port in ${ports.join(' ')}; do until grep -q ":$port 0*:0000 0A" /proc/net/tcp; do sleep 0.02; done; done`,
      10_000,
    );
    // Room for data that nobody reads.
    await guest.run(`echo '4096 4194304 6291456' >/proc/sys/net/ipv4/tcp_rmem
      mkfifo /tmp/fifo
      ${inGuest('down', DOWN_PORT, 'sha256sum <&3 >/tmp/received')}
      ${inGuest(
        'up',
        UP_PORT,
        `sha256sum </tmp/fifo >/tmp/sent &
        while [ ! -e /tmp/stop ]; do head -c 65536 /dev/urandom; usleep 20000; done | tee /tmp/fifo >&3
        exec 3>&-
        wait`,
      )}`);
    await guest.waitUntil(`[ "$(grep -c ' 01 ' /proc/net/tcp)" -ge 2 ]`);
    return new OpenConnections(host, directory, upload);
  }

  /** Opens the third, and resolves when all of its data waits in the guest. */
  async fill(guest: Guest): Promise<void> {
    const read = `while [ ! -e /tmp/read ]; do usleep 50000; done; sha256sum <&3 >/tmp/waited`;
    await guest.run(inGuest('waiting', WAITING_PORT, read), 90_000);
    // Fields: number, local address, remote address, state, tx_queue:rx_queue. One byte more for the end of the stream.
    const queue = `awk '$3 ~ /:${WAITING_PORT.toString(16)}$/ { split($5, queue, ":"); print queue[2] }' /proc/net/tcp`;
    const lengths = [WAITING_BYTES, WAITING_BYTES + 1].map((length) => length.toString(16).padStart(8, '0'));
    await guest.waitUntil(`case $(${queue}) in ${lengths.join('|')}) true ;; *) false ;; esac`);
  }

  /** Reads what waits, ends the others and returns the sums. */
  async finish(guest: Guest): Promise<ConnectionSums> {
    await this.#host.run(`touch ${this.#directory}/stop`);
    await guest.run('touch /tmp/read /tmp/stop');
    await guest.waitUntil('[ -s /tmp/received ] && [ -s /tmp/sent ] && [ -s /tmp/waited ]', 30_000);
    const [received = '', sent = '', waited = ''] = (
      await guest.run('cut -c1-64 /tmp/received /tmp/sent /tmp/waited')
    ).split('\n');
    await this.#upload.waitForClose(10_000);
    return {
      down: [readFileSync(join(this.#directory, 'sent'), 'utf8').slice(0, 64), received],
      up: [sent, this.#upload.output().slice(0, 64)],
      waiting: [sha256OfFile(join(this.#directory, 'waiting')), waited],
    };
  }
}

/** Starts a script with a connection to a port of the host as its descriptor 3. */
const inGuest = (name: string, port: number, script: string): string => `cat >/tmp/${name} <<'@@'
${script}
@@
/usr/bin/bash -c 'exec 3<>/dev/tcp/${HOST_ADDRESS}/${port}; exec /bin/busybox sh /tmp/${name}' >/tmp/${name}.log 2>&1 &`;
