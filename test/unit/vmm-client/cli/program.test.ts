import { readFileSync } from 'node:fs';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import type { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { createProgram } from '../../../../vmm-client/cli/program.ts';

const HOST = { root: '/nonexistent', runtimeDirectory: '/nonexistent', onExit: () => () => undefined };

/** Runs the command line with nobody at the socket. Returns what it said and how it ended. */
async function run(
  ...args: string[]
): Promise<{ stdout: string; stderr: string; error: Error & { exitCode?: number } }> {
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const program = await createProgram(
    { stdin, stdout, stderr, interrupted: new AbortController().signal, host: HOST },
    '1.2.3',
    args[0],
  );
  const error = await program.parseAsync(args, { from: 'user' }).then(
    () => new Error('no error'),
    (reason) => reason,
  );
  stdout.end();
  stderr.end();
  return { stdout: await text(stdout), stderr: await text(stderr), error };
}

const SOCKET = '/nonexistent/socket';

describe('the command line', () => {
  it('prints the version', async () => {
    const { stdout, error } = await run('--version');
    expect([stdout, error.exitCode]).toEqual(['1.2.3\n', 0]);
  });

  it.each([
    [['info'], "missing required argument 'socket'"],
    [['info', SOCKET, 'surplus'], 'too many arguments'],
    [['info', SOCKET, '--type', 'gpu'], 'Allowed choices are auto, blk, net, vsock'],
    [['frob'], "unknown command 'frob'"],
    [['blk', 'read', SOCKET, '--length', '4q'], "'4q' is not a size in bytes"],
    [['blk', 'bench', SOCKET, '--qd', '0'], "'0' is not a whole number from 1 to"],
    [['blk', 'bench', SOCKET, '--rw', 'sideways'], "argument 'sideways' is invalid"],
    [['blk', 'bench', SOCKET, '--time', 'soon'], "'soon' is not a duration"],
    [['blk', 'verify', SOCKET, '--sed', '1'], "unknown option '--sed'"],
    [['net', 'ping', SOCKET, '192.0.2.1'], "required option '--ip <address/prefix>' not specified"],
    [['net', 'ping', SOCKET, '192.0.2', '--ip', '192.0.2.2/24'], "'192.0.2' is not an IPv4 address such as 192.0.2.1"],
    [['net', 'ping', SOCKET, '192.0.2.1', '--ip', '192.0.2.2'], "'192.0.2.2' is not an IPv4 address with the length"],
    [['net', 'pcap', SOCKET], "missing required argument 'file'"],
    [['net', 'bench', SOCKET, '--direction', 'up'], 'Allowed choices are tx, rx, both'],
    [['vsock', 'connect', SOCKET], "missing required argument 'port'"],
    [['vsock', 'connect', SOCKET, '4294967295'], "'4294967295' is not a whole number from 0 to 4294967294"],
    [['vsock', 'listen', SOCKET, '80', '--guest-cid', '2'], "'2' is not a whole number from 3 to 4294967294"],
    [['vsock', 'bench', SOCKET, '--load', 'both'], 'Allowed choices are tx, rx, rr, connect, accept'],
    [['vm', 'run'], "required option '--kernel <path>' not specified"],
    [['vm', 'run', '--kernel', 'k', 'surplus'], 'too many arguments'],
    [['vm', 'run', '--kernel', 'k', '--cpus', 'max=2'], "the field 'boot' is missing"],
    [['vm', 'run', '--kernel', 'k', '--memory', 'size=4q'], "size: '4q' is not a size in bytes"],
    [['vm', 'run', '--kernel', 'k', '--disk', 'colour=red'], "there is no field 'colour'; there are path, socket,"],
    [['vm', 'run', '--kernel', 'k', '--disk', 'path=a', 'path=b,direct=x'], "direct: 'x' is neither on (true) nor"],
    [['vm', 'run', '--kernel', 'k', '--serial', 'pty'], "'pty' is none of tty, off, null and file=<path>"],
    [['vm', 'run', '--kernel', 'k', '--console', 'tty'], "'tty' is not possible; possible is off, null"],
    [['ctl', 'ping'], "required option '--api-socket <path>' not specified"],
    [['ctl', '--api-socket', SOCKET, 'add-disk'], "missing required argument 'fields'"],
    [['ctl', '--api-socket', SOCKET, 'add-disk', 'colour=red'], "there is no field 'colour'; there are path, socket,"],
    [['ctl', '--api-socket', SOCKET, 'add-fs', 'socket=s'], "the field 'tag' is missing"],
    [['ctl', '--api-socket', SOCKET, 'add-vsock', 'cid=3'], "the field 'socket' is missing"],
    [['ctl', '--api-socket', SOCKET, 'remove-device'], "missing required argument 'id'"],
    [['ctl', '--api-socket', SOCKET, 'resize'], "required option '--memory <bytes>' not specified"],
    [['ctl', '--api-socket', SOCKET, 'resize', '--memory', '2X'], "'2X' is not a size in bytes such as"],
    [['ctl', '--api-socket', SOCKET, 'resize-disk', 'd'], "missing required argument 'bytes'"],
    [['ctl', '--api-socket', SOCKET, 'resize-disk', 'd', '-1'], "'-1' is not a size in bytes such as"],
    [
      ['ctl', '--api-socket', SOCKET, 'send-migration', 'host:1'],
      "'host:1' is neither unix:<path> nor tcp:<host>:<port>",
    ],
    [['ctl', '--api-socket', SOCKET, 'send-migration', 'unix:m', '--downtime', 'x'], "'x' is not a duration such as"],
    [['ctl', '--api-socket', SOCKET, 'restore', 'd', '--device', 'path=p'], "the field 'id' is missing"],
    [['ctl', '--api-socket', SOCKET, 'restore', 'd', '--device', 'id=d'], 'one of socket, path and tap is needed'],
    [['ctl', '--api-socket', SOCKET, 'snapshot'], "missing required argument 'directory'"],
    [['vm', 'serve'], "required option '--api-socket <path>' not specified"],
    [['net', 'bench', SOCKET, '--to-mac', '33:33:00:00:00:01'], 'is the MAC address of a group'],
  ])('refuses %j in one sentence', async (args, sentence) => {
    const { stdout, stderr, error } = await run(...args);
    expect(error).toMatchObject({ exitCode: 1, code: expect.stringMatching(/^commander\./) });
    expect(stderr).toMatch(/^ringside: /);
    expect(stderr).toContain(sentence);
    expect(stdout).toBe('');
  });

  it.each([
    [['--qd', '512'], '--qd 512 needs a --queue-size of as many entries, it is 256'],
    [['--bs', '1000'], '--bs 1000 is not a multiple of 512 bytes'],
    [['--queue-size', '100'], '--queue-size 100 is not a power of two'],
    [['--bs', '1G', '--qd', '2'], '2 GiB would be in flight'],
  ])('refuses bench %j before it looks at the socket', async (args, sentence) => {
    const { error } = await run('blk', 'bench', SOCKET, ...args);
    expect(error).toMatchObject({ code: 'USAGE', message: expect.stringContaining(sentence) });
  });

  it.each([
    [['bench', '--size', '41'], '--size 41: packets here have from 42 to 65549 bytes'],
    [['bench', '--gso', '--size', '66000'], '--size 66000: packets here have from 55 to 65549 bytes'],
    [['bench', '--queue-size', '100'], '--queue-size 100 is not a power of two'],
    [['ping', '10.0.0.1', '--ip', '192.0.2.2/24'], '10.0.0.1 is not in our network, 192.0.2.2/24'],
    [['ping', '192.0.2.2', '--ip', '192.0.2.2/24'], '192.0.2.2 is our own address'],
  ])('refuses net %j before it looks at the socket', async ([command = '', ...args], sentence) => {
    const { error } = await run('net', command, SOCKET, ...args);
    expect(error).toMatchObject({ code: 'USAGE', message: expect.stringContaining(sentence) });
  });

  it.each(['blk', 'net', 'vsock'])('takes packed rings of any size for %s', async (device) => {
    const { error } = await run(device, 'bench', SOCKET, '--queue-size', '100', '--packed', '--in-order');
    expect(error).toMatchObject({ code: 'ENOENT', message: expect.stringContaining(SOCKET) });
  });

  it.each([
    [['--disk', 'path=a,socket=b'], '--disk [0]: exactly one of path and socket is needed, both are given'],
    [['--disk', 'path=a', 'path=b,queue_size=100'], '--disk [1]: queue_size: 100 is not a power of two'],
    [['--cpus', 'boot=2,max=3'], '--cpus: max: 3 is not boot (2), and vCPUs are not hotplugged'],
    [['--memory', '5'], '--memory: size: 5 is below the minimum of 2097152'],
    [['--memory', 'size=1G,shared=off'], '--memory: shared is false, and back ends serve only memory that is shared'],
    [['--vsock', 'cid=2,socket=s'], '--vsock: cid: 2 is below the minimum of 3'],
    [['--net', 'tap=t,mac=01:00:5e:00:00:01'], '--net [0]: mac: 01:00:5e:00:00:01 is the MAC address of a group'],
  ])('refuses vm run %j before it looks at the kernel', async (args, sentence) => {
    const { error } = await run('vm', 'run', '--kernel', '/nonexistent/kernel', ...args);
    expect(error).toMatchObject({ code: 'USAGE', message: expect.stringContaining(sentence) });
  });

  it('says that a capture file cannot be written, before it looks at the socket', async () => {
    const { error } = await run('net', 'pcap', SOCKET, '/nonexistent/file.pcap');
    expect(error).toMatchObject({
      code: 'ENOENT',
      message: '/nonexistent/file.pcap cannot be written: no such file or directory',
    });
  });

  it('says where nobody listens', async () => {
    const { error } = await run('info', SOCKET);
    expect(error).toMatchObject({ code: 'ENOENT', message: expect.stringContaining(SOCKET) });
  });
});

describe('the manual pages of ringside', async () => {
  const page = (name: string) => readFileSync(new URL(`../../../../docs/man/${name}.1`, import.meta.url), 'utf8');
  const pages = {
    ringside: page('ringside'),
    vm: page('ringside-vm'),
    ctl: page('ringside-ctl'),
    ui: page('ringside-ui'),
  };
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const program = await createProgram(
    { stdin, stdout, stderr, interrupted: new AbortController().signal, host: HOST },
    '0',
  );
  const all = (command: Command): Command[] => [command, ...command.commands.flatMap(all)];
  // Most commands of ctl have no options of their own.
  const leaves = all(program).filter((command) =>
    command.parent?.name() === 'ctl'
      ? command.options.length > 0
      : command.name() === 'ctl' || command.commands.length === 0,
  );
  const nameOf = (command: Command): string =>
    command.parent === null ? command.name() : `${nameOf(command.parent)} ${command.name()}`;
  const shared = { blk: 'Disk options', info: 'Disk options', net: 'Network options', vsock: 'Vsock options' };

  /** Where the options of a command are described: a page of its own, or its section and one that others share. */
  function descriptionOf(name: string): string {
    const [, group = ''] = name.split(' ');
    if (group === 'vm' || group === 'ctl' || group === 'ui') return pages[group];
    const sections = pages.ringside.split(/^\.S[sh] /m);
    const sharedName = shared[group as keyof typeof shared];
    return sections.filter((each) => each.startsWith(`${name}\n`) || each.startsWith(sharedName)).join('');
  }

  it.each(leaves.map((command) => [nameOf(command), command] as const))(
    'describe every option of %s',
    (name, command) => {
      const description = descriptionOf(name);
      const options = command.options.map((option) => option.long ?? '');
      expect(options.length).toBeGreaterThan(0);
      expect(options.filter((long) => !description.includes(`Fl ${long.slice(1)}`))).toEqual([]);
    },
  );

  it('name no option that does not exist', () => {
    const known = new Set(all(program).flatMap((command) => command.options.map(({ long }) => long)));
    const text = Object.values(pages).join('');
    const named = [...text.matchAll(/Fl (-[a-z-]+)/g)].map(([, long]) => `-${long}`);
    expect(named.filter((long) => !known.has(long) && long !== '--help')).toEqual([]);
  });
});
