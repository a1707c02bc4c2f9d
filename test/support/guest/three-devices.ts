/**
 * A guest of QEMU with a disk, a network interface and a socket device, and what is to work with each of them: one
 * boot for what concerns all devices alike, such as the layout of rings and the addresses in them.
 */

import { join } from 'node:path';
import { expect } from 'vitest';
import { BlkBackend } from '../backend-process.ts';
import type { Cleanup } from '../cleanup.ts';
import { VsockDaemon } from '../frontend/vsock-daemon.ts';
import { createImage } from '../image.ts';
import { NetBackend } from '../net/backend.ts';
import { NetworkNamespace } from '../net/namespace.ts';
import {
  bringUp,
  FileServer,
  GUEST_ADDRESS,
  HOST_ADDRESS,
  iperf,
  ping,
  startIperfServer,
  trafficPeers,
  trafficPrograms,
} from '../net/traffic.ts';
import type { PeerName } from '../peers.ts';
import { HostPrograms, socketPeers, socketPrograms, startInGuest, vsockPeerProgram } from '../vsock/traffic.ts';
import {
  fileSystemPeers,
  fileSystemPrograms,
  randomFileInImage,
  readRandomFile,
  writeRandomFile,
} from './file-system.ts';
import { loadPrograms } from './load.ts';
import { bootQemu, type QemuGuest, type QemuOptions, type QemuVersion, qemuPeersOf } from './qemu.ts';

const MiB = 1 << 20;
const SOCKET_PORT = 5000;
const GUEST_PORT = 5001;

export const threeDevicesPeers = (version: QemuVersion): readonly PeerName[] => [
  ...qemuPeersOf(version),
  ...fileSystemPeers,
  ...loadPrograms,
  ...trafficPeers,
  ...socketPeers,
];

export class ThreeDevices {
  readonly disk: BlkBackend;
  readonly net: NetBackend;
  readonly vsock: VsockDaemon;
  readonly #host: NetworkNamespace;
  readonly #sockets: HostPrograms;
  readonly #files: FileServer;
  #guest: QemuGuest | undefined;

  private constructor(
    disk: BlkBackend,
    net: NetBackend,
    vsock: VsockDaemon,
    host: NetworkNamespace,
    sockets: HostPrograms,
    files: FileServer,
  ) {
    this.disk = disk;
    this.net = net;
    this.vsock = vsock;
    this.#host = host;
    this.#sockets = sockets;
    this.#files = files;
  }

  /** Starts the daemons, with more arguments if need be, and what the host has to serve. */
  static async start(cleanup: Cleanup, extra: readonly string[] = []): Promise<ThreeDevices> {
    const host = await NetworkNamespace.create(cleanup);
    const image = createImage(join(cleanup.directory(), 'disk'), 96 * MiB);
    const [disk, net, vsock] = await Promise.all([
      BlkBackend.start(cleanup, { image, numQueues: 2, extra }),
      NetBackend.start(cleanup, { namespace: host, queuePairs: 2, extra: [`--ip=${HOST_ADDRESS}/24`, ...extra] }),
      VsockDaemon.start(cleanup, { cid: 7, extra }),
    ]);
    const sockets = new HostPrograms(cleanup, vsock.uds);
    await sockets.echo(SOCKET_PORT, 'stream');
    const files = await FileServer.start(cleanup, host, 24 * MiB);
    await startIperfServer(host);
    return new ThreeDevices(disk, net, vsock, host, sockets, files);
  }

  async boot(cleanup: Cleanup, options: Partial<QemuOptions>): Promise<QemuGuest> {
    this.#guest = await bootQemu(cleanup, {
      machine: 'q35',
      cpus: 2,
      memoryMiB: 512,
      sockets: [this.disk.socket],
      diskProperties: 'num-queues=2',
      interfaces: [{ socket: this.net.socket, queuePairs: 2 }],
      vsockSocket: this.vsock.socket,
      programs: [...fileSystemPrograms, ...loadPrograms, ...trafficPrograms, ...socketPrograms],
      staticPrograms: [vsockPeerProgram()],
      ...options,
    });
    return this.#guest;
  }

  get guest(): QemuGuest {
    if (this.#guest === undefined) throw new Error('the guest is not booted');
    return this.#guest;
  }

  /** A file system and a file of random data on the disk. */
  async useDisk(): Promise<void> {
    const sum = await writeRandomFile(this.guest, '/dev/vda', 24);
    expect(await readRandomFile(this.guest, '/dev/vda')).toBe(sum);
    expect(randomFileInImage(this.disk.image)).toBe(sum);
  }

  /** Pings, streams and a file each way, once in a boot. */
  async useNet(): Promise<void> {
    await bringUp(this.guest);
    await ping(this.guest, HOST_ADDRESS, 1500);
    await ping(this.#host, GUEST_ADDRESS, 1500);
    await iperf(this.guest, HOST_ADDRESS, '--bidir');
    expect(await this.#files.sendTo(this.guest)).toBe(this.#files.sha256);
    expect(await this.#files.receiveFrom(this.guest)).toBe(this.#files.sha256);
  }

  /** Connections from the guest and to it, once in a boot. */
  async useVsock(): Promise<void> {
    const done = 'exchanged 20000 bytes on 50 connections';
    expect(await this.guest.run(`/usr/bin/vsock-peer exchange vsock:2:${SOCKET_PORT} 50 20000`)).toBe(done);
    await startInGuest(this.guest, `/usr/bin/vsock-peer echo stream vsock:4294967295:${GUEST_PORT}`);
    expect(await this.#sockets.run(`$PEER exchange hybrid:${GUEST_PORT}:$U 50 20000`)).toBe(done);
  }
}
