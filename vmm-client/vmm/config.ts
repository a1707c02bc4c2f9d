/**
 * The configuration of a virtual machine, in the JSON shape of Cloud Hypervisor's VmConfig (so the names are its own), as
 * far as this VMM has what it names. Sizes are bytes.
 */

export interface VmConfig {
  readonly payload: PayloadConfig;
  readonly cpus?: CpusConfig;
  readonly memory?: MemoryConfig;
  readonly disks?: readonly DiskConfig[];
  readonly net?: readonly NetConfig[];
  readonly fs?: readonly FsConfig[];
  readonly vsock?: VsockConfig;
  readonly serial?: ConsoleConfig;
  readonly console?: ConsoleConfig;
}

export interface PayloadConfig {
  /** Path of a vmlinux (ELF) or bzImage. */
  readonly kernel: string;
  readonly initramfs?: string;
  readonly cmdline?: string;
}

export interface CpusConfig {
  readonly boot_vcpus: number;
  /** Not above boot_vcpus yet: vCPUs are not hotplugged. */
  readonly max_vcpus: number;
  /** Names of CPUID features that the guest is not to see, such as `cx16`. An extension of ringside. */
  readonly hide?: readonly string[];
}

export interface MemoryConfig {
  readonly size: number;
  /** Always on: back ends could not serve the guest otherwise. False is refused. */
  readonly shared?: boolean;
  readonly hugepages?: boolean;
  /** A file, or a directory for a file without a name, in the place of anonymous memory. */
  readonly file?: string;
  /** What vm.resize may add to `size`: a virtio-mem device is there when it is above 0. */
  readonly hotplug_size?: number;
  /** What is added from the start on, of `hotplug_size`. */
  readonly hotplugged_size?: number;
}

/** What every device served by a vhost-user back end has. */
export interface DeviceConfig {
  /** Unique among the devices; made up (`_disk0`) where absent. */
  readonly id?: string;
  /** Request queues for disks, rings (twice the pairs) for networks, as in Cloud Hypervisor. */
  readonly num_queues?: number;
  /** Entries. */
  readonly queue_size?: number;
  /** The guest's addresses of it go through the virtio-iommu, which is there when a device wants it. */
  readonly iommu?: boolean;
  /** The driver is offered packed rings. Default false: split ones are served faster. */
  readonly packed?: boolean;
}

export interface DiskConfig extends DeviceConfig {
  /** Exactly one of `path` (the VMM starts a vhost-user-blk for it) and `vhost_socket`. */
  readonly path?: string;
  readonly vhost_user?: boolean;
  readonly vhost_socket?: string;
  readonly readonly?: boolean;
  readonly direct?: boolean;
  readonly serial?: string;
}

export interface NetConfig extends DeviceConfig {
  /** Exactly one of `tap` (the VMM starts a vhost-user-net for it) and `vhost_socket`. */
  readonly tap?: string;
  readonly vhost_user?: boolean;
  readonly vhost_socket?: string;
  readonly mac?: string;
  readonly mtu?: number;
}

export interface FsConfig extends DeviceConfig {
  readonly tag: string;
  readonly socket: string;
}

export interface VsockConfig extends DeviceConfig {
  readonly cid: number;
  /** The vhost-user socket of the back end. */
  readonly socket: string;
}

export interface ConsoleConfig {
  readonly mode: 'Off' | 'Null' | 'Tty' | 'File';
  /** Where the output goes in mode File. */
  readonly file?: string;
}
