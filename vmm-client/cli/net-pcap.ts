/** `ringside net pcap`: writes what arrives to a capture file. */

import { VIRTIO_NET_MAX_PACKET_BYTES } from '../../protocol/virtio/net.ts';
import type { NetDriver } from '../driver/net-driver.ts';
import { encodePcapHeader, PCAP_RECORD_BYTES, writePcapRecord } from '../packet/pcap.ts';
import type { CliContext, QueueOptions } from './context.ts';
import { withNet } from './net-context.ts';
import { formatCount, formatSize } from './quantity.ts';
import { openSink, type Sink } from './sink.ts';

export interface PcapOptions extends QueueOptions {
  /** Packets; undefined: no limit. */
  readonly count?: number;
  /** Milliseconds; undefined: until interrupted. */
  readonly seconds?: number;
}

/** One is filled while the other is written. */
const BUFFER_BYTES = 1024 * 1024;
const LARGEST_RECORD_BYTES = PCAP_RECORD_BYTES + VIRTIO_NET_MAX_PACKET_BYTES;

/** @throws FileError - the file cannot be written */
export async function capturePackets(
  context: CliContext,
  socket: string,
  file: string,
  options: PcapOptions,
): Promise<void> {
  // Before anything else: a file that cannot be written is the user's mistake, whoever serves the socket.
  const sink = await openSink(file, context.stdout);
  try {
    await withNet(context, socket, options, {}, async (driver) => {
      const capture = new Capture(driver, sink, options);
      await capture.run(context.interrupted);
      const summary = `${formatCount(capture.packets)} packets, ${formatSize(capture.packetBytes)}\n`;
      (file === '-' ? context.stderr : context.stdout).write(summary);
    });
  } finally {
    await sink.close();
  }
}

/** Between a driver and a file: packets are copied into one buffer while another is written. */
class Capture {
  packets = 0;
  packetBytes = 0;
  readonly #driver: NetDriver;
  readonly #sink: Sink;
  readonly #options: PcapOptions;
  #filling = Buffer.alloc(BUFFER_BYTES);
  #spare = Buffer.alloc(BUFFER_BYTES);
  #filled = 0;
  #writing: Promise<void> | undefined;
  #isOver = false;
  #failure: Error | undefined;
  #end: () => void = () => undefined;

  constructor(driver: NetDriver, sink: Sink, options: PcapOptions) {
    this.#driver = driver;
    this.#sink = sink;
    this.#options = options;
  }

  /** Until the count or the time is reached, or the user has enough. What came until then is in the file. */
  async run(interrupted: AbortSignal): Promise<void> {
    const ended = new Promise<void>((resolve) => {
      this.#end = () => {
        this.#isOver = true;
        this.#driver.pause();
        resolve();
      };
    });
    const { seconds } = this.#options;
    const timer = seconds === undefined ? undefined : setTimeout(this.#end, seconds);
    interrupted.addEventListener('abort', this.#end);
    if (interrupted.aborted || this.#options.count === 0) this.#end();
    this.#filled = encodePcapHeader().copy(this.#filling);
    this.#startWrite();
    this.#driver.listen({
      onPacket: (packet) => this.#onPacket(packet),
      onPause: () => this.#startWrite(),
      onFailure: (error) => this.#fail(error),
    });
    await ended;
    clearTimeout(timer);
    interrupted.removeEventListener('abort', this.#end);
    while (this.#filled > 0 || this.#writing !== undefined) {
      this.#startWrite();
      await this.#writing;
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  #onPacket(packet: Uint8Array): void {
    if (this.#isOver) return;
    const now = performance.timeOrigin + performance.now();
    this.#filled = writePcapRecord(this.#filling, this.#filled, packet, now);
    this.packets += 1;
    this.packetBytes += packet.length;
    if (this.packets === this.#options.count) this.#end();
    if (BUFFER_BYTES - this.#filled >= LARGEST_RECORD_BYTES) return;
    // Full: by the time the driver goes on, one of the two has been written.
    if (this.#writing === undefined) this.#startWrite();
    else this.#driver.pause();
  }

  #startWrite(): void {
    if (this.#writing !== undefined || this.#filled === 0) return;
    const bytes = this.#filling.subarray(0, this.#filled);
    [this.#filling, this.#spare] = [this.#spare, this.#filling];
    this.#filled = 0;
    this.#writing = this.#sink.write(bytes).then(
      () => {
        this.#writing = undefined;
        if (this.#isOver) return;
        if (BUFFER_BYTES - this.#filled < LARGEST_RECORD_BYTES) this.#startWrite();
        this.#driver.resume();
      },
      (error: Error) => {
        this.#writing = undefined;
        this.#filled = 0;
        this.#fail(error);
      },
    );
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#end();
  }
}
