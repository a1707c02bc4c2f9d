/**
 * The slots for virtio devices of a machine: all of them are always there, each a page of registers and an interrupt, and
 * devices come into them and go out of them, also while the guest runs. Registers are read from the page itself, read-only
 * memory of the guest, and without an exit; writes exit to the transport of the slot. slots/filled-slot.ts says how
 * notifications go, hotplug/register-offsets.ts how the guest hears of changes.
 */

import type { KvmVm } from '../../protocol/sys/kvm.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import type { PinnedMemory } from '../../protocol/sys/pinned.ts';
import type { DirtyRange } from '../frontend/dirty-bitmap.ts';
import type { SharedRegion } from '../frontend/hand-over.ts';
import type { Bus, BusDevice } from './bus.ts';
import { VmConfigError, VmConflictError } from './errors.ts';
import { HotplugRegisters } from './hotplug/hotplug-registers.ts';
import {
  HOTPLUG_ADDRESS,
  HOTPLUG_GSI,
  MAX_VIRTIO_DEVICES,
  PAGE_BYTES,
  slotAddress,
  VIRTIO_MMIO_ADDRESS,
  VIRTIO_MMIO_BYTES,
} from './layout.ts';
import type { ObservedSlot } from './queues/observed.ts';
import type { FilledSlot } from './slots/filled-slot.ts';
import { LeavingDevices } from './slots/leaving.ts';
import type { OpenedDevice, OpenOptions } from './slots/open-device.ts';
import { isBehindIommu, isLocal, type PlannedDevice, type PlannedRemote } from './slots/plan.ts';
import { HOTPLUG_PAGE, readPage, SLOT_PAGES, showPages } from './slots/register-pages.ts';
import { SlotTable } from './slots/slot-table.ts';
import type { SlotsState } from './slots/slots-state.ts';
import { showEmptySlot } from './virtio-mmio/register-page.ts';

export interface SlotsOptions extends OpenOptions {
  /** Where the registers go. */
  readonly bus: Bus;
}

/** A device of a machine, for people. */
export interface MachineDevice {
  readonly id: string;
  readonly kind: PlannedDevice['kind'];
  readonly slot: number;
  /** Guest physical address of its registers. */
  readonly address: number;
  /** Global system interrupt. */
  readonly interrupt: number;
  /** `added`: the guest has not acknowledged that it came. */
  readonly state: 'present' | 'added' | 'removal requested';
}

export class VirtioSlots {
  readonly #options: SlotsOptions;
  readonly #hotplug: HotplugRegisters;
  readonly #interrupt: OwnedFd;
  readonly #notifier: Notifier;
  /** Takes acknowledgements that need no attention; nobody reads it. */
  readonly #acknowledged: OwnedFd;
  readonly #table = new SlotTable();
  /** Devices that are being opened. */
  readonly #coming = new Set<string>();
  readonly #leaving = new LeavingDevices();
  #vm: KvmVm | undefined;
  /** Slots that the guest's tables have as endpoints of the IOMMU. */
  #endpoints: readonly number[] = [];
  #isLogging = false;

