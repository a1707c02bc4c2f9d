/** What a packet in receive buffers must look like. */

import { expect } from 'vitest';
import type { NetDriver, ReceivedPacket } from './net-driver.ts';

/** It is the frame that was sent. */
export const expectSame = (packet: ReceivedPacket, frame: Uint8Array): void => {
  expect(packet.frame.length).toBe(frame.length);
  expect(Buffer.compare(packet.frame, frame)).toBe(0);
};

/** A packet of `length` bytes fills these buffers, all but the last of them to their end. */
export const expectFilled = (driver: NetDriver, { header, used }: ReceivedPacket, length: number): void => {
  const full = used.slice(0, -1);
  expect(header.numBuffers).toBe(used.length);
  expect(full.map((entry) => entry.length)).toEqual(full.map(({ id }) => driver.capacityOf(id)));
  expect(used.reduce((sum, entry) => sum + entry.length, 0)).toBe(driver.headerBytes + length);
};
