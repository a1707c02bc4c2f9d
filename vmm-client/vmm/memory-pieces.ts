/**
 * RAM as it is told to KVM and to the devices, and pieces of it that come and go while they use the rest. A piece is there
 * for all of them or for none:
 *
 *     comes    GuestRam maps it -> devices (ADD_MEM_REG) -> a memory slot of KVM
 *     goes     the memory slot -> devices (REM_MEM_REG) -> its pages are given back -> GuestRam unmaps it
 *
 * so that nobody has an address of memory that is not there any more.
 */

import { SysError } from '../../protocol/sys/errors.ts';
import type { KvmVm } from '../../protocol/sys/kvm.ts';
import type { GuestRam, RamRange, RamRegion } from './guest-ram.ts';
import type { Log } from './log.ts';

/** Devices that are told of RAM. */
export interface MemoryUsers {
  /** @throws VmError - one of them cannot have it; none has it then */
  addMemory(region: RamRegion): Promise<void>;
  /** Never throws. */
  removeMemory(region: RamRegion): Promise<void>;
}

export class MemoryPieces {
  readonly #ram: GuestRam;
  readonly #log: Pick<Log, 'warn'>;
  #vm: Pick<KvmVm, 'addMemory' | 'removeMemory'> | undefined;
  #users: MemoryUsers | undefined;
  /** Memory slots of KVM, by the guest address of the region. */
  readonly #slots = new Map<number, number>();
  #complained = false;

  constructor(ram: GuestRam, log: Pick<Log, 'warn'>) {
    this.#ram = ram;
    this.#log = log;
  }

  /** Shows a new virtual machine all RAM that is there. @throws SysError */
  connect(vm: Pick<KvmVm, 'addMemory' | 'removeMemory'>): void {
    this.#vm = vm;
    this.#slots.clear();
    for (const region of this.#ram.regions) this.#show(region);
  }

  /** The virtual machine is gone, and its memory slots with it. */
  disconnect(): void {
    this.#vm = undefined;
    this.#slots.clear();
  }

  /** Whom to tell of pieces from now on. They know what is there already, or are told otherwise. */
  tell(users: MemoryUsers): void {
    this.#users = users;
  }

  #show({ region: { guestAddress, size, userAddress } }: RamRegion): void {
    if (this.#vm !== undefined) this.#slots.set(guestAddress, this.#vm.addMemory(guestAddress, size, userAddress));
  }

  #find({ start }: RamRange): RamRegion | undefined {
    return this.#ram.regions.find(({ region }) => region.guestAddress === start);
  }

  has(piece: RamRange): boolean {
    return this.#find(piece) !== undefined;
  }

  /**
   * Adds a piece for everyone. No effect where it is there.
   * @throws SysError, VmConfigError, VmError - somebody cannot have it; it is as before
   */
  async add(piece: RamRange): Promise<void> {
    if (this.has(piece)) return;
    const region = this.#ram.addRegion(piece.start, piece.length);
    try {
      await this.#users?.addMemory(region);
      this.#show(region);
    } catch (error) {
      // Also from devices that were not asked: one that was started meanwhile got all RAM that there was.
      this.#ram.withdrawRegion(region);
      await this.#users?.removeMemory(region);
      this.#ram.removeRegion(region);
      throw error;
    }
  }

  /** Takes a piece from everyone and gives it back to the host. No effect where it is not there. */
  async remove(piece: RamRange): Promise<void> {
    const region = this.#find(piece);
    if (region === undefined) return;
    this.#ram.withdrawRegion(region);
    const slot = this.#slots.get(piece.start);
    this.#slots.delete(piece.start);
    if (slot !== undefined) this.#vm?.removeMemory(slot);
    await this.#users?.removeMemory(region);
    await this.discard(piece);
    this.#ram.removeRegion(region);
  }

  /** Gives a part of a piece back to the host, where its file can. It is there all the same, and zero. */
  async discard({ start, length }: RamRange): Promise<void> {
    try {
      await this.#ram.discard(start, length);
    } catch (error) {
      // The end of the machine came first: all of it is given back.
      if (error instanceof RangeError) return;
      if (!(error instanceof SysError)) throw error;
      if (!this.#complained) this.#log.warn(`memory that the guest gives back stays with it: ${error.message}`);
      this.#complained = true;
    }
  }

  /** Takes the huge pages of a part of a piece from the host, where RAM is of such. @throws SysError - ENOSPC */
  reserve({ start, length }: RamRange): Promise<void> {
    return this.#ram.reserve(start, length);
  }
}
