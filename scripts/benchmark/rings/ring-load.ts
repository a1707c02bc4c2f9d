/**
 * The client of `scripts/bench rings`, a process of its own: random reads by our virtio-blk driver, with the dirty log on or the disk
 * behind an IOMMU where that is asked for. Prints one JSON object (RingLoadOutput).
 */
import { Command } from 'commander';
import { DIRTY_PAGE_BYTES } from '../../../protocol/sys/dirty-pages.ts';
import { BenchLoad } from '../../../vmm-client/cli/bench-load.ts';
import { BlkDriver } from '../../../vmm-client/driver/blk-driver.ts';
import { VhostUserFrontend } from '../../../vmm-client/frontend/frontend.ts';
import { IoMappings } from '../../../vmm-client/frontend/io-mappings.ts';
import { cpuNanoseconds } from '../daemons.ts';

export interface RingLoadOutput {
  iops: number;
  p50Us: number;
  p99Us: number;
  /** CPU time in units of one core. */
  clientCores: number;
  backendCores: number;
}

interface Options {
  backendPid: string;
  blockBytes: string;
  depth: string;
  queues: string;
  pollUs: string;
  seconds: string;
  warmup: string;
  packed: boolean;
  dirtyLog: boolean;
  iommu: boolean;
}

const TAKE_EVERY_MS = 100;
const TIMEOUT_MS = 10_000;

/** Takes what the device wrote, as whoever copies the memory would. Returns what ends that and tells how many pages there were. */
async function logWrites(frontend: VhostUserFrontend): Promise<() => Promise<number>> {
  let bytes = 0;
  await frontend.dirtyLog.start();
  const timer = setInterval(() => {
    for (const range of frontend.dirtyLog.take()) bytes += range.length;
  }, TAKE_EVERY_MS);
  return async () => {
    clearInterval(timer);
    for (const range of await frontend.dirtyLog.stop()) bytes += range.length;
    return bytes / DIRTY_PAGE_BYTES;
  };
}

/** CPU times at both ends of the measured time, in nanoseconds. */
class CpuWindow {
  readonly #pid: number;
  readonly #durationMs: number;
  #begin: { client: number; backend: number; at: number } | undefined;
  #shares: { clientCores: number; backendCores: number } | undefined;

  constructor(pid: number, durationMs: number) {
    this.#pid = pid;
    this.#durationMs = durationMs;
  }

  get shares(): { clientCores: number; backendCores: number } {
    if (this.#shares === undefined) throw new Error('the load ended before its time');
    return this.#shares;
  }

  /** Called often, with the measured time so far: negative during the warm-up. */
  update(elapsedMs: number): void {
    if (this.#shares !== undefined || elapsedMs < 0) return;
    if (this.#begin === undefined) {
      this.#begin = this.#read();
      return;
    }
    if (elapsedMs < this.#durationMs) return;
    const { client, backend, at } = this.#begin;
    const end = this.#read();
    const elapsedNs = (end.at - at) * 1e6;
    this.#shares = {
      clientCores: (end.client - client) / elapsedNs,
      backendCores: (end.backend - backend) / elapsedNs,
    };
  }

  #read() {
    const { user, system } = process.cpuUsage();
    return { client: (user + system) * 1000, backend: cpuNanoseconds(this.#pid), at: performance.now() };
  }
}

async function run(driver: BlkDriver, options: Options): Promise<RingLoadOutput> {
  const queues = driver.queues.length;
  const durationMs = Number(options.seconds) * 1000;
  const load = new BenchLoad(driver, {
    pattern: 'randread',
    blockBytes: Number(options.blockBytes),
    depth: Number(options.depth) / queues,
    range: { offset: 0, length: driver.config.capacityBytes },
    rampMs: Number(options.warmup) * 1000,
    durationMs,
    pollMs: Number(options.pollUs) / 1000,
    timeoutMs: TIMEOUT_MS,
    seed: 1,
  });
  const stopLog = options.dirtyLog ? await logWrites(driver.frontend) : undefined;
  const cpu = new CpuWindow(Number(options.backendPid), durationMs);
  const result = await load.run(new AbortController().signal, (elapsedMs) => cpu.update(elapsedMs));
  if (stopLog !== undefined && (await stopLog()) === 0) throw new Error('the dirty log stayed empty');
  const { read, elapsedMs } = result;
  return {
    iops: (read.count / elapsedMs) * 1000,
    p50Us: read.percentile(50) / 1000,
    p99Us: read.percentile(99) / 1000,
    ...cpu.shares,
  };
}

async function main(): Promise<void> {
  const command = new Command('ring-load')
    .argument('<socket>')
    .requiredOption('--backend-pid <pid>')
    .requiredOption('--block-bytes <bytes>')
    .requiredOption('--depth <number>', 'requests in flight on all queues together')
    .requiredOption('--queues <number>')
    .requiredOption('--poll-us <us>', 'how long to poll in vain before sleeping')
    .requiredOption('--seconds <s>')
    .requiredOption('--warmup <s>')
    .option('--packed', '', false)
    .option('--dirty-log', '', false)
    .option('--iommu', '', false);
  command.parse();
  const options = command.opts<Options>();
  const iommu = options.iommu ? { iommu: new IoMappings() } : {};
  const frontend = await VhostUserFrontend.connect(command.args[0] ?? '', { timeoutMs: TIMEOUT_MS, ...iommu });
  const driver = await BlkDriver.open(frontend, {
    queues: Number(options.queues),
    packed: options.packed,
    dataBytes: Number(options.depth) * Number(options.blockBytes) + 4096,
    timeoutMs: TIMEOUT_MS,
  });
  try {
    process.stdout.write(`${JSON.stringify(await run(driver, options))}\n`);
  } finally {
    await driver.close();
  }
}

await main();
