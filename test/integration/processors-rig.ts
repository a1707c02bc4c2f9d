/**
 * Processors of the VMM without the rest of a machine: memory, a device that answers everything in a known order, and
 * programs of a few dozen instructions. The compiled modules are used, because vCPUs are threads.
 */

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Kvm } from '../../protocol/sys/kvm.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { createEventFd } from '../../protocol/sys/owned-fd.ts';
import type { PinnedMemory } from '../../protocol/sys/pinned.ts';
import type { BusDevice } from '../../vmm-client/vmm/bus.ts';
import type { Processors } from '../../vmm-client/vmm/processors.ts';
import type { ProcessorsState } from '../../vmm-client/vmm/state/processors-state.ts';
import type { VcpuEnd } from '../../vmm-client/vmm/vcpu.ts';
import type { Cleanup } from '../support/cleanup.ts';
import { type PeerName, peerPath, projectDirectory } from '../support/peers.ts';

/** What a test of processors needs. */
export const processorsPeers: readonly PeerName[] = ['KVM', 'gcc'];

const compiled = async <T>(path: string): Promise<T> =>
  (await import(/* @vite-ignore */ `file://${join(projectDirectory, 'dist', path)}`)) as T;

/** The modules that are judged, as compiled. */
export const modules = {
  ...(await compiled<typeof import('../../protocol/sys/kvm.ts')>('protocol/sys/kvm.js')),
  ...(await compiled<typeof import('../../protocol/sys/kvm-vcpu.ts')>('protocol/sys/kvm-vcpu.js')),
  ...(await compiled<typeof import('../../protocol/sys/kvm-vcpu-state.ts')>('protocol/sys/kvm-vcpu-state.js')),
  ...(await compiled<typeof import('../../protocol/sys/kvm-msrs.ts')>('protocol/sys/kvm-msrs.js')),
  ...(await compiled<typeof import('../../protocol/sys/mapping.ts')>('protocol/sys/mapping.js')),
  ...(await compiled<typeof import('../../protocol/sys/owned-fd.ts')>('protocol/sys/owned-fd.js')),
  ...(await compiled<typeof import('../../protocol/sys/pinned.ts')>('protocol/sys/pinned.js')),
  ...(await compiled<typeof import('../../vmm-client/vmm/bus.ts')>('vmm-client/vmm/bus.js')),
  ...(await compiled<typeof import('../../vmm-client/vmm/cpuid.ts')>('vmm-client/vmm/cpuid.js')),
  ...(await compiled<typeof import('../../vmm-client/vmm/processors.ts')>('vmm-client/vmm/processors.js')),
  ...(await compiled<typeof import('../../vmm-client/vmm/vcpu-worker.ts')>('vmm-client/vmm/vcpu-worker.js')),
  ...(await compiled<typeof import('../../vmm-client/vmm/state/codec.ts')>('vmm-client/vmm/state/codec.js')),
};

/** Where programs are linked to. */
const CODE_ADDRESS = 0x1000;
const PORTS = 0xc0;
const DEVICE_ADDRESS = 0xd000_0000;
const DEVICE_BYTES = 0x1000;
const SOURCES = fileURLToPath(new URL('../support/vm/processors/', import.meta.url));

/** Assembles a program of the folder `processors`. */
const assemble = (cleanup: Cleanup, name: string): Uint8Array => {
  const program = join(cleanup.directory(), name);
  const options = ['-m32', '-nostdlib', '-static', '-Wl,--build-id=none', '-T', 'guest.ld'];
  execFileSync(peerPath('gcc'), [...options, '-o', program, `${name}.S`], { cwd: SOURCES, stdio: 'pipe' });
  return readFileSync(program);
};

/** struct kvm_segment: base @0, limit @8, selector @12, type @14, present @15, db @17, s @18, g @20. */
const FLAT = { code: [0xb, 1, 0, 1, 1, 0, 1], data: [3, 1, 0, 1, 1, 0, 1] } as const;

/** 32 bits, flat, no paging: struct kvm_sregs has cs @0, ds es fs gs ss from @24 and cr0 @224. */
const enterProtectedMode = (sregs: Uint8Array): Uint8Array => {
  const data = new DataView(sregs.buffer, sregs.byteOffset);
  for (let offset = 0; offset <= 120; offset += 24) {
    const isCode = offset === 0;
    data.setBigUint64(offset, 0n, true);
    data.setUint32(offset + 8, 0xffff_ffff, true);
    data.setUint16(offset + 12, isCode ? 8 : 16, true);
    for (const [at, value] of FLAT[isCode ? 'code' : 'data'].entries()) sregs[offset + 14 + at] = value;
  }
  data.setBigUint64(224, 0x11n, true);
  return sregs;
};

/** struct kvm_regs, by name; rsp and rip are not the guest's to choose. */
const REGISTER_OFFSETS = { rax: 0, rbx: 8, rcx: 16, rdx: 24, rsi: 32, rdi: 40, rbp: 56, rip: 128 } as const;
export type RegisterName = keyof typeof REGISTER_OFFSETS;

/** A register of a saved vCPU. */
export const registerOf = (state: ProcessorsState, vcpu: number, name: RegisterName): number => {
  const { regs } = state.vcpus[vcpu] as { regs: Uint8Array };
  return Number(new DataView(regs.buffer, regs.byteOffset).getBigUint64(REGISTER_OFFSETS[name], true));
};

