/** The TAP under the device: up, down, deleted, made again, with another MTU; the front end hears of its link. */

import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { hostileNetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver } from '../support/frontend/net-driver.ts';
import { exchangeFrames } from '../support/frontend/net-good-client.ts';
import { NET_FEATURE, seedOf, testFrame } from '../support/frontend/net-wire.ts';
import { cpuWhenIdle, eventually } from '../support/frontend/process-probe.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { config, PROTOCOL, REQUEST } from '../support/frontend/wire.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const BACKEND_CONFIG_CHANGE_MSG = 2;
/** Of 300 ms; the kernel counts in steps of 10 ms. */
const MOST_CPU_MS = 60;
const OPTIONS = {
  features: [NET_FEATURE.MRG_RXBUF, NET_FEATURE.STATUS],
  protocolFeatures: [PROTOCOL.BACKEND_REQ],
  queueSize: 64,
};

const tests = (threads: number): void => {
  const daemon = hostileNetDaemon({ extra: [`--num-queue-pairs=${threads}`, `--threads=${threads}`] });

  const TAP = `tuntap add tap0 mode tap${threads > 1 ? ' multi_queue' : ''}`;
  const ip = (command: string): Promise<string> => daemon().namespace.run(`ip ${command}`);

  /** A driver that hears of changes. */
  const start = async (more: { features?: number[] } = {}): Promise<{ driver: NetDriver; channel: RawConnection }> => {
    const driver = await daemon().start({ ...OPTIONS, ...more });
    const [ours, theirs] = UnixStream.pair();
    const fd = theirs.detach();
    await driver.frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
    fd.close();
    return { driver, channel: daemon().keep(new RawConnection(ours)) };
  };

  const linkStatus = async ({ frontend }: NetDriver): Promise<number> => {
    const { payload } = await frontend.connection.call(REQUEST.GET_CONFIG, config(6, new Uint8Array(2)));
    return new DataView(payload.buffer, payload.byteOffset + 12).getUint16(0, true);
  };

  /** Waits for word of changes until the link is as expected. */
  const waitForLink = async (driver: NetDriver, channel: RawConnection, status: number): Promise<void> => {
    do {
      expect(await channel.receive()).toMatchObject({ id: BACKEND_CONFIG_CHANGE_MSG, flags: 1, fds: [] });
    } while ((await linkStatus(driver)) !== status);
  };

  /** Packets go both ways. */
  const expectTraffic = async (driver: NetDriver): Promise<void> => {
    driver.forget();
    const { host } = daemon();
    for (const length of [60, 1514]) {
      const frame = testFrame(length, length);
      await driver.sendFrame(frame);
      expect(Buffer.compare((await host.receive(1))[0] as Uint8Array, frame)).toBe(0);
    }
  };

  const expectAllTraffic = async (driver: NetDriver): Promise<void> => {
    await expectTraffic(driver);
    await exchangeFrames(driver, daemon().host);
  };

  describe('the link', () => {
    it('is up at once', async () => {
      const { driver } = await start();

      expect(await linkStatus(driver)).toBe(1);
      await expectAllTraffic(driver);
    });

    it('goes down and up with the interface; what is sent meanwhile is dropped', async () => {
      const { driver, channel } = await start();
      await ip('link set tap0 down');
      await waitForLink(driver, channel, 0);
      expect(await driver.sendFrame(testFrame(1))).toEqual({ id: 0, length: 0 });

      await ip('link set tap0 up');
      await waitForLink(driver, channel, 1);

      daemon().forgetHost();
      await driver.sendFrame(testFrame(2));
      await expectAllTraffic(driver);
    });

    it('goes down and up with the carrier', async () => {
      const { driver, channel } = await start();

      await ip('link set tap0 carrier off');
      await waitForLink(driver, channel, 0);
      await ip('link set tap0 carrier on');
      await waitForLink(driver, channel, 1);

      await expectAllTraffic(driver);
    });

    it('that is down costs no CPU time, whatever is in the TAP and in the rings', async () => {
      const { driver, channel } = await start();
      driver.post(16, 2048);
      for (let i = 0; i < 100; i += 1) daemon().host.send(testFrame(i));
      await ip('link set tap0 down');
      await waitForLink(driver, channel, 0);

      expect(await cpuWhenIdle(daemon().pid, 300, MOST_CPU_MS)).toBeLessThanOrEqual(MOST_CPU_MS);

      await ip('link set tap0 up');
      await waitForLink(driver, channel, 1);
      daemon().forgetHost();
    });

    it('survives a hundred changes while packets go both ways', async () => {
      const { driver } = await start();
      driver.post(32, 2048);
      let busy = true;
      const changes = daemon()
        .namespace.run('for i in $(seq 50); do ip link set tap0 down; ip link set tap0 up; done')
        .finally(() => {
          busy = false;
        });
      while (busy) {
        await driver.sendFrame(testFrame(1));
        try {
          daemon().host.send(testFrame(2));
        } catch {
          // ENETDOWN.
        }
        const ring = driver.rx();
        while (ring.seen !== ring.usedIndex) driver.repost(await driver.receive());
        driver.forget();
        for (let head = 0; head < 32; head += 1)
          driver.layBuffer(head, [{ at: driver.allocate(2048, 1), length: 2048 }]);
      }
      await changes;
      await eventually(
        'the link',
        () => daemon().log().lastIndexOf('link up') > daemon().log().lastIndexOf('link down'),
        (isUp) => isUp,
      );
      driver.close();
      daemon().forgetHost();
    });
  });

  describe('a TAP that is deleted', () => {
    it('takes the link with it, and nothing else; made again by somebody, it is used again', async () => {
      const { driver, channel } = await start();
      await expectAllTraffic(driver);

      await ip('link del tap0');
      await waitForLink(driver, channel, 0);
      expect(await driver.sendFrame(testFrame(1))).toEqual({ id: 0, length: 0 });
      expect(await cpuWhenIdle(daemon().pid, 300, MOST_CPU_MS)).toBeLessThanOrEqual(MOST_CPU_MS);
      daemon().forgetHost();
      await ip(TAP);
      await waitForLink(driver, channel, 1);

      await expectTraffic(driver);
    });

    it('serves the driver that was there, which notices nothing but the link', async () => {
      const { driver, channel } = await start();
      driver.post(16, 2048);
      for (let round = 0; round < 3; round += 1) {
        await ip('link del tap0');
        await waitForLink(driver, channel, 0);
        daemon().forgetHost();
        await ip(TAP);
        await waitForLink(driver, channel, 1);

        const { host } = daemon();
        await driver.sendFrame(testFrame(10 * round));
        expect(seedOf((await host.receive(1))[0] as Uint8Array)).toBe(10 * round);
        host.send(testFrame(10 * round + 1));
        const packet = await driver.receive();
        expect(seedOf(packet.frame)).toBe(10 * round + 1);
      }
    });

    it('is made again on SIGHUP', async () => {
      const { driver, channel } = await start();
      await ip('link del tap0');
      await waitForLink(driver, channel, 0);
      daemon().forgetHost();

      daemon().signal('SIGHUP');
      await waitForLink(driver, channel, 1);

      await expectAllTraffic(driver);
    });

    it('is used again when the name came back for something else meanwhile', async () => {
      const { driver, channel } = await start();
      await ip('link del tap0');
      await waitForLink(driver, channel, 0);
      daemon().forgetHost();
      const mark = daemon().mark();
      await ip('link add tap0 type bridge');
      await daemon().waitForLog(/not a TAP/, mark);
      await ip('link del tap0');

      await ip(TAP);
      await waitForLink(driver, channel, 1);

      await expectAllTraffic(driver);
    });

    it('is followed when it is renamed', async () => {
      const { driver } = await start();
      await ip('link set tap0 name tap7');
      await expectTraffic(driver);

      await ip('link set tap7 name tap0');
      await expectAllTraffic(driver);
    });
  });

  describe('the MTU of the TAP', () => {
    it.each([
      ['mergeable', [NET_FEATURE.MRG_RXBUF]],
      ['single', []],
    ])('grows to 9000 on the host: large packets arrive in %s buffers', async (_, features) => {
      const { driver, channel } = await start({ features });
      driver.post(32, features.length > 0 ? 1526 : 10_000);
      await ip('link set tap0 mtu 9000');
      expect(await channel.receive()).toMatchObject({ id: BACKEND_CONFIG_CHANGE_MSG });

      for (const seed of [1, 2, 3]) {
        const frame = testFrame(seed, 9014);
        daemon().host.send(frame);
        const packet = await driver.receive();
        expect(Buffer.compare(packet.frame, frame)).toBe(0);
        driver.repost(packet);
        await driver.sendFrame(frame);
        expect(Buffer.compare((await daemon().host.receive(1))[0] as Uint8Array, frame)).toBe(0);
      }
      await ip('link set tap0 mtu 1500');
      await channel.receive();
    });

    it('may grow under our hands: no packet is delivered cut', async () => {
      const { driver, channel } = await start();
      driver.post(32, 1526);
      for (let round = 0; round < 5; round += 1) {
        daemon().signal('SIGSTOP');
        await ip('link set tap0 mtu 9000');
        daemon().host.send(testFrame(1, 9014));
        daemon().host.send(testFrame(2, 100));
        daemon().signal('SIGCONT');

        // The first may be lost.
        for (let seed = 0; seed !== 2; ) {
          const packet = await driver.receive();
          seed = seedOf(packet.frame);
          expect(Buffer.compare(packet.frame, testFrame(seed, seed === 1 ? 9014 : 100))).toBe(0);
          driver.repost(packet);
        }
        await channel.receive();
        await ip('link set tap0 mtu 1500');
        await channel.receive();
      }
    });
  });
};

describeWithPeers(namespacePeers, 'a network device on a TAP', () => {
  describe('served by one thread', () => tests(1));
  describe('served by two threads', () => tests(2));
});
