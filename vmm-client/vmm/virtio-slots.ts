/**
 * The virtio devices of a machine, each in a slot: a page of registers, an interrupt, and the eventfds by which the guest
 * and the back end reach each other without this process. Slots are filled from the first: disks, networks, file systems,
 * vsock.
 *
 *     reads of registers      from the page itself, a read-only memory slot of KVM: no exit
 *     writes of registers     exit to the transport
 *     QueueNotify             ioeventfd -> the back end's kick: no exit
 *     the back end's call     irqfd -> I/O APIC
 *     InterruptACK of VRING   ioeventfd that nobody reads: InterruptStatus always has that bit
 */

import type { KvmVm } from '../../protocol/sys/kvm.ts';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { allocatePinned, PinnedMemory } from '../../protocol/sys/pinned.ts';
import { VIRTIO_MMIO, VIRTIO_MMIO_INT_VRING } from '../../protocol/virtio/mmio.ts';
import type { Bus } from './bus.ts';
import type { CheckedConfig } from './check-config.ts';
import { type DaemonCommand, diskDaemon, netDaemon } from './daemon-commands.ts';
import type { DeviceDescription } from './devices/open.ts';
import type { VhostUserDevice } from './devices/vhost-user-device.ts';
import type { GuestRam } from './guest-ram.ts';
import { FIRST_VIRTIO_GSI, MAX_VIRTIO_DEVICES, PAGE_BYTES, VIRTIO_MMIO_ADDRESS, VIRTIO_MMIO_BYTES } from './layout.ts';
import type { Log } from './log.ts';
import type { MachineEnvironment } from './machine.ts';
import type { SupervisedDaemon } from './supervisor.ts';
import type { VirtioMmioTransport } from './virtio-mmio/transport.ts';

// One machine at a time runs in a process, and memory with a fixed address is not given back: its pages are used again.
const registerPages = allocatePinned(MAX_VIRTIO_DEVICES * PAGE_BYTES);

/** A device of the configuration, and the daemon that has to be started for it. */
interface Planned {
  readonly id: string;
  readonly device: DeviceDescription;
  readonly daemon: DaemonCommand | undefined;
}

interface Slot {
  readonly id: string;
  readonly address: number;
  readonly gsi: number;
  readonly registers: PinnedMemory;
  readonly interrupt: OwnedFd;
  readonly kicks: readonly OwnedFd[];
  readonly transport: VirtioMmioTransport;
}

export class VirtioSlots {
  readonly #slots: readonly Slot[];
  readonly #supervised: readonly SupervisedDaemon[];
  /** Takes acknowledgements that need no attention; nobody reads it. */
  readonly #acknowledged: OwnedFd;

  private constructor(slots: readonly Slot[], supervised: readonly SupervisedDaemon[]) {
    this.#slots = slots;
    this.#supervised = supervised;
    this.#acknowledged = createEventFd();
  }

  /**
   * Connects to the back ends of all devices of `config`, starting the daemons of those that have none, and puts the
   * devices on `bus`.
   * @throws VmConfigError, VmError - one cannot be had; nothing is left of the others
   */
  static async open(
    config: CheckedConfig,
    ram: GuestRam,
    bus: Bus,
    { log, supervisor }: MachineEnvironment,
  ): Promise<VirtioSlots> {
    const planned = planDevices(config);
    if (planned.length === 0) return new VirtioSlots([], []);
    const supervised: SupervisedDaemon[] = [];
    const start = async (command: DaemonCommand): Promise<string> => {
      const daemon = await supervisor.start(command);
      supervised.push(daemon);
      return daemon.socket;
    };
    const open = async ({ device, daemon }: Planned): Promise<VhostUserDevice> => {
      const options = { ram, log: (line: string) => log.warn(line) };
      const daemonOptions = daemon === undefined ? options : { ...options, socket: await start(daemon) };
      // Loaded only now: a daemon starts meanwhile, and a guest without devices does not wait for their code.
      const { openDevice } = await import('./devices/open.ts');
      return openDevice(device, daemonOptions);
    };
    const opened = await Promise.allSettled(planned.map(open));
    const { VirtioMmioTransport: Transport } = await import('./virtio-mmio/transport.ts');
    const devices = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    const slots: Slot[] = [];
    try {
      const failed = opened.find((result) => result.status === 'rejected');
      if (failed !== undefined) throw failed.reason;
      for (const [index, device] of devices.entries())
        slots.push(fillSlot(Transport, index, planned[index]?.id ?? '', device, bus, log));
      return new VirtioSlots(slots, supervised);
    } catch (error) {
      for (const slot of slots) closeSlot(slot);
      for (const device of devices) device.close();
      await Promise.all(supervised.map((daemon) => daemon.stop()));
      throw error;
    }
  }

