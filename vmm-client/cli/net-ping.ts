/** `ringside net ping`: asks a host behind a network device whether it is there, and how long the way takes. */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import type { NetDriver } from '../driver/net-driver.ts';
import type { Station } from '../packet/arp.ts';
import { ECHO_HEADERS_BYTES, type Echo } from '../packet/ipv4.ts';
import type { CliContext, QueueOptions } from './context.ts';
import { formatIpv4, formatMac, type Ipv4Prefix, isInNetwork } from './net-addresses.ts';
import { DEFAULT_MAC, withNet } from './net-context.ts';
import { TinyHost } from './net-host.ts';
import { formatCount, UsageError } from './quantity.ts';

export interface PingOptions extends QueueOptions {
  readonly ip: Ipv4Prefix;
  readonly mac?: Uint8Array;
  /** 0: until interrupted. */
  readonly count: number;
  /** Milliseconds. */
  readonly interval: number;
  readonly wait: number;
  readonly size: number;
}

/** @throws PeerError - nothing answered */
export async function pingHost(
  context: CliContext,
  socket: string,
  target: number,
  options: PingOptions,
): Promise<void> {
  const { ip } = options;
  if (target === ip.ip) throw new UsageError(`${formatIpv4(target)} is our own address`);
  if (!isInNetwork(target, ip)) {
    throw new UsageError(`${formatIpv4(target)} is not in our network, ${formatIpv4(ip.ip)}/${ip.length}`);
  }
  await withNet(context, socket, options, {}, async (driver) => {
    const most = driver.maxFrameBytes - ECHO_HEADERS_BYTES;
    if (options.size > most) throw new UsageError(`--size ${options.size}: a packet has room for ${most} bytes`);
    const ping = new Ping(context, driver, target, options);
    const received = await ping.run();
    if (received === 0) throw new PeerError(`${formatIpv4(target)} did not answer`);
  });
}

class Ping {
  readonly #context: CliContext;
  readonly #target: number;
  readonly #options: PingOptions;
  readonly #host: TinyHost;
  readonly #identifier = 1 + Math.floor(Math.random() * 0xfffe);
  readonly #data: Uint8Array;
  /** When which request was sent, in milliseconds; those that were answered are kept in `#answered`. */
  readonly #sentAt = new Map<number, number>();
  readonly #answered = new Set<number>();
  readonly #timesMs: number[] = [];
  #peer: Station | undefined;
  #unsent = 0;
  #failure: Error | undefined;
  #onChange: () => void = () => undefined;

