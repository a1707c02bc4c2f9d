/**
 * DPDK's testpmd with its virtio-user driver: a front end that is no virtual machine, whose driver polls its rings and
 * counts every packet. It is told what to do by commands on its standard input.
 */

import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath } from '../peers.ts';

/** What a test needs for Testpmd. */
export const testpmdPeers: readonly PeerName[] = ['dpdk-testpmd'];

/** What to do with packets; `icmpecho` answers ARP and pings, whatever the address. */
export type ForwardMode = 'txonly' | 'rxonly' | 'icmpecho';

export interface TestpmdOptions {
  readonly socket: string;
  readonly queues?: number;
  /** Whether the driver takes VIRTIO_NET_F_MRG_RXBUF. */
  readonly mergeable?: boolean;
  /** Whether it takes VIRTIO_F_RING_PACKED; it does not by default. */
  readonly packed?: boolean;
  /** Whether it takes VIRTIO_F_IN_ORDER; it does by default. */
  readonly inOrder?: boolean;
  /** More parameters of the driver, `in_order=0` for instance. */
  readonly device?: string;
  /** More of testpmd's own arguments. */
  readonly extra?: readonly string[];
}

/** What one queue has received or sent, by the driver's count. */
export interface QueueCounters {
  readonly rxPackets: number;
  readonly txPackets: number;
}

const PROMPT = 'testpmd> ';

export class Testpmd {
  readonly #child: Child;

  private constructor(child: Child) {
    this.#child = child;
  }

  /** Starts it, connected and with running rings, but not yet forwarding. `cleanup` kills it at the latest. */
  static async start(cleanup: Cleanup, options: TestpmdOptions): Promise<Testpmd> {
    const queues = options.queues ?? 1;
    const mergeable = options.mergeable === false ? 0 : 1;
    const layout = `packed_vq=${options.packed === true ? 1 : 0},in_order=${options.inOrder === false ? 0 : 1}`;
    const device = options.device === undefined ? '' : `,${options.device}`;
    // Reports, prompts and complaints in the order in which they were made: a prompt then ends the answer to a command.
    const child = new Child(
      'sh',
      [
        ...['-c', 'exec stdbuf --output=L "$@" 2>&1', 'sh', peerPath('dpdk-testpmd')],
        // It polls with one core, and the other is the daemon's.
        ...['--lcores', '0@0,1@1', '--no-huge', '-m', '256', '--no-pci', '--no-telemetry', '--no-shconf'],
        `--vdev=net_virtio_user0,path=${options.socket},queues=${queues},queue_size=256,mrg_rxbuf=${mergeable},${layout}${device}`,
        // It tells there what it has negotiated.
        '--log-level=pmd.net.virtio.init:debug',
        ...['--', '--interactive', `--rxq=${queues}`, `--txq=${queues}`],
        ...['--total-num-mbufs=8192', '--no-flush-rx', '--nb-cores=1', ...(options.extra ?? [])],
      ],
      { ...process.env, RUNTIME_DIRECTORY: cleanup.directory() },
    );
    cleanup.add(() => child.stop());
    const testpmd = new Testpmd(child);
    await child.waitFor(new RegExp(PROMPT), 30_000);
    return testpmd;
  }

  /** The feature bits that the driver has accepted. */
  negotiatedFeatures(): bigint {
    const match = /features after negotiate = ([0-9a-f]+)/.exec(this.#child.output());
    if (match?.[1] === undefined) throw new Error(`testpmd does not tell its features:\n${this.#child.tail()}`);
    return BigInt(`0x${match[1]}`);
  }

  /** Says what to do when forwarding starts, and clears the counts. */
  async use(mode: ForwardMode): Promise<void> {
    await this.execute('stop');
    await this.execute(`set fwd ${mode}`);
    await this.execute('clear port stats 0');
  }

  async startForwarding(): Promise<void> {
    await this.execute('start');
  }

  /** Stops forwarding, and returns the counts of each queue that had packets since the start. */
  async stopForwarding(): Promise<readonly QueueCounters[]> {
    const report = await this.execute('stop');
    // A single queue has no section of its own.
    const sections = report.match(/Forward Stats for [\s\S]*?TX-packets[^\n]*/g) ?? [report];
    return sections.map((section) => ({
      rxPackets: counterIn(section, 'RX-packets'),
      txPackets: counterIn(section, 'TX-packets'),
    }));
  }

  /** What all queues have received since use(). */
  async receivedPackets(): Promise<number> {
    return counterIn(await this.execute('show port stats 0'), 'RX-packets');
  }

  /** Ends it in order. */
  async quit(): Promise<void> {
    this.#child.stdin.write('quit\n');
    const { code } = await this.#child.waitForExit(15_000);
    if (code !== 0) throw new Error(`testpmd ended with status ${code}:\n${this.#child.tail()}`);
  }

  /** Ends it where it stands. */
  kill(): Promise<void> {
    return this.#child.stop();
  }

  /** Runs a command and returns what it printed up to the next prompt. */
  async execute(command: string): Promise<string> {
    const from = this.#child.mark();
    this.#child.stdin.write(`${command}\n`);
    const [, output = ''] = await this.#child.waitFor(new RegExp(`([^]*?)${PROMPT}`), 15_000, from);
    return output;
  }
}

const counterIn = (section: string, name: string): number => {
  const match = new RegExp(`${name}: *(\\d+)`).exec(section);
  if (match?.[1] === undefined) throw new Error(`no ${name} in\n${section}`);
  return Number(match[1]);
};
