/**
 * One connection of a front end: what it negotiated, its memory and its rings. Messages are handled strictly one after
 * the other, in any order that makes sense; a request that needs requests in flight to finish waits for them and holds
 * up only its own connection. Source: vhost-user, Front-end message types, Ring states.
 */

import { GuestMemory, MAX_MEMORY_REGIONS, type RegionDescription } from '../../protocol/memory/guest-memory.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { socketRole, UnixStream } from '../../protocol/sys/unix-socket.ts';
import { Endpoint } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../../protocol/vhost-user/features.ts';
import { BACKEND, FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { type ConfigSpace, MAX_CONFIG_BYTES } from '../../protocol/vhost-user/payloads.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
} from '../../protocol/virtio/reserved-features.ts';
import { isSplitQueueSize } from '../../protocol/virtqueue/split-queue.ts';
import type { Attachment, Device } from './device.ts';
import { Dispatcher, isRefusal, ReplyWithFds } from './dispatcher.ts';
import { createInflightFd, InflightMemory } from './inflight-memory.ts';
import type { Logger } from './logging.ts';
import type { Pump } from './pump.ts';
import { Refused } from './refused.ts';
import type { RingLease } from './ring-lease.ts';
import { Vring, type VringFeatures, type VringHost } from './vring.ts';

const RING_FEATURES = featureMask(
  VIRTIO_F_VERSION_1,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VHOST_USER_F_PROTOCOL_FEATURES,
);

const CORE_PROTOCOL_FEATURES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_STATUS,
);

/** Bit 0 of the flags of SET_CONFIG: the state of a migrated device, not a driver's write. */
const CONFIG_FLAG_MIGRATION = 1;

/** Refused requests of one connection that are logged. */
const MAX_LOGGED_REFUSALS = 20;

const MAX_REMEMBERED_REMOVALS = 64;

function isSameRegion(a: RegionDescription, b: RegionDescription): boolean {
  return a.guestAddress === b.guestAddress && a.size === b.size && a.userAddress === b.userAddress;
}

/** What all connections of a daemon share. */
export interface SessionContext {
  readonly device: Device;
  readonly pump: Pump;
  readonly lease: RingLease;
}

export class Session implements VringHost {
  readonly memory = new GuestMemory();
  readonly attachment: Attachment;
  readonly log: Logger;

  readonly #context: SessionContext;
  readonly #endpoint: Endpoint;
  readonly #dispatcher = new Dispatcher();
  readonly #vrings: Vring[];
  #features = 0n;
  #protocolFeatures = 0n;
  /** The driver's device status as the front end told it. */
  #status = 0n;
  /** Regions that were removed last: a front end may say it again. */
  #removed: RegionDescription[] = [];
  #inflight: InflightMemory | undefined;
  #backendChannel: Endpoint | undefined;
  #memoryFault = false;
  #refusals = 0;

  constructor(context: SessionContext, stream: UnixStream, log: Logger) {
    this.#context = context;
    this.#endpoint = new Endpoint(stream);
    this.log = log;
    this.attachment = context.device.attach();
    this.#vrings = Array.from({ length: context.device.maxQueues }, (_, index) => new Vring(index, this));
    this.#registerFeatures();
    this.#registerMemory();
    this.#registerVrings();
    this.#registerDevice();
  }

  wake(): void {
    this.#context.pump.wake();
  }

  get memoryFaulted(): boolean {
    return this.memory.faulted || this.#inflight?.faulted === true;
  }

  /** The front end truncated a file that it shares with us: its connection ends. */
  onMemoryFault(): void {
    if (this.#memoryFault) return;
    this.#memoryFault = true;
    for (const vring of this.#vrings) vring.broken = true;
    this.log.error('pages of the shared memory were taken away by the front end: closing its connection');
    this.#endpoint.close();
  }

  /** Serves the connection until its end, then lets go of everything it brought. */
  async run(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#endpoint.next();
        if (message === undefined) break;
        const refusal = await this.#dispatcher.handle(message, this.#endpoint);
        if (refusal !== undefined) this.#noteRefusal(refusal);
      }
      this.log.info('front end disconnected');
    } catch (error) {
      if (!(error instanceof ProtocolError) && !isRefusal(error)) throw error;
      this.log.error(`closing the connection: ${error.message}`);
    } finally {
      this.#endpoint.close();
      this.#context.lease.leave(this);
      await this.#release();
    }
  }

