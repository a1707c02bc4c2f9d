/**
 * The thread of one vCPU: runs the guest, and puts to the main thread what the guest asks of devices. Nothing else happens
 * here; devices, state and errors are the main thread's.
 */

import { once } from 'node:events';
import { parentPort } from 'node:worker_threads';
import { SysError } from '../../protocol/sys/errors.ts';
import {
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_EXIT_MMIO,
  MMIO_DATA_OFFSET,
  threadId,
  VcpuRun,
} from '../../protocol/sys/kvm-vcpu.ts';
import { signalEventFd } from '../../protocol/sys/notifier.ts';
import {
  ADDRESS_HIGH,
  ADDRESS_LOW,
  CONTROL,
  COUNT,
  DATA_BYTES,
  DATA_OFFSET,
  EXIT_REASONS,
  EXITS,
  FAULT,
  FAULT_DETAIL,
  FAULTED,
  HELD,
  HOLD,
  IDLE,
  IS_MEMORY,
  IS_WRITE,
  KIND,
  READY,
  REQUEST,
  RUNNING,
  SIZE,
  STATE,
  STOP,
  THREAD,
  type VcpuThreadData,
} from './vcpu-channel.ts';

if (parentPort === null) throw new Error('this module is a thread');
const port = parentPort;

/** Runs a vCPU until it is told to stop. */
function runVcpu({ channel, location, doorbell }: VcpuThreadData): void {
  const words = new Int32Array(channel);
  const data = new Uint8Array(channel, DATA_OFFSET, DATA_BYTES);
  const vcpu = new VcpuRun(location);

  /** Tells the main thread of a new state. */
  function enter(state: number): void {
    Atomics.store(words, STATE, state);
    signalEventFd(doorbell);
  }

  /** Has `count` values of `size` bytes at `offset` of the vCPU's mapping read or written by the main thread. */
  function ask(kind: number, address: number, size: number, count: number, offset: number): void {
    const length = size * count;
    words[KIND] = kind;
    words[SIZE] = size;
    words[COUNT] = count;
    words[ADDRESS_LOW] = address | 0;
    words[ADDRESS_HIGH] = Math.floor(address / 0x1_0000_0000);
    if ((kind & IS_WRITE) !== 0) data.set(vcpu.bytes.subarray(offset, offset + length));
    // Publishes the words above; the answer's store of 0 publishes `data`.
    Atomics.store(words, REQUEST, 1);
    signalEventFd(doorbell);
    while (Atomics.load(words, REQUEST) === 1) Atomics.wait(words, REQUEST, 1);
    if ((kind & IS_WRITE) === 0) vcpu.bytes.set(data.subarray(0, length), offset);
  }

  /**
   * Whether an access was answered and KVM has not been entered since: it finishes the instruction then, with registers
   * and memory that the answer goes to.
   */
  let isUnfinished = false;

  /** Runs the guest until it needs something, and gets it that. Returns false when it cannot go on. */
  function step(): boolean {
    let reason: number;
    try {
      reason = vcpu.run();
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      words[FAULT] = -error.errno;
      return false;
    }
    isUnfinished = reason === KVM_EXIT_MMIO || reason === KVM_EXIT_IO;
    if (reason < EXIT_REASONS) words[EXITS + reason] = ((words[EXITS + reason] as number) + 1) | 0;
    if (reason === KVM_EXIT_MMIO) {
      const kind = IS_MEMORY | (vcpu.mmioIsWrite ? IS_WRITE : 0);
      ask(kind, vcpu.mmioAddress, vcpu.mmioSize, 1, MMIO_DATA_OFFSET);
      return true;
    }
    if (reason === KVM_EXIT_IO) {
      ask(vcpu.ioIsWrite ? IS_WRITE : 0, vcpu.ioPort, vcpu.ioSize, vcpu.ioCount, vcpu.ioDataOffset);
      return true;
    }
    if (reason === KVM_EXIT_INTR) return true;
    words[FAULT] = reason;
    words[FAULT_DETAIL] = vcpu.data.getUint32(32, true);
    return false;
  }

  words[THREAD] = threadId();
  let isHeld = false;
  for (;;) {
    vcpu.setImmediateExit(false);
    // A full barrier between clearing the flag and looking at CONTROL: whoever changes CONTROL sets the flag afterwards,
    // so either the change is seen here or the flag is set when the guest is entered.
    Atomics.store(words, REQUEST, 0);
    const control = Atomics.load(words, CONTROL);
    if (control === STOP) return;
    const isToHold = control === HOLD;
    if (isToHold && !isUnfinished) {
      if (!isHeld) enter(HELD);
      isHeld = true;
      Atomics.wait(words, CONTROL, HOLD);
      continue;
    }
    if (isHeld || Atomics.load(words, STATE) !== RUNNING) Atomics.store(words, STATE, RUNNING);
    isHeld = false;
    // One that is to be held finishes its instruction, which may take another access, and no more.
    if (isToHold) vcpu.setImmediateExit(true);
    if (!step()) {
      // Nothing but the end is left.
      enter(FAULTED);
      for (let last = control; last !== STOP; last = Atomics.load(words, CONTROL)) Atomics.wait(words, CONTROL, last);
    }
  }
}

port.postMessage(READY);
for (;;) {
  const [vcpu] = (await once(port, 'message')) as [VcpuThreadData];
  runVcpu(vcpu);
  // Nothing here touches the vCPU or its doorbell any more.
  port.postMessage(IDLE);
}
