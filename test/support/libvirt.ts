/**
 * libvirt's QEMU driver within virsh (qemu:///embed), as root: no daemon of libvirt is needed, and what a system's
 * libvirt does is done all the same. QEMU runs as the user libvirt-qemu, and what it may not open it does not get.
 *
 * All of it is in namespaces of its own. The user, which Debian's package of the daemon makes, exists there only; and
 * QEMU, which libvirt puts into the background, ends with the namespace's first process whatever happens to virsh.
 */

import { chmodSync, chownSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { listensAt } from './backend-process.ts';
import { Child } from './child.ts';
import { Cleanup } from './cleanup.ts';
import { eventually } from './frontend/process-probe.ts';
import { Guest } from './guest/guest.ts';
import { qemuPeers } from './guest/qemu.ts';
import { type PeerName, peerPath, projectDirectory } from './peers.ts';

/** What a test needs for Libvirt and its guest. */
export const libvirtPeers: readonly PeerName[] = [...qemuPeers, 'virsh', 'QEMU driver of libvirt', 'socat'];

/** Users and groups as Debian's libvirt-daemon-system makes them. */
const QEMU_USER = 'libvirt-qemu';
const QEMU_ID = 64055;

/** Of the domain. */
const NAME = 'vm1';

const QEMU_NAMESPACE = 'http://libvirt.org/schemas/domain/qemu/1.0';

/** The shell is the namespace's first process, which waits for QEMU when it ends; virsh in its place would not. */
const SCRIPT = `
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
virsh -q -c "qemu:///embed?root=$1" 2>&1
exit $?
`;

/** Without a system around it: its log daemon, and control groups that somebody else owns. */
const CONFIGURATION = `
stdio_handler = "file"
cgroup_controllers = []
`;

/** The number of the group kvm, which sockets are for. A machine where udev has made none gets one that nobody has. */
const socketGroup = (): number =>
  Number(/^kvm:[^:]*:(\d+):/m.exec(readFileSync('/etc/group', 'utf8'))?.[1] ?? QEMU_ID + 1);

/**
 * Directories whose files belong to the group that QEMU is in, as docs/operators.md says for daemons that are started
 * from a shell. The other half of that is the umask of this process, from the first directory to the end.
 */
export class GroupCleanup extends Cleanup {
  #umask: number | undefined;

  override directory(): string {
    if (this.#umask === undefined) {
      const before = process.umask(0o007);
      this.#umask = before;
      this.add(() => process.umask(before));
    }
    const path = super.directory();
    chownSync(path, -1, socketGroup());
    chmodSync(path, 0o2770);
    return path;
  }
}

/** The parts of a domain's XML that a test is about. */
export interface DomainParts {
  readonly memoryBacking: string;
  readonly devices: readonly string[];
  /** Elements of the namespace `qemu`. */
  readonly qemu: readonly string[];
  /** Path of the guest's initramfs. */
  readonly initramfs: string;
}

export class Libvirt {
  readonly #cleanup: GroupCleanup;
  readonly #root: string;
  readonly #child: Child;
  #lastId = 0;

  private constructor(cleanup: GroupCleanup, root: string, child: Child) {
    this.#cleanup = cleanup;
    this.#root = root;
    this.#child = child;
  }

  /** Starts a virsh with a driver of its own. `cleanup` ends it, and all machines with it. */
  static async start(cleanup: GroupCleanup): Promise<Libvirt> {
    const root = cleanup.directory();
    const add = (name: string, line: string): void => {
      const others = readFileSync(`/etc/${name}`, 'utf8').replace(new RegExp(`^${QEMU_USER}:.*\n`, 'm'), '');
      writeFileSync(join(root, name), `${others}${QEMU_USER}:x:${line}\n`);
      chmodSync(join(root, name), 0o644);
    };
    add('passwd', `${QEMU_ID}:${socketGroup()}::/nonexistent:/usr/sbin/nologin`);
    add('group', `${QEMU_ID}:${QEMU_USER}`);
    mkdirSync(join(root, 'etc'));
    writeFileSync(join(root, 'etc/qemu.conf'), CONFIGURATION);
    const namespaces = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
    const child = new Child('unshare', [...namespaces, 'sh', '-e', '-c', SCRIPT, 'sh', root]);
    cleanup.add(() => child.stop());
    const libvirt = new Libvirt(cleanup, root, child);
    await libvirt.run('version');
    return libvirt;
  }

  /** Runs a command of virsh and returns what it printed. @throws Error - with libvirt's words when it fails */
  async run(command: string, deadlineMs = 30_000): Promise<string> {
    const end = `@@end ${++this.#lastId}@@`;
    const from = this.#child.mark();
    this.#child.stdin.write(`${command}\necho ${end}\n`);
    const match = await this.#child.waitFor(new RegExp(`^([^]*?)^${end}`, 'm'), deadlineMs, from);
    // Readline repeats what it reads, behind its prompt.
    const echoes = [command, `echo ${end}`];
    const lines = (match[1] ?? '').split('\n').filter((line) => !echoes.includes(line.replace('virsh # ', '')));
    const output = lines.join('\n').trim();
    if (/^error: /m.test(output)) throw new Error(`virsh ${command}:\n${output}`);
    return output;
  }

  /** Runs a command of virsh that takes XML from a file. */
  runWithXml(command: string, xml: string): Promise<string> {
    const path = join(this.#cleanup.directory(), 'xml');
    writeFileSync(path, xml);
    return this.run(`${command} ${path}`);
  }

  /** The end of what QEMU has said. */
  #log(): string {
    return readFileSync(join(this.#root, 'log/qemu', `${NAME}.log`), 'utf8').slice(-2000);
  }

  /** Boots a guest whose console is a socket of ours. Its child ends when the machine does. */
  async boot(parts: DomainParts): Promise<Guest> {
    const directory = this.#cleanup.directory();
    const console = join(directory, 'console');
    const child = new Child(peerPath('socat'), ['-', `UNIX-LISTEN:${console}`]);
    this.#cleanup.add(() => child.stop());
    await eventually(
      'a listener for the console',
      () => listensAt(console),
      (listens) => listens,
    );
    const guest = new Guest(child);
    try {
      await this.runWithXml('create', domain(parts, directory, console));
      await guest.waitUntilReady(60_000);
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${this.#log()}`);
    }
    return guest;
  }
}

/** Kernel and initramfs are copies: libvirt gives them to QEMU's user. */
const domain = (parts: DomainParts, directory: string, console: string): string => {
  const kernel = join(directory, 'kernel');
  const initramfs = join(directory, 'initramfs');
  copyFileSync(peerPath('cloud kernel'), kernel);
  copyFileSync(parts.initramfs, initramfs);
  return `<domain type='qemu' xmlns:qemu='${QEMU_NAMESPACE}'>
  <name>${NAME}</name>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  ${parts.memoryBacking}
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initramfs}</initrd>
    <cmdline>console=ttyS0 quiet loglevel=2 panic=0 mitigations=off random.trust_cpu=on</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>${peerPath('qemu-system-x86_64')}</emulator>
    <controller type='usb' model='none'/>
    <serial type='unix'><source mode='connect' path='${console}'/></serial>
    ${parts.devices.join('\n')}
    <memballoon model='none'/>
  </devices>
  ${parts.qemu.join('\n')}
</domain>
`;
};

/**
 * The first element of that name in a document of the project, with `replacements` for what is otherwise on this
 * machine, all of which must occur.
 */
export const documented = (
  file: string,
  element: string,
  replacements: Readonly<Record<string, string>> = {},
): string => {
  const text = readFileSync(join(projectDirectory, file), 'utf8');
  const found = new RegExp(`^    <${element}\\b[^]*?^    </${element}>$`, 'm').exec(text)?.[0];
  if (found === undefined) throw new Error(`${file} shows no <${element}>`);
  return Object.entries(replacements).reduce((xml, [theirs, ours]) => {
    if (!xml.includes(theirs)) throw new Error(`the <${element}> of ${file} does not have ${theirs}:\n${xml}`);
    return xml.replaceAll(theirs, ours);
  }, found);
};
