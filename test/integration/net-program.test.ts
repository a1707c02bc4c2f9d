/** The network program around the device: its command line, privileges, TAPs that others made, signals. */

import { chmodSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { cleanupAfterAll, cleanupAfterEach } from '../support/cleanup.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';
import { holderOf, NET_MAIN, NetDaemon, quietNamespace } from '../support/frontend/net-daemon.ts';
import { NetDriver } from '../support/frontend/net-driver.ts';
import { connectGoodNet } from '../support/frontend/net-good-client.ts';
import {
  HostSide,
  IFF_MULTI_QUEUE,
  IFF_NO_PI,
  IFF_TAP,
  IFF_TUN,
  IFF_VNET_HDR,
  openTunIn,
} from '../support/frontend/net-host.ts';
import { testFrame } from '../support/frontend/net-wire.ts';
import { cpuWhenIdle } from '../support/frontend/process-probe.ts';
import { Program } from '../support/frontend/program.ts';
import { type NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';

const NOBODY = 65534;
/** TAPs of processes that have just ended go by themselves, a little later. */
const CLEAR = `for name in tap0 tap1 br0; do
  while [ -e /sys/class/net/$name ]; do ip link del $name 2>/dev/null || :; done
done`;
const cleanup = cleanupAfterEach();

/** Runs the program outside of any namespace of ours: for command lines that end it before it looks at a TAP. */
const start = (args: readonly string[], fds: OwnedFd[] = []): Program =>
  new Program(cleanup, [process.execPath, NET_MAIN, ...args], fds, 'env');

/** What a failing command line says: one line, no stack. */
const expectRefused = async (program: Program, sentence: RegExp): Promise<void> => {
  expect((await program.waitForExit()).code).toBe(2);
  expect(program.stderr).toMatch(/^vhost-user-net: [^\n]+\n$/);
  expect(program.stderr).toMatch(sentence);
  expect(program.stdout).toBe('');
};

describe('the command line', () => {
  it('--print-capabilities prints them as JSON, whatever else is there', async () => {
    const program = start(['--print-capabilities', '--nonsense', '--fd=abc']);

    expect((await program.waitForExit()).code).toBe(0);
    expect(JSON.parse(program.stdout)).toEqual({ type: 'net', features: [] });
    expect(program.stderr).toBe('');
  });

  it('--version prints a version and --help the options, on stdout', async () => {
    const version = start(['--version']);
    const help = start(['--help']);

    expect((await version.waitForExit()).code).toBe(0);
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    expect((await help.waitForExit()).code).toBe(0);
    for (const option of ['--tap', '--tap-fd', '--mac', '--mtu', '--num-queue-pairs', '--bridge', '--ctrl-vq']) {
      expect(help.stdout).toContain(option);
    }
  });

  it.each<[string, string[], RegExp]>([
    ['nothing', [], /--socket-path/],
    ['no socket', ['--tap=t'], /--socket-path/],
    ['no TAP', ['--socket-path=s'], /--tap/],
    ['an unknown option', ['--socket-path=s', '--tap=t', '--colour'], /--colour/],
    ['an argument too many', ['--socket-path=s', '--tap=t', 'more'], /too many arguments/],
    ['--tap and --tap-fd', ['--socket-path=s', '--tap=t', '--tap-fd=3'], /cannot be used with/],
    ['--tap and --null', ['--socket-path=s', '--tap=t', '--null'], /cannot be used with/],
    ['--null and an address', ['--socket-path=s', '--null', '--ip=192.0.2.1/24'], /cannot be used with/],
    ['--null and a bridge', ['--socket-path=s', '--null', '--bridge=br0'], /cannot be used with/],
    ['a descriptor that is a memory file', ['--socket-path=s', '--tap-fd=3'], /descriptor 3 is not a TAP/],
    ['two descriptors for one pair', ['--socket-path=s', '--tap-fd=3,4'], /2 descriptors for 1/],
  ])('with %s ends with status 2 and one sentence', async (_, args, sentence) => {
    const fd = createMemfd(4096);
    await expectRefused(start(args, [fd]), sentence);
    fd.close();
  });
});

describeWithPeers(namespacePeers, 'the program on a TAP', () => {
  describe('a TAP', () => {
    const shared = cleanupAfterAll();
    let namespace: NetworkNamespace | undefined;
    let socket = '';

    /** A namespace without interfaces, the same for all tests here. */
    const empty = async (): Promise<NetworkNamespace> => {
      namespace ??= await quietNamespace(shared);
      await namespace.run(CLEAR);
      const directory = cleanup.directory();
      chmodSync(directory, 0o777);
      socket = join(directory, 'net.sock');
      return namespace;
    };

    const run = (where: NetworkNamespace, args: readonly string[], fds: OwnedFd[] = [], uid = 0): Program => {
      const own = ['--reuid', `${uid}`, '--regid', `${uid}`, '--clear-groups', process.execPath, NET_MAIN];
      const [command, ...rest] = where.command('setpriv', [...own, `--socket-path=${socket}`, ...args]);
      return new Program(cleanup, rest, fds, command);
    };

    const serve = async (...args: Parameters<typeof run>): Promise<Program> => {
      const [where, options, fds, uid] = args;
      const program = run(where, [...options, '--log-format=json'], fds, uid);
      await program.waitForLog(/"listening on /);
      return program;
    };

    const expectServes = async (pid: number, name = 'tap0', inside = pid): Promise<void> => {
      const host = new HostSide(inside, name);
      cleanup.add(() => host.close());
      await connectGoodNet(socket, host);
    };

    const QUIETLY = '--log-level=silent';

    it.each<[string, string, string[], RegExp]>([
      ['is a TUN', 'ip tuntap add tap0 mode tun', ['--tap=tap0'], /tap0: .*not a TAP/],
      ['is a bridge', 'ip link add tap0 type bridge', ['--tap=tap0'], /tap0: .*not a TAP/],
      [
        'was made for one queue',
        'ip tuntap add tap0 mode tap',
        ['--tap=tap0', '--num-queue-pairs=2'],
        /ip tuntap add tap0 mode tap multi_queue/,
      ],
      ['takes no such MTU', '', ['--tap=tap0', '--mtu=65535'], /--mtu=65535/],
      ['is to join a bridge that is not there', '', ['--tap=tap0', '--bridge=br0'], /--bridge=br0/],
      [
        'is to join a bridge that is none',
        'ip tuntap add br0 mode tap',
        ['--tap=tap0', '--bridge=br0'],
        /--bridge=br0/,
      ],
    ])('that %s ends the program with one sentence, and leaves nothing behind', async (_, script, args, sentence) => {
      const where = await empty();
      await where.run(script === '' ? ':' : script);
      const before = await where.run('ls /sys/class/net');

      await expectRefused(run(where, [...args, QUIETLY]), sentence);

      expect(existsSync(socket)).toBe(false);
      if (script.includes('tap0')) expect(await where.run('ls /sys/class/net')).toBe(before);
    });

    it('that another program has ends the program with one sentence', async () => {
      const where = await empty();
      const fd = openTunIn(holderOf(where), 'tap0', IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);

      await expectRefused(run(where, ['--tap=tap0', QUIETLY]), /tap0: in use by another program/);
      fd.close();
    });

    it('of several queues serves one pair, too', async () => {
      const where = await empty();
      await where.run('ip tuntap add tap0 mode tap multi_queue');

      const program = await serve(where, ['--tap=tap0']);

      await expectServes(program.pid);
    });

    it.each([
      ['made by a user without privileges', ['--tap=tap0'], ''],
      ['that belongs to somebody else', ['--tap=tap0'], 'ip tuntap add tap0 mode tap user 1234'],
    ])('%s cannot be had: the sentence names CAP_NET_ADMIN', async (_, args, script) => {
      const where = await empty();
      if (script !== '') await where.run(script);

      await expectRefused(run(where, [...args, QUIETLY], [], NOBODY), /CAP_NET_ADMIN/);
    });

    it.each([
      ['--mtu=1400', /--mtu=1400: .*CAP_NET_ADMIN/],
      ['--ip=192.0.2.1/24', /--ip: .*CAP_NET_ADMIN/],
      ['--host-mac=02:00:00:00:00:05', /--host-mac=02:00:00:00:00:05: .*CAP_NET_ADMIN/],
      ['--bridge=br0', /--bridge=br0: .*CAP_NET_ADMIN/],
    ])(
      'of a user without privileges cannot be changed by %s: the sentence names CAP_NET_ADMIN',
      async (option, sentence) => {
        const where = await empty();
        await where.run(`ip tuntap add tap0 mode tap user ${NOBODY}; ip link add br0 type bridge; ip link set tap0 up`);

        await expectRefused(run(where, ['--tap=tap0', option, QUIETLY], [], NOBODY), sentence);
      },
    );

    it('that was made for a user serves without any privilege', async () => {
      const where = await empty();
      await where.run(`ip tuntap add tap0 mode tap user ${NOBODY}; ip link set tap0 up`);

      const program = await serve(where, ['--tap=tap0'], [], NOBODY);

      expect(program.stderr).not.toMatch(/CAP_NET_ADMIN/);
      await expectServes(program.pid);
      program.kill('SIGTERM');
      expect((await program.waitForExit()).code).toBe(0);
    });

    it('that was made for a user and is down waits for somebody who may set it up', async () => {
      const where = await empty();
      await where.run(`ip tuntap add tap0 mode tap user ${NOBODY}`);
      const program = await serve(where, ['--tap=tap0'], [], NOBODY);
      expect(program.stderr).toMatch(/CAP_NET_ADMIN/);

      await where.run('ip link set tap0 up');

      await program.waitForLog(/tap0: link up/);
      await expectServes(program.pid);
    });

    describe('handed over as a descriptor', () => {
      const GOOD = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

      const open = (where: NetworkNamespace, flags: number, name = 'tap0'): OwnedFd => {
        const fd = openTunIn(holderOf(where), name, flags);
        cleanup.add(() => fd.close());
        return fd;
      };

      it('is served, by a user without privileges', async () => {
        const where = await empty();
        const fd = open(where, GOOD);
        await where.run('ip link set tap0 up');

        const program = await serve(where, ['--tap-fd=3'], [fd], NOBODY);

        await expectServes(program.pid);
      });

      it('is served with two queues', async () => {
        const where = await empty();
        const first = open(where, GOOD | IFF_MULTI_QUEUE);
        const second = open(where, GOOD | IFF_MULTI_QUEUE);

        const program = await serve(where, ['--tap-fd=3,4', '--num-queue-pairs=2'], [first, second]);

        await expectServes(program.pid);
        const driver = await NetDriver.start(socket, { pairs: 2 });
        cleanup.add(() => driver.close());
        const host = new HostSide(program.pid, 'tap0');
        cleanup.add(() => host.close());
        await driver.sendFrame(testFrame(1), 1);
        await host.receive(1);
      });

      it('from another network namespace is served, and costs nothing when it is deleted', async () => {
        const where = await empty();
        const elsewhere = await quietNamespace(cleanup);
        const fd = open(elsewhere, GOOD);
        await elsewhere.run('ip link set tap0 up');
        const program = await serve(where, ['--tap-fd=3'], [fd]);
        fd.close();
        await expectServes(program.pid, 'tap0', holderOf(elsewhere));
        const driver = await NetDriver.start(socket);
        cleanup.add(() => driver.close());
        driver.post(8, 2048);
        await driver.sendFrame(testFrame(1));

        await elsewhere.run('ip link del tap0');

        expect(await cpuWhenIdle(program.pid, 300, 60)).toBeLessThanOrEqual(60);
        expect(await driver.sendFrame(testFrame(2))).toEqual({ id: 0, length: 0 });
        expect(program.ended).toBe(false);
      });

      it.each<[string, number, RegExp]>([
        ['is a TUN', IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, /descriptor 3 is a TUN/],
        ['has no header', IFF_TAP | IFF_NO_PI, /descriptor 3 was opened without IFF_VNET_HDR/],
      ])('but %s is refused', async (_, flags, sentence) => {
        const where = await empty();
        const fd = open(where, flags);

        await expectRefused(run(where, ['--tap-fd=3', QUIETLY], [fd]), sentence);
      });

      it('of another TAP than the first is refused', async () => {
        const where = await empty();
        const first = open(where, GOOD);
        const second = open(where, GOOD, 'tap1');

        await expectRefused(
          run(where, ['--tap-fd=3,4', '--num-queue-pairs=2', QUIETLY], [first, second]),
          /tap0 and tap1/,
        );
      });
    });
  });

  describe('a signal to stop', () => {
    it.each(['SIGTERM', 'SIGINT'] as const)(
      '%s ends a daemon under load with status 0, and its TAP',
      async (signal) => {
        const daemon = await NetDaemon.start(cleanup);
        const driver = await daemon.start();
        driver.post(64, 2048);
        for (let i = 0; i < 20; i += 1) {
          daemon.host.send(testFrame(i));
          await driver.sendFrame(testFrame(i));
        }

        daemon.signal(signal);

        expect(await daemon.waitForExit()).toEqual({ code: 0, signal: null });
        expect(daemon.log()).toMatch(/"transmitted":20/);
        expect(existsSync(daemon.socket)).toBe(false);
        await daemon.namespace.run('while ip link show tap0 >/dev/null 2>&1; do :; done');
      },
    );

    it('leaves a TAP that somebody else made', async () => {
      const daemon = await NetDaemon.start(cleanup, { before: 'ip tuntap add tap0 mode tap' });

      daemon.signal('SIGTERM');

      expect((await daemon.waitForExit()).code).toBe(0);
      expect(await daemon.namespace.run('ip link show tap0')).toContain('tap0');
    });
  });
});
