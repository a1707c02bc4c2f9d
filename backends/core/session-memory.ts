/**
 * What one front end shares with us: guest memory, the translations of its IOMMU, the dirty log; and the messages about
 * them. The mappings are made and ended here; those who serve rings borrow them, and have let go
 * of them before one ends. Source: vhost-user, Front-end message types, Memory access, Migration, IOMMU support.
 */

import { coveredBytes } from '../../protocol/memory/dirty-log.ts';
import {
  GuestMemory,
  MAX_MEMORY_REGIONS,
  type MemoryRegion,
  type RegionDescription,
} from '../../protocol/memory/guest-memory.ts';
import { MAX_VIEW_BYTES, partOf, type SharedExtent, SharedMapping } from '../../protocol/sys/mapping.ts';
import { type OwnedFd, statFd } from '../../protocol/sys/owned-fd.ts';
import type { IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_PAGEFAULT } from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import {
  IOTLB_TYPE_INVALIDATE,
  IOTLB_TYPE_UPDATE,
  type Iotlb,
  type LogArea,
  MEMORY_TABLE,
  SINGLE_REGION,
} from '../../protocol/vhost-user/payloads.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import { type Dispatcher, ReplyWithFds, SpecialReply } from './dispatcher.ts';
import type { Logger } from './logging.ts';
import { Postcopy } from './postcopy.ts';
import { Refused } from './refused.ts';
import type { RingServers } from './ring-servers.ts';

const MAX_REMEMBERED_REMOVALS = 64;
const PAGE_BYTES = 4096;
/** Bits of the dirty log are set by atomic operations on words of so many bytes. */
const LOG_ALIGN = 4;

/** What a session knows that its memory needs. */
export interface MemoryContext {
  readonly servers: RingServers;
  readonly log: Logger;
  readonly anyStarted: boolean;
  /** Writes are to be logged: VHOST_F_LOG_ALL. */
  readonly isLogging: boolean;
  /** Protocol features that are offered. */
  readonly offered: bigint;
  /** PAGEFAULT was negotiated. */
  readonly hasPageFaults: boolean;
  /** Descriptor of the front end's connection. */
  readonly socket: number;
}

function isSameRegion(a: RegionDescription, b: RegionDescription): boolean {
  return a.guestAddress === b.guestAddress && a.size === b.size && a.userAddress === b.userAddress;
}

/** Guest address behind a region. */
function endOf({ guestAddress, size }: RegionDescription): number {
  return guestAddress + size;
}

/** What the front end is told of memory whose pages come late: where we have it. */
function answerOf(description: RegionDescription, { start, hostDelta }: MemoryRegion): RegionDescription {
  return { ...description, userAddress: start + hostDelta };
}

export class SessionMemory {
  readonly #context: MemoryContext;
  readonly #memory = new GuestMemory();
  /** Regions that were removed last: a front end may say it again. */
  #removed: RegionDescription[] = [];
  /** The dirty log, and where it lies in its mapping. */
  #log: { readonly mapping: SharedMapping; readonly bitmap: SharedExtent } | undefined;
  /** The log was let go of, because it had no bits for memory that came, and there is no other. */
  #isLogOutgrown = false;
  readonly #postcopy: Postcopy | undefined;

  constructor(context: MemoryContext) {
    this.#context = context;
    if (hasFeature(context.offered, VHOST_USER_PROTOCOL_F_PAGEFAULT)) this.#postcopy = new Postcopy(context.socket);
  }

