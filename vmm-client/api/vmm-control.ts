/**
 * What the HTTP API asks of the machine, one operation a route. Operations may be called at any time and in any number at
 * once; whoever implements this puts them in order. Failures are VmConfigError (the configuration cannot be), VmStateError
 * (nothing created; not in the state that is needed), or anything else that has a sentence.
 */

import type { VmConfig } from '../vmm/config.ts';

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

/** One device, in the shape of Cloud Hypervisor's DeviceNode. */
export interface DeviceNode {
  readonly id: string;
  readonly resources: readonly unknown[];
  readonly parent: string | null;
  readonly children: readonly string[];
  /** There is no PCI bus. */
  readonly pci_bdf: null;
}

/** Answer of vm.counters: device, then counter. */
export type VmCounters = Readonly<Record<string, Readonly<Record<string, number>>>>;

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
  reboot(): Promise<void>;
  /** Shuts down what runs, then forgets the configuration. With no configuration nothing happens (as Cloud Hypervisor). */
  delete(): Promise<void>;
  /**
   * Deletes the machine and lets the process end. The promise is kept when the machine is gone; it must not wait for
   * `ApiServer.close`, which in its turn waits for the answer to this.
   */
  shutdownVmm(): Promise<void>;
}
