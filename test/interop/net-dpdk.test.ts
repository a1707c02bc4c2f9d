import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace } from '../support/net/namespace.ts';
import { Testpmd, testpmdPeers } from '../support/net/testpmd.ts';
import { HOST_ADDRESS, ping, trafficPeers } from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';

/** An address that nobody has: what is sent there ends up in testpmd. */
const NOBODY = '10.7.0.9';
const DATAGRAMS = 20_000;

/** Feature bits: virtio 1.3, 5.1.3 and 6. */
const MRG_RXBUF = 15;
const RING_PACKED = 34;
const IN_ORDER = 35;

const cases = [
  { queues: 1, mergeable: true, packed: false, inOrder: true },
  { queues: 1, mergeable: false, packed: false, inOrder: false },
  { queues: 2, mergeable: true, packed: false, inOrder: false },
  { queues: 2, mergeable: false, packed: false, inOrder: true },
  { queues: 1, mergeable: true, packed: true, inOrder: true },
  { queues: 1, mergeable: false, packed: true, inOrder: false },
  { queues: 2, mergeable: true, packed: true, inOrder: false },
  { queues: 2, mergeable: false, packed: true, inOrder: true },
] as const;

for (const { queues, mergeable, packed, inOrder } of cases) {
  const buffers = `${mergeable ? 'mergeable' : 'single'} receive buffers ${inOrder ? 'in order' : 'in any order'}`;
  const title = `DPDK testpmd, ${queues} ${packed ? 'packed' : 'split'} queue pairs, ${buffers}`;
  describeWithPeers([...testpmdPeers, ...trafficPeers], title, () => {
    const cleanup = cleanupAfterAll();
    let host: NetworkNamespace;
    let backend: NetBackend;
    let testpmd: Testpmd;
    let idleFds: number;

    beforeAll(async () => {
      host = await NetworkNamespace.create(cleanup);
      // A host that speaks IPv6 sends packets nobody asked for, which spoil the count.
      await host.run('echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6');
      backend = await NetBackend.start(cleanup, {
        namespace: host,
        queuePairs: queues,
        extra: [`--ip=${HOST_ADDRESS}/24`],
      });
      idleFds = backend.fdCount();
      // The TAP holds what the test sends at once; no packet is to be lost before the daemon has it.
      await host.run(`ip link set tap0 txqueuelen ${2 * DATAGRAMS}
        ip neigh replace ${NOBODY} lladdr 02:00:00:00:00:09 dev tap0`);
      testpmd = await start();
    });

    const start = (): Promise<Testpmd> =>
      Testpmd.start(cleanup, { socket: backend.socket, queues, mergeable, packed, inOrder });

    it('negotiates what it is told to', () => {
      const features = testpmd.negotiatedFeatures();
      const has = (bit: number): boolean => ((features >> BigInt(bit)) & 1n) === 1n;
      const negotiated = { mergeable: has(MRG_RXBUF), packed: has(RING_PACKED), inOrder: has(IN_ORDER) };
      expect(negotiated).toEqual({ mergeable, packed, inOrder });
    });

    const everyQueue = Array.from({ length: queues }, () => true);

    it('receives every packet of the TAP', async () => {
      await testpmd.use('rxonly');
      const before = await host.counters('tap0');
      await testpmd.startForwarding();
      // By default a TAP spreads flows over its queues.
      await host.run(
        `for port in $(seq 5001 5020); do
          dd if=/dev/zero bs=1000 count=${DATAGRAMS / 20} >/dev/udp/${NOBODY}/$port 2>/dev/null
        done`,
      );
      const sent = async (): Promise<number> => (await host.counters('tap0')).txPackets - before.txPackets;
      await expect.poll(sent, { timeout: 10_000 }).toBeGreaterThanOrEqual(DATAGRAMS);
      await expect.poll(() => testpmd.receivedPackets(), { timeout: 20_000 }).toBe(await sent());
      const counts = await testpmd.stopForwarding();
      expect(counts.map(({ rxPackets }) => rxPackets > 0)).toEqual(everyQueue);
      expect((await host.counters('tap0')).txDropped).toBe(before.txDropped);
    });

    it('answers pings, with their data', async () => {
      await testpmd.use('icmpecho');
      await testpmd.startForwarding();
      await ping(host, NOBODY);
      await ping(host, NOBODY, 1500);
      await testpmd.stopForwarding();
    });

    // Last: the driver enables its second pair without waiting for an answer, and what comes before is to be dropped.
    it('has every packet that it sends put onto the TAP', async () => {
      await testpmd.use('txonly');
      const before = (await host.counters('tap0')).rxPackets;
      await testpmd.startForwarding();
      await expect
        .poll(async () => (await host.counters('tap0')).rxPackets, { timeout: 20_000 })
        .toBeGreaterThan(before + 100_000);
      const counts = await testpmd.stopForwarding();
      const sent = counts.reduce((sum, { txPackets }) => sum + txPackets, 0);
      expect(counts.map(({ txPackets }) => txPackets > 0)).toEqual(everyQueue);
      await expect.poll(async () => (await host.counters('tap0')).rxPackets - before, { timeout: 20_000 }).toBe(sent);
    });

    it('leaves no descriptor behind, however often it comes', async () => {
      await testpmd.quit();
      await expect.poll(() => backend.fdCount(), { timeout: 20_000 }).toBe(idleFds);
      for (let round = 0; round < 2; round++) {
        const next = await start();
        await next.use('icmpecho');
        await next.startForwarding();
        await ping(host, NOBODY);
        // Once in order, once with a bang.
        if (round === 0) await next.quit();
        else await next.kill();
        await expect.poll(() => backend.fdCount(), { timeout: 20_000 }).toBe(idleFds);
      }
    });
  });
}