  register(d: Dispatcher): void {
    d.on(FRONTEND.SET_MEM_TABLE, async (regions, fds) => {
      if (fds.length !== regions.length) {
        throw new ProtocolError(`SET_MEM_TABLE: ${regions.length} regions with ${fds.length} file descriptors`);
      }
      this.#checkLogged(Math.max(0, ...regions.map(endOf)));
      const added: MemoryRegion[] = [];
      await this.#change(() => {
        this.#clear();
        regions.forEach((region, i) => {
          added.push(this.#add(region, fds[i] as OwnedFd));
        });
      });
      const answer = (at: MemoryRegion, i: number): RegionDescription => answerOf(regions[i] as RegionDescription, at);
      return this.#isListening ? new SpecialReply(MEMORY_TABLE.encode(added.map(answer))) : undefined;
    });
    d.on(FRONTEND.GET_MAX_MEM_SLOTS, () => BigInt(MAX_MEMORY_REGIONS));
    d.on(FRONTEND.ADD_MEM_REG, async (region, [fd]) => {
      // QEMU 7.2 says everything once per queue pair of a network device, on the same connection.
      const added = this.#memory.findExact(region) ?? (await this.#addOne(region, fd as OwnedFd));
      return this.#isListening ? new SpecialReply(SINGLE_REGION.encode(answerOf(region, added))) : undefined;
    });
    d.on(FRONTEND.REM_MEM_REG, async (region) => {
      const found = this.#memory.findExact(region);
      if (found === undefined) {
        if (this.#removed.some((other) => isSameRegion(region, other))) return;
        throw new Refused(`no region of ${region.size} bytes at guest address 0x${region.guestAddress.toString(16)}`);
      }
      await this.#change(() => {
        this.#postcopy?.forget(found);
        this.#memory.remove(found);
      });
      this.#removed = [...this.#removed.slice(-MAX_REMEMBERED_REMOVALS), region];
    });
    d.on(FRONTEND.IOTLB_MSG, (message) => this.#translate(message));
    d.on(FRONTEND.SET_LOG_BASE, async (area, [fd]) => {
      await this.#setLog(area, fd as OwnedFd);
      return 0n;
    });
    // We have nothing to add to what the log itself says.
    d.on(FRONTEND.SET_LOG_FD, () => undefined);
    if (this.#postcopy !== undefined) this.#registerPostcopy(d, this.#postcopy);
  }

  #registerPostcopy(d: Dispatcher, postcopy: Postcopy): void {
    d.on(FRONTEND.POSTCOPY_ADVISE, async () => {
      if (!this.#context.hasPageFaults) throw new Refused('PAGEFAULT was not negotiated');
      return new ReplyWithFds(undefined, [await postcopy.advise()]);
    });
    d.on(FRONTEND.POSTCOPY_LISTEN, () => postcopy.listen(this.#memory.regions.length > 0));
    d.on(FRONTEND.POSTCOPY_END, async () => {
      await postcopy.end();
      return 0n;
    });
  }

  get #isListening(): boolean {
    return this.#postcopy?.isListening === true;
  }

  /** Whether a message is no request, but acknowledges where memory is whose pages come late. @throws ProtocolError */
  isAcknowledgement(message: IncomingMessage): boolean {
    return this.#postcopy?.isAcknowledgement(message) === true;
  }

  /** From now on that memory is used. */
  async acknowledge(): Promise<void> {
    if (this.#postcopy?.isAwaiting !== true) return;
    this.#postcopy.acknowledge();
    await this.#publish();
  }

  /** The front end is gone: who waits for a page of its memory fails. */
  async abandon(): Promise<void> {
    await this.#postcopy?.abandon();
  }

  #add(description: RegionDescription, fd: OwnedFd): MemoryRegion {
    const region = this.#memory.add(description, fd);
    if (!this.#isListening) return region;
    try {
      this.#postcopy?.register(region);
      return region;
    } catch (error) {
      this.#memory.remove(region);
      throw error;
    }
  }

  async #addOne(description: RegionDescription, fd: OwnedFd): Promise<MemoryRegion> {
    this.#checkLogged(endOf(description));
    const add = (): MemoryRegion => this.#add(description, fd);
    if (this.#isListening) return this.#change(add);
    const region = add();
    await this.#publish();
    return region;
  }

  #clear(): void {
    for (const region of this.#memory.regions) this.#postcopy?.forget(region);
    this.#memory.clear();
  }

  /** Changes the memory while no ring uses it, and goes on with the rings that are still in it. */
  async #change<T>(change: () => T): Promise<T> {
    await this.#context.servers.all((server) => server.displaceAll());
    // Nobody may find a region that is about to go.
    await this.#context.servers.all((server) => server.setMemory([]));
    try {
      return change();
    } finally {
      await this.#publish();
    }
  }

  /** Tells everyone of the regions that there are, unless they may not be touched yet. */
  async #publish(): Promise<void> {
    if (this.#postcopy?.isAwaiting === true) return;
    await this.#outgrowLog();
    const regions = this.#memory.regions.map((region) => region.share());
    await this.#context.servers.all(async (server) => {
      await server.setMemory(regions);
      await server.placeAll();
    });
  }

  /** What is unmapped is not accessed any more when this is answered: requests in flight may, so they end first. */
  async #translate({ iova, size, userAddress, permission, type }: Iotlb): Promise<bigint> {
    const { servers } = this.#context;
    if (type === IOTLB_TYPE_UPDATE) {
      await servers.all((server) => server.translate({ kind: 'update', iova, size, userAddress, permission }));
    } else if (type === IOTLB_TYPE_INVALIDATE) {
      await servers.all((server) => server.translate({ kind: 'invalidate', iova, size }));
    } else throw new Refused(`IOTLB message of type ${type}: 2 (update) and 3 (invalidate) are possible`);
    return 0n;
  }

  /** SET_LOG_BASE: the log is used as long as VHOST_F_LOG_ALL is on. */
  async #setLog({ size, offset }: LogArea, fd: OwnedFd): Promise<void> {
    const file = statFd(fd.fd);
    if (offset % LOG_ALIGN !== 0) throw new Refused(`dirty log at ${offset}: a multiple of ${LOG_ALIGN} is possible`);
    if (size === 0 || file.size < offset || file.size - offset < size) {
      throw new Refused(`dirty log of ${size} bytes at ${offset} of a file of ${file.size} bytes`);
    }
    // What lies behind that is of guest memory above 32 TiB.
    const length = Math.min(size, MAX_VIEW_BYTES);
    const { end } = this.#memory;
    if (coveredBytes(length) < end) {
      throw new Refused(`dirty log of ${size} bytes: guest memory ends at 0x${end.toString(16)}, beyond it`);
    }
    const lead = offset % PAGE_BYTES;
    const mapping = new SharedMapping(fd.fd, offset - lead, lead + length);
    const last = this.#log;
    this.#log = { mapping, bitmap: partOf(mapping.share(), lead, length) };
    this.#isLogOutgrown = false;
    await this.applyLog();
    last?.mapping.retire();
  }

  /** Whether there is a log, which has no bits for memory that ends at a guest address. */
  #isBeyondLog(end: number): boolean {
    return this.#log !== undefined && coveredBytes(this.#log.bitmap.length) < end;
  }

  /**
   * A started ring may write anywhere at once, so the log has to reach there before: front ends (QEMU) bring the larger
   * log first. @throws Refused - the log that is in use ends before guest memory would, at `end`
   */
  #checkLogged(end: number): void {
    const { anyStarted, isLogging } = this.#context;
    if (anyStarted && isLogging) this.checkLog(end);
  }

  /** @throws Refused - writes cannot be logged with the log that there is: guest memory ends beyond it, at `end` */
  checkLog(end = this.#memory.end): void {
    if (!this.#isBeyondLog(end)) return;
    throw new Refused(
      `guest memory would end at 0x${end.toString(16)}, beyond the dirty log: SET_LOG_BASE comes first`,
    );
  }

  /**
   * Memory grew beyond the log while no ring was started, as a device's may that QEMU starts again within a migration: it
   * says memory, rings and then the new log. Until that comes the rings stand still.
   */
  async #outgrowLog(): Promise<void> {
    if (!this.#context.isLogging || !this.#isBeyondLog(this.#memory.end)) return;
    const last = this.#log;
    this.#log = undefined;
    this.#isLogOutgrown = true;
    this.#context.log.info('guest memory grew beyond the dirty log: no ring is served until there is a larger one');
    await this.#context.servers.all((server) => server.setLog('awaited'));
    last?.mapping.retire();
  }

  /** VHOST_F_LOG_ALL was turned on or off, or there is another log. */
  async applyLog(): Promise<void> {
    await this.#outgrowLog();
    const awaited = this.#isLogOutgrown ? 'awaited' : undefined;
    const bitmap = this.#context.isLogging ? (this.#log?.bitmap ?? awaited) : undefined;
    await this.#context.servers.all(async (server) => {
      await server.displaceAll();
      await server.setLog(bitmap);
      await server.placeAll();
    });
  }

  /** Ends all mappings. Nobody uses them any more. */
  close(): void {
    this.#memory.clear();
    this.#log?.mapping.retire();
    this.#log = undefined;
  }
}