  /** A front end may ask for the impossible as often as it likes, but not fill the log with it. */
  #noteRefusal({ message }: Error): void {
    this.#refusals += 1;
    if (this.#refusals > MAX_LOGGED_REFUSALS) return;
    this.log.warn(this.#refusals < MAX_LOGGED_REFUSALS ? message : `${message}; further refusals are not logged`);
  }

  /** Ends the connection from our side; `run` then drains and returns. */
  close(): void {
    this.#endpoint.close();
  }

  /** Tells the front end that the configuration space changed, if it wants to know. */
  notifyConfigChange(): void {
    if (this.#backendChannel === undefined || !hasFeature(this.#protocolFeatures, VHOST_USER_PROTOCOL_F_CONFIG)) return;
    try {
      this.#backendChannel.sendRequest(BACKEND.CONFIG_CHANGE_MSG, undefined);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.log.warn(`cannot tell the front end of a configuration change: ${error.message}`);
    }
  }

  async #release(): Promise<void> {
    for (const vring of this.#vrings) await this.#retire(vring);
    this.memory.clear();
    this.#inflight?.close();
    this.#inflight = undefined;
    this.#backendChannel?.close();
    this.#context.lease.release(this);
  }

  async #retire(vring: Vring): Promise<void> {
    await vring.reset();
    this.#context.pump.remove(vring);
  }

  #vring(index: number): Vring {
    const vring = this.#vrings[index];
    if (vring === undefined) throw new Refused(`vring ${index} out of range, the device has ${this.#vrings.length}`);
    return vring;
  }

