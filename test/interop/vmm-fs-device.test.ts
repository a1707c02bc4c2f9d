/**
 * A virtio-mmio file system in front of virtiofsd, driven as a guest drives it: the first message of FUSE, by which kernel
 * and file system agree on a version, goes through, again after a reset, and the directory's content is there.
 * Source: linux/fuse.h.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openFs } from '../../vmm-client/vmm/devices/fs.ts';
import { decodeState, encodeState } from '../../vmm-client/vmm/state/codec.ts';
import { VirtioMmioTransport } from '../../vmm-client/vmm/virtio-mmio/transport.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { describeWithPeers } from '../support/peers.ts';
import { startVirtiofsd, virtiofsdPeers } from '../support/vm/virtiofsd.ts';
import { checkedFs } from '../unit/vmm-client/vmm/devices/checked.ts';

const LOOKUP = 1;
const GETATTR = 3;
const INIT = 26;
const ROOT = 1n;
const REQUEST_QUEUE = 1;
/** fuse_in_header: len u32, opcode u32, unique u64, nodeid u64, uid u32, gid u32, pid u32, padding. */
const IN_HEADER = 40;
/** fuse_out_header: len u32, error i32, unique u64. */
const OUT_HEADER = 16;

const cleanup = cleanupAfterEach();

/** Sends one message and returns the answer without its header. */
const fuse = async (guest: MmioGuest, opcode: number, node: bigint, body: Uint8Array, answerBytes: number) => {
  const { ram } = guest;
  const [request, answer] = [guest.dataStart, guest.dataStart + 4096];
  ram.view.setUint32(request, IN_HEADER + body.length, true);
  ram.view.setUint32(request + 4, opcode, true);
  ram.view.setBigUint64(request + 8, 77n, true);
  ram.view.setBigUint64(request + 16, node, true);
  ram.bytes.fill(0, request + 24, request + IN_HEADER);
  ram.bytes.set(body, request + IN_HEADER);
  const ring = guest.ring(REQUEST_QUEUE);
  ring.setChain(0, [
    { address: ram.guest(request), length: IN_HEADER + body.length },
    { address: ram.guest(answer), length: OUT_HEADER + answerBytes, flags: WRITE },
  ]);
  const [used] = await ring.run(0);
  expect([used?.id, ram.view.getInt32(answer + 4, true), ram.view.getBigUint64(answer + 8, true)]).toEqual([0, 0, 77n]);
  return new DataView(ram.bytes.slice(answer + OUT_HEADER, answer + OUT_HEADER + answerBytes).buffer);
};

/** Version 7.31, 128 KiB of read-ahead, no flags. */
const INIT_BODY = new Uint8Array(new Uint32Array([7, 31, 0x2_0000, 0]).buffer);

/** A device in front of a virtiofsd, and the guest that drives it. */
const plug = async (socket: string, guest = new MmioGuest({ queueSizes: [64, 64] })) => {
  cleanup.add(() => guest.close());
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  const device = await openFs(checkedFs({ socket, tag: 'share', queue_size: 64 }), { ram: guest.deviceMemory, log });
  // One interrupt for both queues: the request queue's is what the test waits for.
  const wiring = { ...guest.wiring, interrupt: guest.ring(REQUEST_QUEUE).call };
  const transport = new VirtioMmioTransport(device, { ...wiring, log });
  cleanup.add(() => transport.close());
  return { guest, transport, lines, driver: guest.plug(transport) };
};

/** A directory with a file of 12 bytes in it. */
const share = (): string => {
  const shared = join(cleanup.directory(), 'shared');
  mkdirSync(shared);
  writeFileSync(join(shared, 'greeting'), 'hello, guest');
  return shared;
};

describeWithPeers(virtiofsdPeers, 'virtiofsd', () => {
  it('serves a file system through registers and rings', async () => {
    const { socket } = await startVirtiofsd(cleanup, share());
    const { guest, driver, lines } = await plug(socket);
    expect(driver.read(8)).toBe(26);
    expect(Buffer.from(driver.config(0, 36)).toString().replaceAll('\0', '')).toBe('share');

    for (let round = 0; round < 2; round += 1) {
      expect(await guest.start()).toBe(15);
      const init = await fuse(guest, INIT, 0n, INIT_BODY, 64);
      expect(init.getUint32(0, true)).toBe(7);
      // fuse_entry_out: nodeid u64 @0, attr @40 with size u64 @8.
      const entry = await fuse(guest, LOOKUP, ROOT, Buffer.from('greeting\0'), 128);
      expect(entry.getBigUint64(48, true)).toBe(12n);
      await driver.reset();
      expect(driver.status).toBe(0);
    }
    expect(lines).toEqual([]);
  });

  it('goes on in another one, which knows what the guest looked up', async () => {
    const shared = share();
    const first = await startVirtiofsd(cleanup, shared);
    const { guest, transport } = await plug(first.socket);
    expect(await guest.start()).toBe(15);
    await fuse(guest, INIT, 0n, INIT_BODY, 64);
    await transport.startDirtyLog();
    const node = (await fuse(guest, LOOKUP, ROOT, Buffer.from('greeting\0'), 128)).getBigUint64(0, true);
    const state = decodeState(encodeState(await transport.suspend()));
    expect(transport.takeDirty().length).toBeGreaterThan(0);
    const second = await startVirtiofsd(cleanup, shared);
    const twin = guest.twin();
    twin.ram.bytes.set(guest.ram.bytes);
    transport.close();
    const next = await plug(second.socket, twin);
    await next.transport.restore(state);
    expect(next.driver.status).toBe(15);
    // fuse_attr_out: attr @16 with ino u64, size u64 @8.
    const attributes = await fuse(twin, GETATTR, node, new Uint8Array(16), 104);
    expect(attributes.getBigUint64(24, true)).toBe(12n);
    expect(next.lines).toEqual([]);
  });
});
