import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { bootQemu, type QemuGuest, qemuPeers } from '../support/guest/qemu.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace } from '../support/net/namespace.ts';
import {
  bringUp,
  FileServer,
  HOST_ADDRESS,
  iperf,
  ping,
  startIperfServer,
  trafficPeers,
  trafficPrograms,
} from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;

/** A TAP that the daemon makes goes with it, and takes what the kernel knew of the guest along; one of ours stays. */
const cases = [
  { taps: 'a TAP that outlives it', ours: true, queuePairs: 2 },
  { taps: 'a TAP of its own', ours: false, queuePairs: 1 },
] as const;

for (const { taps, ours, queuePairs } of cases) {
  describeWithPeers([...qemuPeers, ...trafficPeers], `QEMU, when a daemon with ${taps} dies under load`, () => {
    const cleanup = cleanupAfterAll();
    let host: NetworkNamespace;
    let backend: NetBackend;
    let guest: QemuGuest;
    let files: FileServer;

    beforeAll(async () => {
      host = await NetworkNamespace.create(cleanup);
      if (ours) await host.addTap('tap0', { queuePairs });
      backend = await NetBackend.start(cleanup, { namespace: host, queuePairs, extra: [`--ip=${HOST_ADDRESS}/24`] });
      files = await FileServer.start(cleanup, host, 192 * MiB);
      await startIperfServer(host);
      guest = await bootQemu(cleanup, {
        machine: 'q35',
        cpus: 2,
        memoryMiB: 640,
        interfaces: [{ socket: backend.socket, queuePairs }],
        programs: trafficPrograms,
      });
      await bringUp(guest);
    });

    /** Bytes that have gone through the TAP, to the guest or from it. */
    const carried = async (): Promise<number> => {
      const counts = await host.run('cd /sys/class/net/tap0/statistics; cat rx_bytes tx_bytes');
      return counts.split('\n').reduce((sum, count) => sum + Number(count), 0);
    };

    /** Ends the daemon each time that the transfer has come on by some MiB, and starts it again. */
    const interrupt = async (transfer: Promise<string>, ends: readonly (() => Promise<unknown>)[]): Promise<string> => {
      let done = false;
      const settled = (): void => {
        done = true;
      };
      transfer.then(settled, settled);
      for (const end of ends) {
        const before = await carried();
        await expect.poll(carried, { timeout: 60_000, interval: 20 }).toBeGreaterThan(before + 16 * MiB);
        expect(done).toBe(false);
        await end();
        await backend.restart();
      }
      return transfer;
    };

    const kill = (): Promise<unknown> => backend.kill9();
    const terminate = async (): Promise<void> => {
      expect(await backend.sigterm()).toEqual({ code: 0, signal: null });
    };

    it('receives on, and nothing is lost', { timeout: 150_000 }, async () => {
      expect(await interrupt(files.sendTo(guest, 120_000), [kill, terminate, kill])).toBe(files.sha256);
    });

    it('sends on, and nothing is lost', { timeout: 150_000 }, async () => {
      expect(await interrupt(files.receiveFrom(guest, undefined, 120_000), [kill, terminate])).toBe(files.sha256);
    });

    it('is as good as before', async () => {
      await ping(guest, HOST_ADDRESS);
      await iperf(guest, HOST_ADDRESS, '--bidir --parallel 4');
    });
  });
}