  constructor(context: CliContext, driver: NetDriver, target: number, options: PingOptions) {
    this.#context = context;
    this.#target = target;
    this.#options = options;
    this.#data = Uint8Array.from({ length: options.size }, (_, i) => (0x10 + i) & 0xff);
    const mac = options.mac ?? driver.config.mac ?? DEFAULT_MAC;
    this.#host = new TinyHost(
      { mac, ip: options.ip.ip },
      {
        send: (frame) => {
          if (!driver.send(frame)) this.#unsent += 1;
        },
        onStation: (station) => this.#onStation(station),
        onEchoReply: (reply) => this.#onReply(reply),
      },
    );
    driver.listen({
      onPacket: (packet) => this.#host.receive(packet),
      onFailure: (error) => {
        this.#failure = error;
        this.#onChange();
      },
    });
  }

  /** Returns how many were answered. */
  async run(): Promise<number> {
    const { count, interval, wait, size, ip } = this.#options;
    const name = formatIpv4(this.#target);
    const ours = `${formatIpv4(ip.ip)} (${formatMac(this.#host.station.mac)})`;
    this.#say(`PING ${name} from ${ours}: ${size} bytes of data`);
    const started = performance.now();
    let asked = 0;
    for (let sequence = 1; !this.#isOver && (count === 0 || sequence <= count); sequence++) {
      const begun = performance.now();
      asked += 1;
      if (this.#peer === undefined) {
        this.#host.ask(this.#target);
        await this.#until(() => this.#peer !== undefined, Math.max(interval, sequence === count ? wait : 0));
      }
      if (this.#isOver) break;
      if (this.#peer === undefined) {
        this.#say(`no answer to ARP for ${name}, icmp_seq=${sequence}`);
        continue;
      }
      this.#answered.delete(sequence & 0xffff);
      this.#sentAt.set(sequence & 0xffff, performance.now());
      this.#host.ping(this.#peer, this.#identifier, sequence & 0xffff, this.#data);
      if (sequence === count) await this.#until(() => this.#answered.size === this.#sentAt.size, wait);
      else await this.#until(() => false, interval - (performance.now() - begun));
    }
    if (this.#failure !== undefined) throw this.#failure;
    this.#say(`--- ${name} ping statistics ---`);
    this.#summarize(asked, performance.now() - started);
    return this.#timesMs.length;
  }

  get #isOver(): boolean {
    return this.#failure !== undefined || this.#context.interrupted.aborted;
  }

  /** Until something is so, the time is over, the user has enough, or nothing will change any more. */
  #until(condition: () => boolean, timeMs: number): Promise<void> {
    return new Promise((resolve) => {
      const { interrupted } = this.#context;
      const end = () => {
        clearTimeout(timer);
        interrupted.removeEventListener('abort', end);
        this.#onChange = () => undefined;
        resolve();
      };
      const timer = setTimeout(end, Math.max(0, timeMs));
      interrupted.addEventListener('abort', end);
      this.#onChange = () => {
        if (condition() || this.#isOver) end();
      };
      this.#onChange();
    });
  }

  #onStation(station: Station): void {
    if (station.ip !== this.#target) return;
    this.#peer = station;
    this.#onChange();
  }

  #onReply(reply: Echo): void {
    const now = performance.now();
    const sentAt = this.#sentAt.get(reply.sequence);
    if (reply.identifier !== this.#identifier || reply.from.ip !== this.#target || sentAt === undefined) return;
    const isSame = Buffer.compare(reply.data, this.#data) === 0;
    const isFirst = !this.#answered.has(reply.sequence);
    const timeMs = now - sentAt;
    if (isSame && isFirst) {
      this.#answered.add(reply.sequence);
      this.#timesMs.push(timeMs);
    }
    const note = isSame ? (isFirst ? '' : ' (again)') : ' (not the data that was sent)';
    const what = `${reply.data.length + 8} bytes from ${formatIpv4(reply.from.ip)}`;
    this.#say(`${what}: icmp_seq=${reply.sequence} ttl=${reply.ttl} time=${formatMs(timeMs)} ms${note}`);
    this.#onChange();
  }

  #summarize(asked: number, elapsedMs: number): void {
    const received = this.#timesMs.length;
    const lost = asked === 0 ? 0 : ((asked - received) / asked) * 100;
    const percent = Number.isInteger(lost) ? lost : lost.toFixed(1);
    this.#say(
      `${formatCount(asked)} packets transmitted, ${formatCount(received)} received, ${percent}% packet loss, ` +
        `time ${elapsedMs.toFixed(0)} ms`,
    );
    if (this.#unsent > 0) this.#say(`${this.#unsent} did not fit into the queue`);
    if (received === 0) return;
    const { min, average, median, max } = summarizeTimes(this.#timesMs);
    this.#say(`rtt min/avg/median/max = ${[min, average, median, max].map(formatMs).join('/')} ms`);
  }

  #say(line: string): void {
    this.#context.stdout.write(`${line}\n`);
  }
}

function formatMs(timeMs: number): string {
  return timeMs.toFixed(timeMs < 10 ? 3 : timeMs < 100 ? 2 : 1);
}

/** Of at least one time. The median of an even number is the mean of the two in the middle. */
export function summarizeTimes(times: readonly number[]): {
  min: number;
  average: number;
  median: number;
  max: number;
} {
  const sorted = times.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle]!;
  return {
    min: sorted[0]!,
    average: sorted.reduce((sum, time) => sum + time, 0) / sorted.length,
    median: sorted.length % 2 === 1 ? upper : (sorted[middle - 1]! + upper) / 2,
    max: sorted.at(-1)!,
  };
}