  get #ringFeatures(): VringFeatures {
    return {
      indirect: hasFeature(this.#features, VIRTIO_F_INDIRECT_DESC),
      eventIdx: hasFeature(this.#features, VIRTIO_F_EVENT_IDX),
    };
  }

  #registerFeatures(): void {
    const { device } = this.#context;
    const offered = device.features | RING_FEATURES;
    const protocolOffered = device.protocolFeatures | CORE_PROTOCOL_FEATURES;
    const d = this.#dispatcher;
    d.on(FRONTEND.SET_OWNER, () => undefined);
    d.on(FRONTEND.RESET_OWNER, () => this.#resetRings());
    d.on(FRONTEND.GET_FEATURES, () => offered);
    d.on(FRONTEND.SET_FEATURES, (accepted) => {
      const unknown = accepted & ~offered;
      if (unknown !== 0n) throw new Refused(`features 0x${unknown.toString(16)} were not offered`);
      // Repeating them is fine (QEMU does it for each pair of queues); rings in service keep theirs.
      if (accepted !== this.#features && this.#vrings.some((vring) => vring.started)) {
        throw new Refused('a ring is started, and other features were negotiated for it');
      }
      this.#features = accepted;
      this.attachment.setFeatures(accepted);
      if (hasFeature(accepted, VHOST_USER_F_PROTOCOL_FEATURES)) return;
      for (const vring of this.#vrings) vring.enabled = true;
      this.wake();
    });
    d.on(FRONTEND.GET_PROTOCOL_FEATURES, () => protocolOffered);
    d.on(FRONTEND.SET_PROTOCOL_FEATURES, (accepted) => {
      const unknown = accepted & ~protocolOffered;
      if (unknown !== 0n) throw new Refused(`protocol features 0x${unknown.toString(16)} were not offered`);
      this.#protocolFeatures = accepted;
      this.#dispatcher.acknowledges = hasFeature(accepted, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    });
    d.on(FRONTEND.GET_QUEUE_NUM, () => BigInt(device.maxQueues));
    d.on(FRONTEND.SET_BACKEND_REQ_FD, (_, [fd]) => {
      if (socketRole((fd as OwnedFd).fd) !== 'connected') throw new Refused('the descriptor is not a connected socket');
      this.#backendChannel?.close();
      this.#backendChannel = new Endpoint(new UnixStream(new OwnedFd((fd as OwnedFd).take())));
    });
  }

  #registerMemory(): void {
    const d = this.#dispatcher;
    d.on(FRONTEND.SET_MEM_TABLE, async (regions, fds) => {
      if (fds.length !== regions.length) {
        throw new ProtocolError(`SET_MEM_TABLE: ${regions.length} regions with ${fds.length} file descriptors`);
      }
      await this.#changeMemory(() => {
        this.memory.clear();
        regions.forEach((region, i) => {
          this.memory.add(region, fds[i] as OwnedFd);
        });
      });
    });
    d.on(FRONTEND.GET_MAX_MEM_SLOTS, () => BigInt(MAX_MEMORY_REGIONS));
    d.on(FRONTEND.ADD_MEM_REG, (region, [fd]) => {
      // QEMU 7.2 says everything once per queue pair of a network device, on the same connection.
      if (this.memory.findExact(region) !== undefined) return;
      this.memory.add(region, fd as OwnedFd);
      this.#placeRings();
    });
    d.on(FRONTEND.REM_MEM_REG, async (region) => {
      const found = this.memory.findExact(region);
      if (found === undefined) {
        if (this.#removed.some((other) => isSameRegion(region, other))) return;
        throw new Refused(`no region of ${region.size} bytes at guest address 0x${region.guestAddress.toString(16)}`);
      }
      await this.#changeMemory(() => this.memory.remove(found));
      this.#removed = [...this.#removed.slice(-MAX_REMEMBERED_REMOVALS), region];
    });
    d.on(FRONTEND.GET_INFLIGHT_FD, (request) => {
      const { reply, fd } = createInflightFd(request, this.#vrings.length);
      return new ReplyWithFds(reply, [fd]);
    });
    d.on(FRONTEND.SET_INFLIGHT_FD, (area, [fd]) => {
      if (this.#vrings.some((vring) => vring.started)) throw new Refused('a ring is started');
      const next = new InflightMemory(area, fd as OwnedFd, this.#vrings.length);
      this.#inflight?.close();
      this.#inflight = next;
      // A region that a killed daemon left behind knows what the driver will not say again; a new one learns it.
      if (next.wasUsed) this.attachment.restoreState(next.deviceState);
      else this.#saveState();
    });
  }

  /** Changes the memory while no ring uses it, and goes on with the rings that are still in it. */
  async #changeMemory(change: () => void): Promise<void> {
    for (const vring of this.#vrings) await vring.displace();
    try {
      change();
    } finally {
      this.#placeRings();
    }
  }

  /** Started rings without a place in memory are looked for again. One that is not there waits for the next change. */
  #placeRings(): void {
    for (const vring of this.#vrings) {
      if (!vring.started || vring.placed) continue;
      try {
        vring.place(this.#ringFeatures, this.#inflightOf(vring));
      } catch (error) {
        if (!isRefusal(error)) throw error;
        this.log.warn(`vring ${vring.index} is out of service: ${error.message}`);
      }
    }
    this.wake();
  }

  #registerVrings(): void {
    const d = this.#dispatcher;
    d.on(FRONTEND.SET_VRING_NUM, ({ index, num }) => {
      const vring = this.#vring(index);
      if (!isSplitQueueSize(num))
        throw new Refused(`vring ${index}: size ${num}, a power of two up to 32768 is possible`);
      if (vring.started) throw new Refused(`vring ${index}: the size of a started ring cannot change`);
      vring.size = num;
    });
    d.on(FRONTEND.SET_VRING_ADDR, async ({ index, descriptor, used, available }) => {
      const vring = this.#vring(index);
      if (vring.started) await vring.displace();
      vring.addresses = { descriptor, used, available };
      if (!vring.started) return;
      vring.place(this.#ringFeatures, this.#inflightOf(vring));
      this.wake();
    });
    d.on(FRONTEND.SET_VRING_BASE, ({ index, num }) => {
      const vring = this.#vring(index);
      if (vring.started) throw new Refused(`vring ${index}: the base of a started ring cannot change`);
      if (num > 0xffff) throw new Refused(`vring ${index}: base ${num}, at most 65535 is possible`);
      vring.base = num;
    });
    d.on(FRONTEND.GET_VRING_BASE, async ({ index }) => {
      const vring = this.#vring(index);
      const num = await vring.stop();
      this.#context.pump.remove(vring);
      if (!this.#vrings.some((other) => other.started)) this.#context.lease.release(this);
      return { index, num };
    });
    d.on(FRONTEND.SET_VRING_KICK, async ({ index, noFd }, fds) => {
      const vring = this.#vring(index);
      const kick = this.#notifier(noFd, fds);
      try {
        await this.#context.lease.acquire(this);
        vring.start(kick, this.#ringFeatures, vring.started ? undefined : this.#inflightOf(vring));
      } catch (error) {
        kick?.close();
        throw error;
      }
      this.#context.pump.add(vring);
    });
    d.on(FRONTEND.SET_VRING_CALL, ({ index, noFd }, fds) => {
      this.#vring(index).setCall(this.#notifier(noFd, fds));
    });
    d.on(FRONTEND.SET_VRING_ERR, ({ index, noFd }, fds) => {
      this.#vring(index).setErr(this.#notifier(noFd, fds));
    });
    d.on(FRONTEND.SET_VRING_ENABLE, ({ index, num }) => {
      const vring = this.#vring(index);
      if (num > 1) throw new Refused(`vring ${index}: enable ${num}, 0 or 1 is possible`);
      vring.enabled = num === 1;
      this.wake();
    });
  }

  #notifier(noFd: boolean, [fd]: readonly OwnedFd[]): Notifier | undefined {
    if (noFd !== (fd === undefined)) {
      throw new ProtocolError(`vring fd message: bit 8 says ${noFd ? 'no' : 'a'} descriptor, the message disagrees`);
    }
    if (fd === undefined) return undefined;
    return new Notifier(new OwnedFd(fd.take()));
  }

  /** The in-flight region of a ring. A ring that has none is served all the same: a disk beats no disk. */
  #inflightOf(vring: Vring): ArrayBuffer | undefined {
    const region = this.#inflight?.queue(vring.index, vring.size);
    if (region === undefined && this.#inflight !== undefined) {
      this.log.warn(`vring ${vring.index} of ${vring.size} entries is not tracked: its in-flight region is smaller`);
    }
    return region;
  }

  #registerDevice(): void {
    const d = this.#dispatcher;
    d.on(FRONTEND.GET_CONFIG, (request) => this.#readConfig(request));
    d.on(FRONTEND.SET_CONFIG, ({ offset, flags, data }) => {
      // rust-vmm numbers the flags differently (1 writable, 2 migration): a driver's write comes with any of them.
      const complaint = this.attachment.writeConfig(offset, data, flags === CONFIG_FLAG_MIGRATION && data.length > 1);
      if (complaint !== undefined) throw new Refused(complaint);
      this.#saveState();
    });
    d.on(FRONTEND.RESET_DEVICE, () => this.#resetDevice());
    d.on(FRONTEND.SET_STATUS, async (status) => {
      if (status > 0xffn) throw new Refused(`device status 0x${status.toString(16)}: it has 8 bits`);
      this.#status = status;
      if (status === 0n) await this.#resetDevice();
    });
    d.on(FRONTEND.GET_STATUS, () => this.#status);
    if (hasFeature(this.#context.device.protocolFeatures, VHOST_USER_PROTOCOL_F_MTU)) this.#registerMtu();
    if (hasFeature(this.#context.device.protocolFeatures, VHOST_USER_PROTOCOL_F_RARP)) this.#registerRarp();
  }

  #registerMtu(): void {
    this.#dispatcher.on(FRONTEND.NET_SET_MTU, (mtu) => {
      const complaint = mtu > 0xffffn ? `MTU ${mtu}: at most 65535 is possible` : this.attachment.setMtu?.(Number(mtu));
      if (complaint !== undefined) throw new Refused(complaint);
    });
  }

  #registerRarp(): void {
    this.#dispatcher.on(FRONTEND.SEND_RARP, (value) => {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, value, true);
      this.attachment.announce?.(bytes.subarray(0, 6));
    });
  }

  async #resetDevice(): Promise<void> {
    await this.#resetRings();
    this.attachment.reset();
    this.#saveState();
  }

  #saveState(): void {
    if (this.#inflight !== undefined) this.#inflight.deviceState = this.attachment.saveState();
  }

  #readConfig({ offset, size, flags }: ConfigSpace): ConfigSpace {
    if (size === 0 || offset > MAX_CONFIG_BYTES || size > MAX_CONFIG_BYTES - offset) {
      throw new Refused(`${size} bytes at ${offset} of a configuration space of at most ${MAX_CONFIG_BYTES} bytes`);
    }
    const padded = new Uint8Array(MAX_CONFIG_BYTES);
    padded.set(this.attachment.readConfig());
    return { offset, size, flags, data: padded.slice(offset, offset + size) };
  }

  async #resetRings(): Promise<void> {
    for (const vring of this.#vrings) {
      await vring.stop();
      this.#context.pump.remove(vring);
      vring.enabled = false;
    }
    this.#context.lease.release(this);
  }
}