  /** Where the devices are, for the guest's tables. */
  get locations(): readonly { readonly address: number; readonly gsi: number }[] {
    return this.#slots;
  }

  /** Shows all devices to a virtual machine, which has none of this yet. Without read-only slots registers are read by exits. */
  connect(vm: KvmVm, hasReadOnlyMemory: boolean): void {
    for (const { address, gsi, registers, interrupt, kicks } of this.#slots) {
      if (hasReadOnlyMemory) vm.addMemory(address, PAGE_BYTES, registers.address, true);
      vm.addIrqFd(interrupt.fd, gsi);
      vm.addIoEventFd(this.#acknowledged.fd, address + VIRTIO_MMIO.interrupt_ack, VIRTIO_MMIO_INT_VRING);
      for (const [queue, kick] of kicks.entries()) {
        vm.addIoEventFd(kick.fd, address + VIRTIO_MMIO.queue_notify, queue);
      }
    }
  }

  /** Resets every device. Resolves when no back end touches guest memory. */
  async reset(): Promise<void> {
    await Promise.all(this.#slots.map(({ transport }) => transport.reset()));
  }

  counters(): Record<string, Record<string, number>> {
    return Object.fromEntries(this.#slots.map(({ id, transport }) => [id, transport.counters()]));
  }

  /** Lets go of all back ends and ends the daemons that were started for them. */
  async close(): Promise<void> {
    for (const slot of this.#slots) closeSlot(slot);
    this.#acknowledged.close();
    await Promise.all(this.#supervised.map((daemon) => daemon.stop()));
  }
}

function planDevices(config: CheckedConfig): Planned[] {
  const plan = (device: DeviceDescription, id: string, daemon?: DaemonCommand): Planned => ({ id, device, daemon });
  return [
    ...config.disks.map(({ path, ...disk }) => {
      const daemon = path === undefined ? undefined : diskDaemon({ ...disk, path });
      return plan({ kind: 'disk', config: disk }, disk.id, daemon);
    }),
    ...config.net.map(({ tap, ...net }) => {
      const daemon = tap === undefined ? undefined : netDaemon({ ...net, tap });
      return plan({ kind: 'net', config: net }, net.id, daemon);
    }),
    ...config.fs.map((fs) => plan({ kind: 'fs', config: fs }, fs.id)),
    ...(config.vsock === undefined ? [] : [plan({ kind: 'vsock', config: config.vsock }, config.vsock.id)]),
  ];
}

function fillSlot(
  Transport: typeof VirtioMmioTransport,
  index: number,
  id: string,
  device: VhostUserDevice,
  bus: Bus,
  log: Log,
): Slot {
  const address = VIRTIO_MMIO_ADDRESS + index * VIRTIO_MMIO_BYTES;
  const offset = index * PAGE_BYTES;
  const { buffer } = registerPages.data;
  const registers = new PinnedMemory(registerPages.address + offset, buffer as ArrayBuffer, offset, PAGE_BYTES);
  registers.bytes.fill(0);
  const eventFds: OwnedFd[] = [];
  try {
    while (eventFds.length <= device.queueSizes.length) eventFds.push(createEventFd());
    const [interrupt, ...kicks] = eventFds as [OwnedFd, ...OwnedFd[]];
    const transport = new Transport(device, { registers, interrupt, kicks, log: (line) => log.warn(line) });
    bus.add(address, VIRTIO_MMIO_BYTES, transport);
    return { id, address, gsi: FIRST_VIRTIO_GSI + index, registers, interrupt, kicks, transport };
  } catch (error) {
    for (const fd of eventFds) fd.close();
    throw error;
  }
}

function closeSlot({ transport, interrupt, kicks }: Slot): void {
  transport.close();
  interrupt.close();
  for (const kick of kicks) kick.close();
}
