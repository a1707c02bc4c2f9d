/** A machine without KVM, which is a piece of memory that changes, and a connection between two VMMs. */

import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import type { LongOperationName } from '../../../../../vmm-client/api/vmm-control.ts';
import { checkConfig } from '../../../../../vmm-client/vmm/check-config.ts';
import { LongOperation } from '../../../../../vmm-client/vmm/long-operation.ts';
import type { PageRange } from '../../../../../vmm-client/vmm/migration/page-set.ts';
import type { MigrationTarget } from '../../../../../vmm-client/vmm/migration/receiver.ts';
import type { MigrationSource } from '../../../../../vmm-client/vmm/migration/sender.ts';
import type { VcpuEnd } from '../../../../../vmm-client/vmm/vcpu.ts';
import type { Cleanup } from '../../../../support/cleanup.ts';

export const PAGE = 4096;
export const HIGH = 0x1_0000_0000;
export const RANGES: readonly PageRange[] = [
  { guestAddress: 0, length: 2 << 20 },
  { guestAddress: HIGH, length: 1 << 20 },
];

/** RAM in two ranges. Pages that were never written are holes. */
export class FakeRam {
  readonly ranges: readonly PageRange[] = RANGES;
  readonly touched = new Set<number>();
  readonly #buffers = RANGES.map(({ length }) => Buffer.alloc(length));

  bytes({ guestAddress, length }: PageRange): Buffer {
    const index = this.ranges.findIndex((range) => {
      const offset = guestAddress - range.guestAddress;
      return offset >= 0 && offset + length <= range.length;
    });
    if (index === -1) throw new Error(`the fake has no ${length} bytes at ${guestAddress}`);
    const offset = guestAddress - (this.ranges[index]?.guestAddress ?? 0);
    return (this.#buffers[index] as Buffer).subarray(offset, offset + length);
  }

  write(guestAddress: number, pages: Buffer): void {
    pages.copy(this.bytes({ guestAddress, length: pages.length }));
  }

  *dataRanges({ guestAddress, length }: PageRange): Iterable<PageRange> {
    for (let at = guestAddress; at < guestAddress + length; at += PAGE) {
      if (!this.touched.has(at)) continue;
      let end = at + PAGE;
      while (end < guestAddress + length && this.touched.has(end)) end += PAGE;
      yield { guestAddress: at, length: end - at };
      at = end;
    }
  }

  /** Fills a page with a byte. */
  fill(guestAddress: number, value: number): void {
    this.touched.add(guestAddress);
    this.bytes({ guestAddress, length: PAGE }).fill(value);
  }

  equals(other: FakeRam): boolean {
    return this.ranges.every((range) => this.bytes(range).equals(other.bytes(range)));
  }
}

/** The source: says what is done to it. */
export class FakeSource implements MigrationSource {
  readonly memory = new FakeRam();
  readonly calls: string[] = [];
  ending: VcpuEnd | undefined;
  /** Called when the dirty log is taken: the guest writes. */
  onTakeDirty: () => void = () => undefined;
  onSuspend: () => void | Promise<void> = () => undefined;
  #dirty: PageRange[] = [];

  write(guestAddress: number, value: number): void {
    this.memory.fill(guestAddress, value);
    this.#dirty.push({ guestAddress, length: PAGE });
  }

  /** The page is a hole again. */
  discard(guestAddress: number): void {
    this.memory.fill(guestAddress, 0);
    this.memory.touched.delete(guestAddress);
    this.#dirty.push({ guestAddress, length: PAGE });
  }

  async startDirtyLog(): Promise<void> {
    this.calls.push('startDirtyLog');
  }
  takeDirty(): readonly PageRange[] {
    this.onTakeDirty();
    const dirty = this.#dirty;
    this.#dirty = [];
    return dirty;
  }
  async stopDirtyLog(): Promise<void> {
    this.calls.push('stopDirtyLog');
  }
  async throttle(percent: number): Promise<void> {
    this.calls.push(`throttle ${percent}`);
  }
  async suspend(): Promise<void> {
    this.calls.push('suspend');
    await this.onSuspend();
  }
  async state(): Promise<unknown> {
    this.calls.push('state');
    return { counter: 7n, bytes: Uint8Array.of(1, 2, 3) };
  }
  async goOn(): Promise<void> {
    this.calls.push('goOn');
  }
}

export class FakeTarget implements MigrationTarget {
  readonly memory = new FakeRam();
  readonly calls: string[] = [];
  state: unknown;
  onRestore: () => void = () => undefined;
  onRun: () => void = () => undefined;
  onClose: () => void = () => undefined;

  async restoreProcessors(state: unknown): Promise<void> {
    this.calls.push('restore');
    this.onRestore();
    this.state = state;
  }
  async restoreDevices(): Promise<void> {
    this.calls.push('devices');
  }
  async resume(): Promise<void> {
    this.calls.push('run');
    this.onRun();
  }
  async close(): Promise<void> {
    this.onClose();
    this.calls.push('close');
  }
}

export const CONFIG = checkConfig({ payload: { kernel: '/boot/vmlinux' }, memory: { size: 3 << 20 } });
export const LAYOUT = { ranges: RANGES, slots: new Map([['_disk0', 0]]) };

export const operation = (name: LongOperationName): LongOperation => new LongOperation(name);

/** Two ends of a Unix socket. */
export const socketPair = async (cleanup: Cleanup): Promise<[Socket, Socket]> => {
  const path = join(cleanup.directory(), 's');
  const server = createServer();
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const dialled = connect(path);
  const other = await accepted;
  server.close();
  for (const socket of [dialled, other]) {
    socket.on('error', () => undefined);
    cleanup.add(() => socket.destroy());
  }
  return [dialled, other];
};
