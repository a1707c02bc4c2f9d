/** The proof that a network daemon still serves a correct client, after whatever was done to it. */

import { randomBytes } from 'node:crypto';
import { NetDriver } from './net-driver.ts';
import type { HostSide } from './net-host.ts';
import { NET_FEATURE, testFrame } from './net-wire.ts';

/** Enough for the largest packet that somebody else was meant to get. */
const BUFFERS = 32;

const randomFrame = (length: number): Uint8Array => {
  const frame = testFrame(0, length);
  frame.set(randomBytes(length - 14), 14);
  return frame;
};

const same = (what: string, a: Uint8Array, b: Uint8Array): void => {
  if (Buffer.compare(a, b) !== 0) throw new Error(`${what}: ${a.length} bytes are not the ${b.length} that were sent`);
};

const RETRIES = 10;
const RETRY_MS = 1000;

/** Receives frames up to the mark. False when it does not come: a frame that finds the queue of the TAP full is lost. */
const receiveMark = async (driver: NetDriver, mark: Uint8Array): Promise<boolean> => {
  for (let isMark = false; !isMark; ) {
    const packet = await driver.receive(0, RETRY_MS).catch(() => undefined);
    if (packet === undefined) return false;
    driver.repost(packet);
    isMark = Buffer.compare(packet.frame, mark) === 0;
  }
  return true;
};

/** Frames of others may be on their way still, in both directions: they are dropped up to one of ours. */
const dropOthers = async (driver: NetDriver, host: HostSide): Promise<void> => {
  const mark = randomFrame(64);
  await driver.sendFrame(mark);
  while (Buffer.compare((await host.receive(1))[0] as Uint8Array, mark) !== 0) {}
  for (let tries = 0; tries < RETRIES; tries += 1) {
    const back = randomFrame(64);
    host.send(back);
    if (await receiveMark(driver, back)) return;
  }
  throw new Error('no frame of the host comes through');
};

/**
 * Offers buffers, sends random frames, sees them arrive on the host, is sent random frames, and compares them.
 * @throws Error - a frame did not come, or not as it was
 */
export const exchangeFrames = async (driver: NetDriver, host: HostSide): Promise<void> => {
  driver.post(BUFFERS, 4096);
  await dropOthers(driver, host);
  for (const length of [60, 128, 1000, 1514]) {
    const out = randomFrame(length);
    const used = await driver.sendFrame(out);
    if (used.length !== 0) throw new Error(`a packet that was sent came back with length ${used.length}`);
    same('on the host', (await host.receive(1))[0] as Uint8Array, out);
    const back = randomFrame(length);
    if (!host.send(back)) throw new Error('the queue of the interface is full');
    const packet = await driver.receive();
    same('in the guest', packet.frame, back);
    if (packet.header.numBuffers !== 1) throw new Error(`num_buffers is ${packet.header.numBuffers}`);
    driver.repost(packet);
  }
};

/** A good client on a connection of its own. @throws Error - it was not served */
export const connectGoodNet = async (socket: string, host: HostSide): Promise<void> => {
  const driver = await NetDriver.start(socket, { features: [NET_FEATURE.MRG_RXBUF], queueSize: 256 });
  try {
    await exchangeFrames(driver, host);
    for (const ring of driver.frontend.rings) {
      const done = ring.usedIndex;
      const base = await driver.frontend.stopRing(ring);
      if (base !== done)
        throw new Error(`GET_VRING_BASE of ring ${ring.index} says ${base} after ${done} used entries`);
    }
  } finally {
    driver.close();
  }
};
