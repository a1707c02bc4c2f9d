/** Memory slots of a virtual machine: which pages a guest has written, and memory and eventfds that come and go. */

import { expect, it } from 'vitest';
import type { DirtyRange } from '../../protocol/sys/dirty-pages.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { describeWithPeers } from '../support/peers.ts';
import { modules, ProcessorsRig, processorsPeers } from './processors-rig.ts';

const PAGE = 4096;
const LIST = 0x2000;
const MEMORY_BYTES = 0x30_0000;
const WILD_START = 0x10_0000;
const WILD_END = 0x30_0000;
/** Three slots, two of which the wild part of the program writes to. */
const SLOTS = [0, 0x10_0000, 0x20_0000];
const WILD = 1;
/** Enough that `allocatePinned` maps it by itself, in whole pages. */
const ADDED_BYTES = 0x2_0000;

const range = (guestAddress: number, pages: number): DirtyRange => ({ guestAddress, length: pages * PAGE });

describeWithPeers(processorsPeers, 'Memory of a virtual machine', () => {
  const cleanup = cleanupAfterEach();

  /** A guest that has not begun. */
  const open = () => {
    const rig = new ProcessorsRig(cleanup, 'dirty', MEMORY_BYTES);
    const processors = rig.boot(1, { rax: 1 }, { slots: SLOTS });
    const list = (addresses: readonly number[]): void => {
      for (const [at, address] of [...addresses, 0].entries()) rig.memory.data.setUint32(LIST + 4 * at, address, true);
    };
    let answer: () => void = () => undefined;
    rig.onAccess = (access) =>
      access !== 'in d8'
        ? undefined
        : new Promise((resolve) => {
            answer = resolve;
          });
    /** Lets the guest write to these pages once; it waits for an answer then. */
    const write = async (addresses: readonly number[]): Promise<void> => {
      list(addresses);
      const done = rig.next('in d8');
      processors.run();
      answer();
      await done;
      await processors.hold();
    };
    return { rig, processors, list, write };
  };

  it('logs exactly the pages that a guest writes, in few ranges, once', async () => {
    const { processors, write } = open();
    await write([0x9_0000]);
    expect(processors.vm.takeDirty()).toEqual([]);

    processors.vm.startDirtyLog();
    processors.vm.startDirtyLog();
    expect(processors.vm.takeDirty()).toEqual([]);
    // Pages of two slots that follow one another, the first and the last page of all, twice the same.
    await write([0x2f_f000, 0xf_e000, 0xf_f000, 0x10_0000, 0x10_1000, 0x8_0000, 0x8_0000, 0x5000]);
    expect(processors.vm.takeDirty()).toEqual([
      range(0x5000, 1),
      range(0x8_0000, 1),
      range(0xf_e000, 4),
      range(0x2f_f000, 1),
    ]);
    expect(processors.vm.takeDirty()).toEqual([]);

    await write([0x8_0000]);
    expect(processors.vm.takeDirty()).toEqual([range(0x8_0000, 1)]);

    processors.vm.stopDirtyLog();
    processors.vm.stopDirtyLog();
    await write([0x8_0000]);
    expect(processors.vm.takeDirty()).toEqual([]);
  });

  it('begins a log anew', async () => {
    const { processors, write } = open();
    processors.vm.startDirtyLog();
    await write([0x8_0000]);
    processors.vm.stopDirtyLog();
    processors.vm.startDirtyLog();
    expect(processors.vm.takeDirty()).toEqual([]);
    await write([0x9_0000]);
    expect(processors.vm.takeDirty()).toEqual([range(0x9_0000, 1)]);
  });

  it('misses nothing while the guest runs', async () => {
    const { rig, processors, list } = open();
    const { bytes } = rig.memory;
    const copy = new Uint8Array(MEMORY_BYTES);
    let copied = 0;
    const copyDirty = (): void => {
      for (const { guestAddress, length } of processors.vm.takeDirty()) {
        copy.set(bytes.subarray(guestAddress, guestAddress + length), guestAddress);
        copied += length;
      }
    };
    list([WILD]);
    processors.run();
    await rig.next('in dc');
    processors.vm.startDirtyLog();
    copy.set(bytes);
    for (let rounds = 0; rounds < 50; rounds += 1) {
      await rig.next('in dc', 2);
      copyDirty();
    }
    await rig.next('in dc', 2);
    await processors.quiesce();
    expect(Buffer.compare(copy, bytes)).not.toBe(0);
    copyDirty();
    expect(Buffer.compare(copy, bytes)).toBe(0);
    expect(copied).toBeGreaterThan(50 * PAGE);
    processors.vm.stopDirtyLog();
    expect(bytes.subarray(WILD_START, WILD_END).some((byte) => byte !== 0)).toBe(true);
  });

  it('has what finishing an instruction writes', async () => {
    const rig = new ProcessorsRig(cleanup, 'work', MEMORY_BYTES);
    const processors = rig.boot(1, { rax: 1, rbp: 1 });
    let answer: () => void = () => undefined;
    rig.onAccess = (access) =>
      access !== 'in c8'
        ? undefined
        : new Promise((resolve) => {
            rig.onAccess = () => undefined;
            answer = resolve;
          });
    const asked = rig.next('in c8');
    processors.run();
    await asked;
    await processors.hold();
    // Here the guest is out, and has not got what its `rep insb` asks for: 7 bytes for 0x5000.
    processors.vm.startDirtyLog();
    answer();
    await processors.quiesce();
    expect(processors.vm.takeDirty()).toEqual([range(0x5000, 1)]);
    expect(Buffer.from(rig.memory.bytes.subarray(0x5000, 0x5007))).not.toEqual(Buffer.alloc(7));
  });

  it('logs memory that is added while the log is on, and none that is read-only', async () => {
    const { processors, write } = open();
    const added = modules.allocatePinned(2 * ADDED_BYTES);
    processors.vm.startDirtyLog();
    expect(processors.vm.addMemory(0x40_0000, ADDED_BYTES, added.address)).toBe(3);
    expect(processors.vm.addMemory(0x50_0000, ADDED_BYTES, added.address + ADDED_BYTES, true)).toBe(4);
    await write([0x40_3000, 0x50_2000]);
    expect(processors.vm.takeDirty()).toEqual([range(0x40_3000, 1)]);
    expect([added.data.getUint32(0x37fc, true), added.data.getUint32(ADDED_BYTES + 0x27fc, true)]).toEqual([1, 0]);
  });

  it('takes memory from the guest, and gives its slot to other memory', async () => {
    const { processors, write } = open();
    const added = modules.allocatePinned(ADDED_BYTES);
    const slot = processors.vm.addMemory(0x40_0000, ADDED_BYTES, added.address);
    await write([0x40_0000]);
    processors.vm.removeMemory(slot);
    await write([0x40_0000]);
    // Nobody is there: the write went to the bus, and into nothing.
    expect(added.data.getUint32(0x7fc, true)).toBe(1);
    expect(() => processors.vm.removeMemory(slot)).toThrow(`memory slot ${slot}: not in use`);

    expect(processors.vm.addMemory(0x50_0000, ADDED_BYTES, added.address)).toBe(slot);
    await write([0x50_0000]);
    expect(added.data.getUint32(0x7fc, true)).toBe(2);
  });

  it('refuses memory where there is some, and keeps the slot free', () => {
    const { processors } = open();
    const added = modules.allocatePinned(ADDED_BYTES);
    expect(() => processors.vm.addMemory(0x10_0000, ADDED_BYTES, added.address)).toThrow(
      /KVM_SET_USER_MEMORY_REGION of 131072 bytes at 0x100000/,
    );
    expect(processors.vm.addMemory(0x40_0000, ADDED_BYTES, added.address)).toBe(3);
  });

  it('takes an ioeventfd and an irqfd back', async () => {
    const { rig, processors } = open();
    const kick = rig.eventFd();
    processors.vm.addIoEventFd(kick.fd, 0xd000_0050, 3);
    expect(() => processors.vm.addIoEventFd(kick.fd, 0xd000_0050, 3)).toThrow(/KVM_IOEVENTFD of 3 at 0xd0000050/);
    processors.vm.removeIoEventFd(kick.fd, 0xd000_0050, 3);
    expect(() => processors.vm.removeIoEventFd(kick.fd, 0xd000_0050, 3)).toThrow(/ENOENT/);
    processors.vm.addIoEventFd(kick.fd, 0xd000_0050, 3);

    const call = rig.eventFd();
    processors.vm.addIrqFd(call.fd, 5);
    expect(() => processors.vm.addIrqFd(call.fd, 5)).toThrow(/KVM_IRQFD for interrupt 5: .*EBUSY/);
    processors.vm.removeIrqFd(call.fd, 5);
    processors.vm.addIrqFd(call.fd, 5);
  });

  it('finds the one page of 96 GiB that was written, and soon', async () => {
    const { processors, write } = open();
    const bytes = 96 * 2 ** 30;
    const mapping = new modules.SharedMapping(modules.createSealedMemfd('ram', bytes).fd, 0, bytes);
    cleanup.add(() => mapping.retire());
    processors.vm.addMemory(0x1_0000_0000, bytes, mapping.address);
    processors.vm.startDirtyLog();
    processors.vm.takeDirty();
    await write([0x8_0000]);
    expect(processors.vm.takeDirty()).toEqual([range(0x8_0000, 1)]);
    const takeMs = (): number => {
      const start = performance.now();
      processors.vm.takeDirty();
      return performance.now() - start;
    };
    // 3 MiB of bitmap, from the kernel and through it: 1.1 ms on a machine that does nothing else.
    expect(Math.min(...Array.from({ length: 10 }, takeMs))).toBeLessThan(50);
  });
});
