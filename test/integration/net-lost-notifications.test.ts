/**
 * Two processes that try to sleep at the worst moment: the driver of a network device kicks only when it is asked to, for
 * buffers that it offers again just when the device runs out of them, and waits for the call that it asked for. A
 * notification lost on either side stops the run.
 */

import { describe, expect, it } from 'vitest';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver } from '../support/frontend/net-driver.ts';
import { NET_FEATURE, netHeader, seedOf, testFrame } from '../support/frontend/net-wire.ts';
import type { RawRing } from '../support/frontend/raw-ring.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const SIZE = 64;
const DEADLINE_MS = 5_000;

interface Load {
  readonly features: readonly number[];
  /** Buffers that are offered, or packets that are sent at once, at most. */
  readonly depth: number;
  readonly packets: number;
}

const LOADS: [string, Load][] = [
  ['with EVENT_IDX and one buffer', { features: [FEATURE.EVENT_IDX], depth: 1, packets: 2000 }],
  ['with EVENT_IDX and 16 buffers', { features: [FEATURE.EVENT_IDX], depth: 16, packets: 6000 }],
  ['without EVENT_IDX and with one buffer', { features: [], depth: 1, packets: 2000 }],
  ['without EVENT_IDX and with 16 buffers', { features: [], depth: 16, packets: 6000 }],
];

/** Makes heads available, and kicks if the device asked for that. VIRTIO 1.3, 2.7.10. Returns whether it did. */
const offer = (ring: RawRing, eventIdx: boolean, heads: readonly number[]): boolean => {
  const old = ring.availIndex;
  ring.publish(...heads);
  const now = ring.availIndex;
  // Full barrier: the index that was just stored comes before this look.
  Atomics.load(ring.ram.words, ring.used / 2);
  const wanted = eventIdx
    ? ((now - ring.availEvent - 1) & 0xffff) < ((now - old) & 0xffff)
    : (ring.ram.view.getUint16(ring.used, true) & 1) === 0;
  if (wanted) ring.signal();
  return wanted;
};

/** Sometimes at once, sometimes after the device had time to fall asleep. */
const dawdle = async (turns: number): Promise<void> => {
  for (let turn = turns; turn > 0; turn -= 1) await new Promise((resolve) => setImmediate(resolve));
};

describeWithPeers(namespacePeers, 'a network device', () => {
  describe.each([
    ['a daemon that polls for 100 us', []],
    ['a daemon that sleeps at once', ['--poll-us=0']],
    ['a daemon that never sleeps', ['--poll']],
  ])('%s', (_, extra) => {
    const daemon = hostileNetDaemon({ extra });

    const start = (features: readonly number[]): Promise<NetDriver> =>
      daemon().start({ features: [NET_FEATURE.MRG_RXBUF, ...features], queueSize: SIZE });

    it.each(LOADS)('receives every packet %s', async (_load, { features, depth, packets }) => {
      const driver = await start(features);
      const eventIdx = features.includes(FEATURE.EVENT_IDX);
      const ring = driver.rx();
      driver.post(depth, 2048);
      let kicks = 0;

      for (let done = 0; done < packets; ) {
        // Up to twice as many as there are buffers: the device runs out of them in the middle.
        const batch = 1 + ((done * 7) % (2 * depth));
        for (let i = 0; i < batch; i += 1) daemon().host.send(testFrame(done + i));
        await dawdle(done % 3);
        for (let got = 0; got < batch; got += 1) {
          const [used] = (await ring.take(1, DEADLINE_MS)) as [{ id: number; length: number }];
          expect(seedOf(driver.contentOf(used.id, used.length).subarray(12))).toBe(done + got);
          await dawdle((done + got) % 4 === 0 ? 1 : 0);
          if (offer(ring, eventIdx, [used.id])) kicks += 1;
        }
        done += batch;
      }

      expect(kicks).toBeLessThanOrEqual(packets * 2);
    });

    it.each(LOADS)('sends every packet %s', async (_load, { features, depth, packets }) => {
      const driver = await start(features);
      const eventIdx = features.includes(FEATURE.EVENT_IDX);
      const ring = driver.tx();
      for (let head = 0; head < depth; head += 1) {
        ring.setChain(head, driver.place(new Uint8Array(Buffer.concat([netHeader(), testFrame(head)]))));
      }

      for (let done = 0; done < packets; ) {
        const batch = 1 + ((done * 7) % depth);
        offer(ring, eventIdx, [...Array(batch).keys()]);
        await dawdle(done % 4);
        const used = await ring.take(batch, DEADLINE_MS);
        expect(used.map(({ id }) => id)).toEqual([...Array(batch).keys()]);
        const frames = await daemon().host.receive(batch);
        expect(frames.map(seedOf)).toEqual([...Array(batch).keys()]);
        done += batch;
      }
    });
  });
});
