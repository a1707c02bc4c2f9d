/**
 * A driver with a control queue, behind its pairs of receive and transmit queues. Source: VIRTIO 1.3, 5.1.6.5 Control
 * Virtqueue: class u8, command u8, data; then ack u8, which the device writes.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { NetDriver } from './net-driver.ts';
import { NET_FEATURE } from './net-wire.ts';
import { DEADLINE_MS } from './raw-connection.ts';
import type { RawFrontend } from './raw-frontend.ts';
import { type RawDescriptor, type RawRing, WRITE } from './raw-ring.ts';
import { config, REQUEST } from './wire.ts';

/** What the ack byte holds before the device writes it. */
export const UNTOUCHED = 0xa5;

const BUFFERS = 64;
const BUFFER_BYTES = 2048;
const COMMAND_BYTES = 4096;

export interface NetGuestOptions {
  /** Pairs of queues to start; default 1. */
  readonly pairs?: number;
  /** Whether there is a control queue behind them; default true. */
  readonly control?: boolean;
  /** Feature bits to accept when offered, besides VERSION_1 and PROTOCOL_FEATURES. */
  readonly features?: readonly number[];
  readonly protocolFeatures?: readonly number[];
}

export interface Answer {
  /** The ack byte; UNTOUCHED when the device left it alone. */
  readonly ack: number;
  /** Length in the used entry. */
  readonly usedLength: number;
}

export class NetGuest {
  readonly driver: NetDriver;
  readonly #pairs: number;
  readonly #command: number;
  readonly #ack: number;

  private constructor(driver: NetDriver, pairs: number) {
    this.driver = driver;
    this.#pairs = pairs;
    this.#command = driver.allocate(COMMAND_BYTES);
    this.#ack = driver.allocate(16);
  }

  /** Connects, brings every ring up and posts receive buffers. */
  static async start(socket: string, options: NetGuestOptions = {}): Promise<NetGuest> {
    const { pairs = 1, control = true, features = [], protocolFeatures = [] } = options;
    const driver = await NetDriver.start(socket, {
      queues: 2 * pairs + (control ? 1 : 0),
      features: [...(control ? [NET_FEATURE.CTRL_VQ] : []), ...(pairs > 1 ? [NET_FEATURE.MQ] : []), ...features],
      protocolFeatures,
    });
    const guest = new NetGuest(driver, pairs);
    for (let pair = 0; pair < pairs; pair += 1) driver.post(BUFFERS, BUFFER_BYTES, pair);
    return guest;
  }

  close(): void {
    this.driver.close();
  }

  get frontend(): RawFrontend {
    return this.driver.frontend;
  }

  get controlRing(): RawRing {
    return this.frontend.ring(this.frontend.rings.length - 1);
  }

  commandDescriptor(length: number): RawDescriptor {
    return { address: this.frontend.ram.guest(this.#command), length };
  }

  ackDescriptor(length = 1): RawDescriptor {
    return { address: this.frontend.ram.guest(this.#ack), length, flags: WRITE };
  }

  /** Writes a command's bytes and submits a chain that may refer to them. */
  async submit(bytes: readonly number[], chain: readonly RawDescriptor[]): Promise<Answer> {
    const { ram } = this.frontend;
    ram.bytes.set(bytes, this.#command);
    ram.bytes[this.#ack] = UNTOUCHED;
    this.controlRing.setChain(0, chain);
    const [used] = await this.controlRing.run(0);
    if (used?.id !== 0) throw new Error(`used entry names head ${used?.id}, 0 was submitted`);
    return { ack: ram.view.getUint8(this.#ack), usedLength: used.length };
  }

  /** Runs a well-formed command: class, command, data. */
  run(...bytes: number[]): Promise<Answer> {
    return this.submit(bytes, [this.commandDescriptor(bytes.length), this.ackDescriptor()]);
  }

  /** Runs a command that must succeed. */
  async require(...bytes: number[]): Promise<void> {
    const { ack } = await this.run(...bytes);
    if (ack !== 0) throw new Error(`command ${bytes.slice(0, 2).join('/')}: ack ${ack}`);
  }

  /** Frames that have arrived at a pair; their buffers go back to the device. */
  takeFrames(pair = 0): Uint8Array[] {
    const ring = this.driver.rx(pair);
    const frames: Uint8Array[] = [];
    while (ring.seen !== ring.usedIndex) {
      const { id, length } = ring.usedEntry(ring.seen);
      frames.push(this.driver.contentOf(id, length, pair).subarray(this.driver.headerBytes));
      ring.seen = (ring.seen + 1) & 0xffff;
      ring.publish(id);
    }
    if (frames.length > 0) ring.signal();
    return frames;
  }

  /** Frames of each pair, up to the one that `isLast` accepts. @throws Error - it does not come */
  async receiveUntil(isLast: (frame: Uint8Array) => boolean): Promise<Uint8Array[][]> {
    const received = Array.from({ length: this.#pairs }, (): Uint8Array[] => []);
    const end = performance.now() + DEADLINE_MS;
    for (;;) {
      for (const [pair, frames] of received.entries()) {
        for (const frame of this.takeFrames(pair)) {
          frames.push(frame);
          if (isLast(frame)) return received;
        }
      }
      if (performance.now() > end) {
        throw new Error(`${received.map((frames) => frames.length)} frames, and not the one that is waited for`);
      }
      await delay(1);
    }
  }

  /** `length` bytes of the configuration space. */
  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    const { payload } = await this.frontend.connection.call(REQUEST.GET_CONFIG, config(offset, new Uint8Array(length)));
    return payload.slice(12);
  }
}