  private constructor(options: SlotsOptions) {
    this.#options = options;
    this.#acknowledged = createEventFd();
    this.#interrupt = createEventFd();
    this.#notifier = new Notifier(this.#interrupt.duplicate());
    for (const page of SLOT_PAGES) showEmptySlot(page);
    this.#hotplug = new HotplugRegisters(HOTPLUG_PAGE, {
      raise: () => this.#notifier.signal(),
      eject: (slot) => this.#eject(slot),
    });
    options.bus.add(VIRTIO_MMIO_ADDRESS, MAX_VIRTIO_DEVICES * VIRTIO_MMIO_BYTES, this.#registers());
    options.bus.add(HOTPLUG_ADDRESS, PAGE_BYTES, this.#hotplug);
  }

  /**
   * Connects to the back ends of all devices, starting the daemons of those that have none, and puts the devices into the
   * slots that they have to have, or into the first that are free.
   * @throws VmConfigError, VmError, SysError - one cannot be had; nothing is left of the others
   */
  static async open(planned: readonly PlannedDevice[], options: SlotsOptions): Promise<VirtioSlots> {
    const slots = new VirtioSlots(options);
    try {
      if (planned.length > 0) await slots.#fillAll(planned);
      return slots;
    } catch (error) {
      await slots.close();
      throw error;
    }
  }

  /** Shows all slots to a virtual machine, which has none of this yet. Without read-only memory registers are read by exits. */
  connect(vm: KvmVm, hasReadOnlyMemory: boolean): void {
    this.#vm = vm;
    if (hasReadOnlyMemory) showPages(vm);
    vm.addIrqFd(this.#interrupt.fd, HOTPLUG_GSI);
    for (const slot of this.#filled) slot.connect(vm);
  }

  /**
   * Resets every device, for a virtual machine to come; the last one is gone. Devices that are wanted back are taken out.
   * Resolves when no back end touches guest memory.
   */
  async reset(): Promise<void> {
    this.#vm = undefined;
    for (const slot of this.#filled) {
      slot.forget();
      if (slot.isRemovalRequested) void this.#takeOut(slot);
    }
    await Promise.all([this.#leaving.ended(), ...this.#filled.map(({ transport }) => transport.reset())]);
    await this.#options.iommu?.systemReset();
    this.#hotplug.reset();
    this.#table.forgetUse();
  }

  /**
   * Opens a device, puts it into a slot and tells the guest.
   * @throws VmConflictError - there is one of that id
   * @throws VmConfigError - no slot is free for it, or it cannot be
   * @throws VmError, SysError - it cannot be had; nothing is left of it
   */
  async add(planned: PlannedRemote): Promise<{ readonly id: string; readonly slot: number }> {
    const { id } = planned;
    if (this.#coming.has(id) || this.#filled.some((slot) => slot.id === id)) {
      throw new VmConflictError(`device "${id}": the machine has one of that id`);
    }
    if (this.#leaving.has(id)) throw new VmConflictError(`device "${id}": one of that id is still ending`);
    const slot = this.#take(planned);
    this.#coming.add(id);
    try {
      const { openPlanned } = await import('./slots/open-device.ts');
      await this.#fill(slot, await openPlanned(planned, slot, this.#options));
    } catch (error) {
      this.#table.giveBack(slot);
      throw error;
    } finally {
      this.#coming.delete(id);
    }
    this.#hotplug.add(slot);
    return { id, slot };
  }

  /**
   * Asks the guest to let go of a device, again where it was asked before. The device is gone when the guest ejects it.
   * @throws VmNotFoundError - there is none
   * @throws VmConfigError - it is the machine's own
   */
  requestRemoval(id: string): void {
    const slot = this.#table.find(id);
    if (isLocal(slot.planned)) throw new VmConfigError(`device "${id}" is part of the machine and cannot be removed`);
    slot.isRemovalRequested = true;
    this.#hotplug.requestRemoval(slot.index);
  }

  /** Asks the guest to shut down, by the button whose event comes with those of the slots. */
  pressPowerButton(): void {
    this.#hotplug.pressPowerButton();
  }

  /** All devices, in the order of their slots. */
  devices(): readonly MachineDevice[] {
    return this.#filled.map(({ id, planned, index, address, gsi, isRemovalRequested }) => {
      const present = this.#hotplug.isAdded(index) ? 'added' : 'present';
      const state = isRemovalRequested ? 'removal requested' : present;
      return { id, kind: planned.kind, slot: index, address, interrupt: gsi, state };
    });
  }

  /**
   * Makes a disk larger whose image was named to this VMM. The guest is told when its daemon has seen it.
   * @throws VmNotFoundError - there is none
   * @throws VmConfigError - it cannot be
   * @throws VmError - the host refuses
   */
  async resizeDisk(id: string, bytes: number): Promise<void> {
    const { planned, daemon } = this.#table.find(id);
    const { resizeDisk } = await import('./hotplug/resize-disk.ts');
    await resizeDisk(planned, daemon, bytes);
  }

  /**
   * The slots that the tables of a start tell the guest as endpoints of its IOMMU: those with a device behind it and those
   * that are empty. A device behind the IOMMU can come into these alone, until the next start.
   */
  listEndpoints(): readonly { readonly id: number; readonly address: number }[] {
    const others = this.#filled.filter(({ planned }) => !isBehindIommu(planned)).map(({ index }) => index);
    this.#endpoints = SLOT_PAGES.map((_, index) => index).filter((index) => !others.includes(index));
    return this.#endpoints.map((index) => ({ id: index, address: slotAddress(index) }));
  }

  /**
   * Stops all devices, which go on by `resume`, or elsewhere by `restore`. Nothing touches guest memory afterwards.
   * @throws VmError - one does not; the others have gone on
   */
  async suspend(): Promise<SlotsState> {
    const { suspendSlots } = await import('./slots/moving.ts');
    const slots = await suspendSlots(this.#filled, this.#hotplug);
    const { isPowerButtonPressed } = this.#hotplug;
    return { slots, endpoints: this.#endpoints, isPowerButtonPressed };
  }

  /** Goes on after `suspend`. */
  async resume(): Promise<void> {
    await Promise.all(this.#filled.map(({ transport }) => transport.resume()));
  }

  /**
   * Lets devices that were only opened go on where others were suspended, an IOMMU first. A device without a state was
   * ejected elsewhere, and goes.
   * @throws VmError - the state is none, or does not fit
   */
  async restore(value: unknown): Promise<void> {
    const { parseSlotsState } = await import('./slots/slots-state.ts');
    const { slots, endpoints, isPowerButtonPressed } = parseSlotsState(value);
    for (const slot of this.#filled) {
      if (!slots.some((state) => state.slot === slot.index)) void this.#takeOut(slot);
    }
    await this.#leaving.ended();
    const { restoreSlots } = await import('./slots/moving.ts');
    await restoreSlots(this.#filled, slots, this.#hotplug);
    this.#endpoints = endpoints;
    if (isPowerButtonPressed) this.#hotplug.pressPowerButton();
  }

  /** Tells networks that their stations are here now, after `restore`. Never throws. */
  async announce(): Promise<void> {
    await Promise.all(this.#filled.map(({ transport }) => transport.announce()));
  }

  /** From now on `takeDirty` has what devices write. @throws VmError - one cannot note that; none does */
  async startDirtyLog(): Promise<void> {
    if (this.#isLogging) return;
    const { startDirtyLogs } = await import('./slots/moving.ts');
    await startDirtyLogs(this.#filled);
    this.#isLogging = true;
  }

  /** What devices wrote since the log was started or this was last called. */
  takeDirty(): DirtyRange[] {
    return [...this.#leaving.takeDirty(), ...this.#filled.flatMap(({ transport }) => [...transport.takeDirty()])];
  }

  async stopDirtyLog(): Promise<void> {
    this.#isLogging = false;
    this.#leaving.takeDirty();
    await Promise.all(this.#filled.map(({ transport }) => transport.stopDirtyLog()));
  }

  /** Tells all devices of RAM that was added to the guest's. @throws VmError - one cannot have it; none has it then */
  async addMemory(region: SharedRegion): Promise<void> {
    const { addMemoryToAll } = await import('./slots/moving.ts');
    await addMemoryToAll(this.#filled, region);
  }

  /** Takes such RAM away again. The caller proves that no driver uses any of it. */
  async removeMemory(region: SharedRegion): Promise<void> {
    const { removeMemoryFromAll } = await import('./slots/moving.ts');
    await removeMemoryFromAll(this.#filled, region);
  }

  counters(): Record<string, Record<string, number>> {
    return Object.fromEntries(this.#filled.map(({ id, transport }) => [id, transport.counters()]));
  }

  /** What can be seen of the devices at this moment, for those who watch. */
  observe(): readonly ObservedSlot[] {
    return this.#filled.map(({ id, index, planned, transport }) => {
      const iommu = isBehindIommu(planned) ? this.#options.iommu?.endpoint(index) : undefined;
      return { id, slot: index, device: transport.observe(), iommu };
    });
  }

  /** Lets go of all back ends and ends the daemons that were started for them. */
  async close(): Promise<void> {
    this.#vm = undefined;
    const daemons = this.#filled.map((slot) => {
      this.#table.empty(slot.index);
      slot.close();
      return slot.daemon?.stop();
    });
    this.#notifier.close();
    this.#interrupt.close();
    this.#acknowledged.close();
    await Promise.all([...daemons, this.#leaving.ended()]);
  }

  get #filled(): readonly FilledSlot[] {
    return this.#table.filled;
  }

  /** The registers of all slots. Nobody hears what is written to an empty one; KVM cuts what crosses from one to the next. */
  #registers(): BusDevice {
    const slotOf = (offset: number): number => Math.floor(offset / VIRTIO_MMIO_BYTES);
    return {
      read: (offset, size) => readPage(SLOT_PAGES[slotOf(offset)] as PinnedMemory, offset % VIRTIO_MMIO_BYTES, size),
      write: (offset, size, value) =>
        this.#table.at(slotOf(offset))?.transport.write(offset % VIRTIO_MMIO_BYTES, size, value),
    };
  }

  #take(planned: PlannedDevice): number {
    // Before the first start there are no tables.
    const isAnyGood = this.#vm === undefined || !isBehindIommu(planned);
    return this.#table.take(planned, (slot) => isAnyGood || this.#endpoints.includes(slot));
  }

  /** Those that have to have a slot first. @throws - as `open` */
  async #fillAll(planned: readonly PlannedDevice[]): Promise<void> {
    const fixed = planned.filter(({ slot }) => slot !== undefined);
    const others = planned.filter(({ slot }) => slot === undefined);
    const places = new Map([...fixed, ...others].map((each) => [each, this.#take(each)]));
    const { openAll, openPlanned } = await import('./slots/open-device.ts');
    const opened = await openAll(planned.map((each) => openPlanned(each, places.get(each) as number, this.#options)));
    const filled = await Promise.allSettled(opened.map((each) => this.#fill(places.get(each.planned) as number, each)));
    for (const result of filled) if (result.status === 'rejected') throw result.reason;
    for (const { index } of this.#filled) this.#hotplug.showPresent(index);
  }

  /** Puts an opened device, which it takes over in any case, into a slot, and shows it to the virtual machine that there is. */
  async #fill(index: number, opened: OpenedDevice): Promise<void> {
    let slot: FilledSlot | undefined;
    try {
      const [{ VirtioMmioTransport: Transport }, { FilledSlot }] = await Promise.all([
        import('./virtio-mmio/transport.ts'),
        import('./slots/filled-slot.ts'),
      ]);
      const registers = SLOT_PAGES[index] as PinnedMemory;
      const log = (line: string): void => this.#options.log.warn(line);
      slot = new FilledSlot(opened, { index, registers, acknowledged: this.#acknowledged, Transport, log });
      if (this.#isLogging) await slot.transport.startDirtyLog();
      if (this.#vm !== undefined) slot.connect(this.#vm);
      this.#table.put(slot);
    } catch (error) {
      slot?.close();
      const { closeOpened } = await import('./slots/open-device.ts');
      await closeOpened(opened);
      throw error;
    }
  }

  /** The guest has let go of a device. Its own ones the machine keeps. */
  #eject(index: number): void | Promise<void> {
    const slot = this.#table.at(index);
    if (slot === undefined || isLocal(slot.planned)) return;
    return this.#takeOut(slot);
  }

  /** Takes a device out of its slot, which is free when its daemon has ended. Kept when nothing touches guest memory. */
  #takeOut(slot: FilledSlot): Promise<void> {
    const { id, index } = slot;
    this.#table.empty(index);
    this.#hotplug.remove(index);
    slot.disconnect();
    return this.#leaving.unplug(slot, this.#isLogging, () => {
      this.#table.release(index);
      this.#options.log.info(`device "${id}" is removed from slot ${index}`);
    });
  }
}
