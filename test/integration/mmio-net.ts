/** A guest's side of a network device in memory: packets both ways and commands, by its rings alone. */

import type { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { netHeader } from '../support/frontend/net-wire.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';

const [RECEIVE, TRANSMIT, CONTROL] = [0, 1, 2];
const HEADER = 12;
const BUFFER = 2048;
const BUFFERS = 8;

/** Waits until the device has used `count` more buffers of a ring, or more than that, and takes `count`. */
export const used = async (guest: MmioGuest, queue: number, count: number): Promise<number[]> => {
  const ring = guest.ring(queue);
  await eventually(
    `used buffers of queue ${queue}`,
    () => ring.waiting,
    (waiting) => waiting >= count,
  );
  return Array.from({ length: count }, () => {
    const { id } = ring.usedEntry(ring.seen);
    ring.seen = (ring.seen + 1) & 0xffff;
    return id;
  });
};

export const send = async (guest: MmioGuest, frame: Uint8Array): Promise<void> => {
  const at = guest.dataStart + BUFFERS * BUFFER;
  guest.ram.bytes.set(netHeader(), at);
  guest.ram.bytes.set(frame, at + HEADER);
  guest.ring(TRANSMIT).setChain(0, [{ address: guest.ram.guest(at), length: HEADER + frame.length }]);
  guest.ring(TRANSMIT).publish(0);
  guest.ring(TRANSMIT).signal();
  await used(guest, TRANSMIT, 1);
};

const bufferAt = (guest: MmioGuest, head: number): number => guest.dataStart + head * BUFFER;

/** Takes one packet and gives its buffer back. */
export const receive = async (guest: MmioGuest, length: number): Promise<Uint8Array> => {
  const [head = 0] = await used(guest, RECEIVE, 1);
  const at = bufferAt(guest, head) + HEADER;
  const frame = guest.ram.bytes.slice(at, at + length);
  guest.ring(RECEIVE).publish(head);
  guest.ring(RECEIVE).signal();
  return frame;
};

/** Makes all receive buffers available. */
export const giveBuffers = (guest: MmioGuest): void => {
  const ring = guest.ring(RECEIVE);
  for (let head = 0; head < BUFFERS; head += 1) {
    ring.setDescriptor(head, { address: guest.ram.guest(bufferAt(guest, head)), length: BUFFER, flags: WRITE });
    ring.publish(head);
  }
  ring.signal();
};

/** Sends a command on the control queue. Returns the answer: 0 is OK. */
export const command = async (guest: MmioGuest, kind: number, number: number, value: number): Promise<number> => {
  const at = guest.dataStart + (BUFFERS + 2) * BUFFER;
  guest.ram.bytes.set([kind, number, value, 0xff], at);
  guest.ring(CONTROL).setChain(0, [
    { address: guest.ram.guest(at), length: 3 },
    { address: guest.ram.guest(at + 3), length: 1, flags: WRITE },
  ]);
  guest.ring(CONTROL).publish(0);
  guest.ring(CONTROL).signal();
  await used(guest, CONTROL, 1);
  return guest.ram.bytes[at + 3] as number;
};
