/**
 * What a network device says of itself, by each option, and what a front end may say to it.
 * Source: VIRTIO 1.3, 5.1.3, 5.1.4; vhost-user, Front-end message types; RFC 903.
 */

import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { hostileNetDaemon, NetDaemon } from '../support/frontend/net-daemon.ts';
import type { NetDriver } from '../support/frontend/net-driver.ts';
import { NET_FEATURE, seedOf, testFrame } from '../support/frontend/net-wire.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { bits, config, PROTOCOL, REQUEST, u64 } from '../support/frontend/wire.ts';
import { dump, hex } from '../support/hex.ts';
import { namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const SEND_RARP = 19;
const NET_SET_MTU = 20;
const ETHERTYPE_RARP = 0x8035;
const CONFIG_BYTES = 24;

const readConfig = async (frontend: RawFrontend, offset = 0, size = CONFIG_BYTES): Promise<Uint8Array> => {
  const { payload } = await frontend.connection.call(REQUEST.GET_CONFIG, config(offset, new Uint8Array(size)));
  return payload.subarray(12);
};

const RING_BITS = [26, 28, 29, 30, 32, 34, 35];
const BASE = [0, 1, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 63];
/** UDP segmentation, by the kernel: Linux 6.2 and later. */
const USO = bits(54, 55, 56);
const CONTROL = [2, 17, 18, 19, 20, 21, 23];

describeWithPeers(namespacePeers, 'a network device', () => {
  describe('an option', () => {
    const cleanup = cleanupAfterEach();

    it.each<[string, string[], string[] | undefined, number[], number, string]>([
      // mac @0, status @6, max_virtqueue_pairs @8, mtu @10, speed @12, duplex @16
      ['nothing', [], undefined, BASE, 2, '000000000000 0100 0100 dc05 ffffffff ff'],
      [
        '--mac',
        ['--mac=52:54:00:Ab:cD:ef'],
        undefined,
        [...BASE, NET_FEATURE.MAC],
        2,
        '525400abcdef 0100 0100 dc05 ffffffff ff',
      ],
      ['--mtu', ['--mtu=9000'], undefined, BASE, 2, '000000000000 0100 0100 2823 ffffffff ff'],
      [
        '--num-queue-pairs',
        ['--num-queue-pairs=4'],
        undefined,
        [...BASE, NET_FEATURE.MQ, NET_FEATURE.GUEST_ANNOUNCE],
        8,
        '000000000000 0100 0400 dc05 ffffffff ff',
      ],
      ['--ctrl-vq', ['--ctrl-vq'], undefined, [...BASE, ...CONTROL], 3, '000000000000 0100 0100 dc05 ffffffff ff'],
      [
        '--ctrl-vq and --num-queue-pairs',
        ['--ctrl-vq', '--num-queue-pairs=2'],
        undefined,
        [...BASE, ...CONTROL, NET_FEATURE.MQ],
        5,
        '000000000000 0100 0200 dc05 ffffffff ff',
      ],
      ['--speed', ['--speed=10000'], undefined, BASE, 2, '000000000000 0100 0100 dc05 10270000 01'],
      ['--null', [], ['--null'], BASE, 2, '000000000000 0100 0100 dc05 ffffffff ff'],
      ['--null with --mtu', ['--mtu=1280'], ['--null'], BASE, 2, '000000000000 0100 0100 0005 ffffffff ff'],
    ])('(%s) is what the front end sees', async (_, extra, tap, features, rings, space) => {
      const daemon = await NetDaemon.start(cleanup, { extra, ...(tap === undefined ? {} : { tap }) });
      const frontend = RawFrontend.connect(daemon.socket);
      cleanup.add(() => frontend.close());
      await frontend.negotiate();

      // RARP 2, MTU 4, DEVICE_STATE 19 beside what every device has, and PAGEFAULT where a daemon may have a userfaultfd.
      expect(frontend.offeredProtocol & ~bits(PROTOCOL.PAGEFAULT)).toBe(bits(0, 1, 2, 3, 4, 5, 9, 12, 13, 15, 16, 19));
      expect((frontend.offered & ~USO).toString(2)).toBe(bits(...features, ...RING_BITS).toString(2));
      expect([0n, USO]).toContain(frontend.offered & USO);
      expect(await frontend.connection.ask(REQUEST.GET_QUEUE_NUM)).toBe(BigInt(rings));
      expect(dump(await readConfig(frontend))).toBe(dump(hex(`${space} 00000000000000`)));
      expect(dump(await readConfig(frontend, 10, 2))).toBe(dump(await readConfig(frontend)).slice(20, 24));
    });

    it('--mtu and --host-mac and addresses are set on the TAP, and the same at every start', async () => {
      const extra = ['--mtu=1400', '--ip=192.0.2.1/24', '--host-mac=02:00:00:aa:bb:cc'];
      const daemon = await NetDaemon.start(cleanup, { extra });

      const shown = await daemon.namespace.run('ip addr show tap0');

      expect(shown).toMatch(/UP.* mtu 1400 /);
      expect(shown).toContain('link/ether 02:00:00:aa:bb:cc');
      expect(shown).toContain('inet 192.0.2.1/24');
    });

    it('--ip6 sets an address of IPv6, and --bridge makes a port', async () => {
      const before = `echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6
      ip link add br0 type bridge; ip link set br0 up`;
      const daemon = await NetDaemon.start(cleanup, { before, extra: ['--ip6=2001:db8::1:2/64', '--bridge=br0'] });

      const shown = await daemon.namespace.run('ip addr show tap0');

      expect(shown).toContain('inet6 2001:db8::1:2/64');
      expect(shown).toContain('master br0');
    });

    it('--host-mac left out gives a TAP made here the same address each time, and leaves another one as it is', async () => {
      const mac = (text: string): string | undefined => /link\/ether (\S+)/.exec(text)?.[1];
      const daemon = await NetDaemon.start(cleanup);
      const first = mac(await daemon.namespace.run('ip link show tap0'));
      daemon.signal('SIGTERM');
      await daemon.waitForExit();
      daemon.forgetHost();
      await daemon.restart();
      expect(mac(await daemon.namespace.run('ip link show tap0'))).toBe(first);
      daemon.signal('SIGTERM');
      await daemon.waitForExit();
      daemon.forgetHost();

      // The kernel lets go of it a little after the end of the process.
      await daemon.namespace.run(`while ip link show tap0 >/dev/null 2>&1; do :; done
      ip tuntap add tap0 mode tap; ip link set tap0 address 02:00:00:00:00:77`);
      await daemon.restart();

      expect(mac(await daemon.namespace.run('ip link show tap0'))).toBe('02:00:00:00:00:77');
    });
  });

  describe('a front end', () => {
    const daemon = hostileNetDaemon({ extra: ['--mac=52:54:00:12:34:56', '--mtu=1600'] });
    const PROTOCOLS = { protocolFeatures: [PROTOCOL.RESET_DEVICE, 2, 4, 16] };

    it.each([
      ['the address', 0, 6, 0],
      ['the status', 6, 2, 0],
      ['the number of pairs', 8, 2, 0],
      ['the MTU', 10, 2, 0],
      ['a byte', 3, 1, 0],
      ['everything', 0, 17, 0],
      ['what is behind the end', 64, 4, 0],
      ['a byte, and says that it is migration', 3, 1, 1],
    ])('may not write %s of the configuration space', async (_, offset, size, flags) => {
      const driver = await daemon().prepare();
      const before = await readConfig(driver.frontend);
      const payload = config(offset, new Uint8Array(size).fill(0x55), flags);

      expect(await driver.frontend.isRefused(REQUEST.SET_CONFIG, payload)).toBe('nack');

      expect(dump(await readConfig(driver.frontend))).toBe(dump(before));
    });

    it.each([
      [0n, 'nack'],
      [67n, 'nack'],
      [68n, 'ok'],
      [1280n, 'ok'],
      [1600n, 'ok'],
      [1601n, 'nack'],
      [65536n, 'nack'],
      [0x1_0000_05dcn, 'nack'],
      [0xffff_ffff_ffff_ffffn, 'nack'],
    ])('that says the MTU is %i is told: %s', async (mtu, answer) => {
      const driver = await daemon().prepare(PROTOCOLS);

      expect(await driver.frontend.isRefused(NET_SET_MTU, u64(mtu))).toBe(answer);
    });

    it('is told its device status again, of 8 bits', async () => {
      const { frontend } = await daemon().prepare(PROTOCOLS);

      expect(await frontend.connection.ask(REQUEST.GET_STATUS)).toBe(0n);
      for (const status of [1n, 3n, 11n, 15n, 0x8fn, 0xffn]) {
        await frontend.require(REQUEST.SET_STATUS, u64(status));
        expect(await frontend.connection.ask(REQUEST.GET_STATUS)).toBe(status);
      }
      expect(await frontend.isRefused(REQUEST.SET_STATUS, u64(0x100))).toBe('nack');
      expect(await frontend.connection.ask(REQUEST.GET_STATUS)).toBe(0xffn);
    });

    const expectTraffic = async (driver: NetDriver, seed: number): Promise<void> => {
      await driver.sendFrame(testFrame(seed));
      expect(seedOf((await daemon().host.receive(1))[0] as Uint8Array)).toBe(seed);
      daemon().host.send(testFrame(seed + 1));
      const packet = await driver.receive();
      expect(seedOf(packet.frame)).toBe(seed + 1);
      driver.repost(packet);
    };

    it.each<[string, (frontend: RawFrontend) => Promise<void>]>([
      ['SET_STATUS 0', (frontend) => frontend.require(REQUEST.SET_STATUS, u64(0))],
      ['RESET_DEVICE', (frontend) => frontend.require(REQUEST.RESET_DEVICE)],
    ])('that resets the device by %s stops its rings, and may start them again', async (_, reset) => {
      const driver = await daemon().start({ ...PROTOCOLS, features: [NET_FEATURE.MRG_RXBUF] });
      const { frontend } = driver;
      driver.post(8, 2048);
      await frontend.require(REQUEST.SET_STATUS, u64(15));
      await expectTraffic(driver, 10);

      await reset(frontend);
      driver.tx().publish(0);
      driver.tx().signal();
      await frontend.connection.ask(REQUEST.GET_FEATURES);

      expect([driver.rx().usedIndex, driver.tx().usedIndex]).toEqual([1, 1]);
      await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
      for (const ring of frontend.rings) await frontend.startRing(ring, ring.usedIndex);
      // What was to be sent found the ring started and not yet enabled: it is dropped.
      await driver.tx().take(1);
      await expectTraffic(driver, 20);
    });

    const ANNOUNCEMENT = hex(`
    ff ff ff ff ff ff  52 54 00 12 34 56  80 35
    00 01  08 00  06  04  00 03
    52 54 00 12 34 56  00 00 00 00
    52 54 00 12 34 56  00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00`);

    it.each<[string, (driver: NetDriver) => Promise<void>]>([
      ['before any ring is started', async () => undefined],
      [
        'while its rings run',
        async ({ frontend }) => {
          for (const ring of frontend.rings) await frontend.startRing(ring);
        },
      ],
      [
        'after its rings ran',
        async ({ frontend }) => {
          for (const ring of frontend.rings) await frontend.startRing(ring);
          for (const ring of frontend.rings) await frontend.stopRing(ring);
        },
      ],
    ])('that sends SEND_RARP %s has its address announced, as RFC 903 says', async (_, prepare) => {
      const driver = await daemon().prepare(PROTOCOLS);
      const host = daemon().openHost({ ethertype: ETHERTYPE_RARP });
      await prepare(driver);

      // The first six bytes are the address; the last two mean nothing.
      await driver.frontend.require(SEND_RARP, hex('525400123456 ffff'));

      expect(dump((await host.receive(1))[0] as Uint8Array)).toBe(dump(ANNOUNCEMENT));
    });
  });

  describe('SEND_RARP to a new daemon', () => {
    const cleanup = cleanupAfterEach();

    it('has the address announced, too', async () => {
      const daemon = await NetDaemon.start(cleanup);
      const host = daemon.openHost({ ethertype: ETHERTYPE_RARP });
      const driver = await daemon.prepare({ protocolFeatures: [2] });

      await driver.frontend.require(SEND_RARP, hex('525400123456 0000'));

      expect((await host.receive(1))[0]?.length).toBe(60);
    });
  });
});