export class ProcessorsRig {
  readonly kvm: Kvm;
  readonly memory: PinnedMemory;
  /** Accesses of the guest in their order, such as `out c0: 5`. */
  readonly accesses: string[] = [];
  /** Called at each access, before it is answered; a promise holds the answer up. */
  onAccess: (access: string) => void | Promise<void> = () => undefined;
  /** What is read, where that is not to be a number that depends on all reads before. */
  answer: ((access: string) => number) | undefined;
  readonly ends: VcpuEnd[] = [];
  readonly #cleanup: Cleanup;
  readonly #ports = new modules.Bus();
  readonly #addresses = new modules.Bus();
  readonly #waiters = new Set<(access: string) => void>();
  #chain = 1;

  /** `memoryBytes` from guest address 0, with a program in it. */
  constructor(cleanup: Cleanup, program: string, memoryBytes: number) {
    this.#cleanup = cleanup;
    // In this order: processors end before what they use.
    cleanup.add(() => modules.endVcpuWorkers());
    this.kvm = modules.Kvm.open();
    cleanup.add(() => this.kvm.close());
    this.memory = modules.allocatePinned(memoryBytes);
    this.memory.bytes.set(assemble(cleanup, program), CODE_ADDRESS);
    this.#ports.add(PORTS, 0x40, this.#device('in', 'out'));
    this.#addresses.add(DEVICE_ADDRESS, DEVICE_BYTES, this.#device('read', 'write'));
  }

  #device(read: string, write: string): BusDevice {
    const base = read === 'in' ? PORTS : 0;
    return {
      read: (offset, size) => {
        const access = `${read} ${(base + offset).toString(16)}`;
        this.#chain = (Math.imul(this.#chain, 1_664_525) + 1_013_904_223) >>> 0;
        const value = (this.answer?.(access) ?? this.#chain >>> 3) & (2 ** (8 * size) - 1);
        const waiting = this.#noted(access, `${access}: ${value >>> 0}`);
        return waiting === undefined ? value >>> 0 : waiting.then(() => value >>> 0);
      },
      write: (offset, _size, value) => {
        const access = `${write} ${(base + offset).toString(16)}`;
        return this.#noted(access, `${access}: ${value}`);
      },
    };
  }

  #noted(access: string, shown: string): void | Promise<void> {
    this.accesses.push(shown);
    for (const waiter of [...this.#waiters]) waiter(access);
    return this.onAccess(access);
  }

  /** Resolves when the guest makes an access, as `out cc`, or one of any kind. @throws Error - after the deadline */
  next(access = '', count = 1, deadlineMs = 20_000): Promise<void> {
    return new Promise((resolve, reject) => {
      let left = count;
      const done = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(waiter);
      };
      const waiter = (made: string): void => {
        if (!made.startsWith(access)) return;
        left -= 1;
        if (left > 0) return;
        done();
        resolve();
      };
      const timer = setTimeout(() => {
        done();
        const last = this.accesses.slice(-5).join(', ');
        reject(new Error(`no "${access}" in ${deadlineMs} ms; ends: ${this.ends.join(', ')}; last: ${last}`));
      }, deadlineMs);
      this.#waiters.add(waiter);
    });
  }

  /** Processors with this memory, in slots that begin at these addresses, and nothing set: for `restore`. */
  create(count: number, slots: readonly number[] = [0]): Processors {
    const buses = { ports: this.#ports, memory: this.#addresses };
    const created = new modules.Processors(this.kvm, count, buses, (end) => this.ends.push(end));
    this.#cleanup.add(() => created.stop());
    for (const [at, start] of slots.entries()) {
      const end = slots[at + 1] ?? this.memory.length;
      created.vm.addMemory(start, end - start, this.memory.address + start);
    }
    return created;
  }

  /** Processors whose first one is about to execute the program, at an offset of it. */
  boot(
    count: number,
    registers: Partial<Record<RegisterName, number>> = {},
    { offset = 0, slots = [0] }: { readonly offset?: number; readonly slots?: readonly number[] } = {},
  ): Processors {
    const created = this.create(count, slots);
    const supported = modules.decodeCpuid(this.kvm.supportedCpuid());
    created.setCpuid((apicId) =>
      modules.encodeCpuid(
        modules.filterCpuid(supported, { apicId, cpuCount: count, hide: [], tscDeadlineTimer: true }),
      ),
    );
    const regs = new DataView(new ArrayBuffer(144));
    const all = { rip: CODE_ADDRESS + offset, ...registers };
    for (const [name, value] of Object.entries(all)) {
      regs.setBigUint64(REGISTER_OFFSETS[name as RegisterName], BigInt(value), true);
    }
    // rsp and rflags.
    regs.setBigUint64(48, 0x3800n, true);
    regs.setBigUint64(136, 2n, true);
    const fd = created.vcpus[0]?.fd as number;
    modules.setRegisters(fd, new Uint8Array(regs.buffer));
    modules.changeSpecialRegisters(fd, enterProtectedMode);
    return created;
  }

  /** Ticks of the time stamp counter in a second. */
  get ticksPerSecond(): number {
    const megahertz = /^cpu MHz\s*:\s*(\d+)/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1];
    return Number(megahertz) * 1e6;
  }

  /** An eventfd that lives as long as the test. */
  eventFd(): Notifier {
    const notifier = new Notifier(createEventFd());
    this.#cleanup.add(() => notifier.close());
    return notifier;
  }

  /** An eventfd that is an edge on an interrupt pin. */
  irqFd(processors: Processors, pin: number): Notifier {
    const notifier = this.eventFd();
    processors.vm.addIrqFd(notifier.fd, pin);
    return notifier;
  }

  /** Ends processors and puts what they were into new ones, by way of bytes. */
  async move(from: Processors): Promise<Processors> {
    const bytes = modules.encodeState(await from.save());
    const to = this.create(from.vcpus.length);
    await from.stop();
    await to.restore(modules.decodeState(bytes));
    return to;
  }
}
