/**
 * DPDK's testpmd: with a virtio-user port the front end of all participants (a driver in user space that polls its rings), with a
 * vhost and a TAP port the back end that ours is compared with.
 */
import type { Finished } from '../children.ts';
import { INTERFACE, type Namespace } from './namespace.ts';

export type ForwardMode = 'txonly' | 'icmpecho';

/** What testpmd has sent in a second: frames that the device took. */
export interface Period {
  packets: number;
  bits: number;
}

/** All periods of a testpmd's output. */
export function parsePeriods(output: string): Period[] {
  return [...output.matchAll(/Tx-pps:\s+(\d+)\s+Tx-bps:\s+(\d+)/g)].map((match) => ({
    packets: Number(match[1]),
    bits: Number(match[2]),
  }));
}

/** The main thread sleeps on one core, the thread that polls has the other. */
function commonArguments(prefix: string, mainCpu: number, pollingCpu: number): string[] {
  const cores = `0@${mainCpu},1@${pollingCpu}`;
  return [
    'dpdk-testpmd',
    '--lcores',
    cores,
    '--no-huge',
    '-m',
    '512',
    '--no-pci',
    '--no-telemetry',
    `--file-prefix=${prefix}`,
  ];
}

const SETTINGS = ['--', '--auto-start', '--stats-period', '1'];

/** Frames of 65,000 bytes go in 4 pieces, close to Linux's 32 KiB page fragments. */
const LARGE_SENT = ['--mbuf-size=16640', '--total-num-mbufs=4096', '--txpkts=16250,16250,16250,16250'];
const SMALL_MBUFS = '--total-num-mbufs=16384';

export function testpmdFrontEndLine(socket: string, mode: ForwardMode, frameBytes: number, cpus: Cores): string[] {
  const small = mode === 'txonly' ? [SMALL_MBUFS, `--txpkts=${frameBytes}`] : [SMALL_MBUFS];
  return [
    ...commonArguments('front', cpus.main, cpus.polling),
    `--vdev=net_virtio_user0,path=${socket},queues=1,queue_size=256`,
    ...SETTINGS,
    `--forward-mode=${mode}`,
    ...(frameBytes > 2048 ? LARGE_SENT : small),
  ];
}

export interface Cores {
  main: number;
  polling: number;
}

export function testpmdBackEndLine(socket: string, cpus: Cores): string[] {
  return [
    ...commonArguments('back', cpus.main, cpus.polling),
    `--vdev=net_vhost0,iface=${socket},queues=1`,
    `--vdev=net_tap0,iface=${INTERFACE}`,
    ...SETTINGS,
    SMALL_MBUFS,
    '--forward-mode=io',
  ];
}

/** A running front end. */
export class FrontEnd {
  private readonly namespace: Namespace;
  private readonly output: Finished;

  constructor(namespace: Namespace, line: readonly string[]) {
    this.namespace = namespace;
    this.output = namespace.start(line).output;
  }

  /** Waits until it forwards: the device is set up and its rings run. */
  waitUntilStarted(): Promise<void> {
    return this.namespace.waitUntil('a front end that forwards', () => this.output.stdout.includes('Rx-pps'));
  }

  /** Waits until `isEnough` is content with the periods so far, and returns them. */
  async periods(isEnough: (periods: readonly Period[]) => boolean): Promise<Period[]> {
    await this.namespace.waitUntil('statistics of the front end', () => isEnough(parsePeriods(this.output.stdout)));
    return parsePeriods(this.output.stdout);
  }
}
