/**
 * A network namespace of a test: the host's side of its TAP interfaces, bridges and addresses, apart from the
 * machine's own. It has no name. A process holds it, and the kernel takes it down, with every interface in it, when
 * that process and those that were started in it have ended; nothing is left for anybody to remove.
 */

import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import type { PeerName } from '../peers.ts';

/** What a test needs for NetworkNamespace. */
export const namespacePeers: readonly PeerName[] = ['TAP interfaces', 'ip'];

/** Where scripts run: a guest, or the host's side of its network. */
export interface Shell {
  /** Runs a shell script, which stops at the first command that fails, and returns what it printed. */
  run(script: string, deadlineMs?: number): Promise<string>;
}

/** What the kernel has counted on an interface, seen from the host: what the host receives, the guest has sent. */
export interface InterfaceCounters {
  readonly rxPackets: number;
  readonly rxDropped: number;
  readonly txPackets: number;
  readonly txDropped: number;
}

/** sysfs shows the interfaces of the namespace it was mounted in: hence a mount namespace too. cat ends with this process. */
const HOLD = `
mount -t sysfs sysfs /sys
for which in all default; do echo 0 >/proc/sys/net/ipv6/conf/$which/accept_dad; done
ip link set lo up
echo @@up@@
exec cat
`;

export class NetworkNamespace implements Shell {
  readonly #cleanup: Cleanup;
  readonly #holder: Child;

  private constructor(cleanup: Cleanup) {
    this.#cleanup = cleanup;
    this.#holder = new Child('unshare', ['--net', '--mount', 'sh', '-e', '-c', HOLD], environment);
    cleanup.add(() => this.#holder.stop());
  }

  /** Makes a namespace with nothing but the loopback interface. `cleanup` ends it. */
  static async create(cleanup: Cleanup): Promise<NetworkNamespace> {
    const namespace = new NetworkNamespace(cleanup);
    await namespace.#holder.waitFor(/@@up@@/, 10_000);
    return namespace;
  }

  /** The command line that runs a program in the namespace, as the process that is started by it and no child. */
  command(program: string, args: readonly string[]): [string, ...string[]] {
    return ['nsenter', `--target=${this.#holder.pid}`, '--net', '--mount', '--', program, ...args];
  }

  /** Starts a program in the namespace. The test's cleanup kills it at the latest. */
  spawn(program: string, args: readonly string[]): Child {
    const [command, ...rest] = this.command(program, args);
    const child = new Child(command, rest, environment);
    this.#cleanup.add(() => child.stop());
    return child;
  }

  /** @throws Error - when its status is not 0, or it is not done after deadlineMs. */
  async run(script: string, deadlineMs = 30_000): Promise<string> {
    const [command, ...rest] = this.command('bash', [
      '-e',
      '-c',
      `exec 2>&1\ntrap 'echo "@@end $?@@"' EXIT\n${script}`,
    ]);
    const child = new Child(command, rest, environment);
    try {
      const [, output = '', code] = await child.waitFor(/^([\s\S]*)@@end (\d+)@@/, deadlineMs);
      if (code !== '0') throw new Error(`on the host, status ${code} of\n${script}\nwith output\n${output}`);
      return output.trim();
    } finally {
      await child.stop();
    }
  }

  /** Adds a bridge that forwards at once. */
  async addBridge(name: string): Promise<void> {
    await this.run(`ip link add ${name} type bridge stp_state 0 forward_delay 0; ip link set ${name} up`);
  }

  /** Adds a TAP interface that outlives the daemons on it. */
  async addTap(name: string, options: { readonly queuePairs?: number; readonly bridge?: string } = {}): Promise<void> {
    const queues = (options.queuePairs ?? 1) > 1 ? 'multi_queue' : '';
    await this.run(`ip tuntap add dev ${name} mode tap vnet_hdr ${queues}`);
    if (options.bridge !== undefined) await this.run(`ip link set ${name} master ${options.bridge}`);
    await this.run(`ip link set ${name} up`);
  }

  async counters(name: string): Promise<InterfaceCounters> {
    const names = ['rx_packets', 'rx_dropped', 'tx_packets', 'tx_dropped'];
    const text = await this.run(`cd /sys/class/net/${name}/statistics; cat ${names.join(' ')}`);
    const [rxPackets = 0, rxDropped = 0, txPackets = 0, txDropped = 0] = text.split('\n').map(Number);
    return { rxPackets, rxDropped, txPackets, txDropped };
  }
}

/** Debian keeps ip and ethtool where only root's PATH leads. */
const environment: NodeJS.ProcessEnv = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
