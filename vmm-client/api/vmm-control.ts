/**
 * What the HTTP API asks of the machine, one operation a route. Operations may be called at any time and in any number at
 * once; whoever implements this puts them in order. Failures are VmConfigError (the configuration cannot be), VmStateError
 * (nothing created; not in the state that is needed), VmNotFoundError and VmConflictError (a name that nothing has, or that
 * something has), or anything else that has a sentence.
 */

import type { Readable } from 'node:stream';
import type { DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig } from '../vmm/config.ts';
import type { MachineReport } from '../vmm/queues/queue-report.ts';

/** Answer of vmm.ping. */
export interface VmmPing {
  readonly build_version: string;
  readonly version: string;
  readonly pid: number;
  readonly features: readonly string[];
}

export type VmState = 'Created' | 'Running' | 'Shutdown' | 'Paused';

/** Answer of vm.info. */
export interface VmInfo {
  readonly config: VmConfig;
  readonly state: VmState;
  /** Bytes. */
  readonly memory_actual_size: number;
  readonly device_tree?: Readonly<Record<string, DeviceNode>>;
}

/** One device, in the shape of Cloud Hypervisor's DeviceNode; from `slot` on ringside's own. */
export interface DeviceNode {
  readonly id: string;
  /** Its registers and its interrupt, as Cloud Hypervisor writes them: `MmioAddressRange`, `LegacyIrq`. */
  readonly resources: readonly object[];
  readonly parent: string | null;
  readonly children: readonly string[];
  /** There is no PCI bus. */
  readonly pci_bdf: null;
  readonly kind: string;
  /** Of the virtio-mmio transports, from 0; the endpoint id at the virtio-iommu. */
  readonly slot: number;
  /** Guest physical, of the page of registers. */
  readonly address: number;
  /** Global system interrupt. */
  readonly interrupt: number;
  readonly state: DeviceState;
}

/** `added`: the guest has not taken notice yet; `removal requested`: it has not let go yet. */
export type DeviceState = 'present' | 'added' | 'removal requested';

/** Answer of vm.counters: device, then counter. */
export type VmCounters = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** Answer of vm.add-*, where the machine runs. */
export interface AddedDevice {
  readonly id: string;
  readonly slot: number;
}

export interface VmRemoveDevice {
  readonly id: string;
}

export interface VmResize {
  /** No other number than there are. */
  readonly desired_vcpus?: number;
  /** Bytes altogether. */
  readonly desired_ram?: number;
}

export interface VmResizeDisk {
  readonly id: string;
  /** Bytes. */
  readonly desired_size: number;
}

export interface VmSnapshotConfig {
  /** `file:///DIRECTORY` */
  readonly destination_url: string;
}

/** Where a device of a restored machine is found on this host: one of the three, the one that it was found by before. */
export interface RestoredDevice {
  readonly id: string;
  readonly socket?: string;
  readonly path?: string;
  readonly tap?: string;
}

export interface RestoreConfig {
  /** `file:///DIRECTORY` */
  readonly source_url: string;
  /** The guest goes on at once; the machine is Paused otherwise. */
  readonly resume?: boolean;
  readonly devices?: readonly RestoredDevice[];
}

export interface SendMigrationData {
  /** `unix:PATH` or `tcp:HOST:PORT` */
  readonly destination_url: string;
  /** For how long the guest may stand still. */
  readonly downtime_ms?: number;
  /** The migration is given up after it. */
  readonly timeout_s?: number;
  /** The destination, on this host, gets the memory itself. */
  readonly local?: boolean;
  /** A guest that writes faster than is sent is slowed down (default). */
  readonly auto_converge?: boolean;
}

export interface ReceiveMigrationData {
  /** Where to listen: `unix:PATH` or `tcp:HOST:PORT` */
  readonly receiver_url: string;
  readonly devices?: readonly RestoredDevice[];
}

export type LongOperationName = 'snapshot' | 'restore' | 'send-migration' | 'receive-migration';

/** Answer of vm.progress. */
export interface VmProgress {
  readonly operation: LongOperationName;
  /** At the end `completed`, `cancelled` or `failed`. */
  readonly phase: string;
  /** Of memory: the first sends all of it, each further one what was written meanwhile. */
  readonly round: number;
  readonly bytes_done: number;
  readonly bytes_total: number;
  /** Written since it was sent. */
  readonly dirty_bytes: number;
  readonly bytes_per_second: number;
  readonly elapsed_ms: number;
  /** False while the guest writes faster than is sent. */
  readonly converges?: boolean;
  /** For how much of the time the vCPUs are held therefore. */
  readonly throttle_percent?: number;
  /** For how long the guest stood still, known at the end. */
  readonly downtime_ms?: number;
  /** Why nothing came of it. */
  readonly error?: string;
}

/** Answer of vm.console: bytes, until the machine ends, the reader does not keep up, or `finish` is called. */
export interface ConsoleStream extends Readable {
  finish(): void;
}

export interface VmConsoleInput {
  readonly text: string;
}

export interface VmmControl {
  ping(): VmmPing;
  /** Takes over a configuration that `checkConfig` has passed. @throws VmStateError VM_STATE - there is one already */
  create(config: VmConfig): Promise<void>;
  boot(): Promise<void>;
  info(): Promise<VmInfo>;
  counters(): Promise<VmCounters>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  shutdown(): Promise<void>;
  /** Asks the guest to shut down; kept when it has been asked. */
  pressPowerButton(): Promise<void>;
  reboot(): Promise<void>;
  // What adds a device is kept with nothing where the machine is only created: the device is in its configuration then.
  addDisk(disk: DiskConfig): Promise<AddedDevice | undefined>;
  addNet(net: NetConfig): Promise<AddedDevice | undefined>;
  addFs(fs: FsConfig): Promise<AddedDevice | undefined>;
  addVsock(vsock: VsockConfig): Promise<AddedDevice | undefined>;
  /** Asks the guest to let go; kept when it has been asked. */
  removeDevice(request: VmRemoveDevice): Promise<void>;
  /** Kept when the guest has been asked. */
  resize(request: VmResize): Promise<void>;
  resizeDisk(request: VmResizeDisk): Promise<void>;
  // These take their time; one of them at once. They are kept when they are done.
  snapshot(request: VmSnapshotConfig): Promise<void>;
  restore(request: RestoreConfig): Promise<void>;
  sendMigration(request: SendMigrationData): Promise<void>;
  receiveMigration(request: ReceiveMigrationData): Promise<void>;
  /** Kept when the migration has ended; it may have succeeded. */
  cancelMigration(): Promise<void>;
  /** What can be seen of queues and vCPUs. The first answer takes a quarter of a second, in which they are watched. */
  queues(): Promise<MachineReport>;
  /** What the guest sent by its serial port of late, and what it sends. */
  console(): Promise<ConsoleStream>;
  consoleInput(input: VmConsoleInput): Promise<void>;
  /** Of the long operation that is under way, or of the last one. */
  progress(): VmProgress;
  /** Shuts down what runs, then forgets the configuration. With no configuration nothing happens (as Cloud Hypervisor). */
  delete(): Promise<void>;
  /**
   * Deletes the machine and lets the process end. The promise is kept when the machine is gone; it must not wait for
   * `ApiServer.close`, which in its turn waits for the answer to this.
   */
  shutdownVmm(): Promise<void>;
}
