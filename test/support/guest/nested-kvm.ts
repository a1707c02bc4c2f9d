/**
 * A machine with a whole KVM inside QEMU: TCG emulates the virtualization of AMD processors (SVM, nested paging), and
 * Debian's kvm-amd module offers it as /dev/kvm. Complete, and slow: 3 million int3 and iretq a second, a console byte in
 * milliseconds.
 *
 *     this machine   QEMU, TCG
 *       emulated machine   Debian's kernel with kvm-amd; its root is the image of host-image.ts and what is
 *                          written is kept in memory; scripts come over the serial port
 *         virtual machine     `ringside vm run` with a virtio-serial port of the emulated machine as its console
 */

import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath } from '../peers.ts';
import { Guest } from './guest.ts';
import { makeHostImage } from './host-image.ts';
import { findModules } from './initramfs.ts';
import { type KvmHost, type KvmHostContents, RINGSIDE, shellWords } from './kvm-host.ts';
import { bootQemu, type QemuGuest, qemuPeers } from './qemu.ts';

/** What a test needs for bootNestedKvmHost. */
export const nestedKvmPeers: readonly PeerName[] = [...qemuPeers, 'mkfs.ext4'];

const BRIDGE = fileURLToPath(new URL('console-bridge.mjs', import.meta.url));
/** Virtual machines that one emulated machine runs in its life. */
const CONSOLES = 8;
const MEMORY_MIB = 2048;
const KVM_MODULES = ['overlay', 'virtio_console', 'irqbypass', 'kvm', 'kvm-amd'];

class NestedKvmHost implements KvmHost {
  readonly description: string;
  readonly #cleanup: Cleanup;
  readonly #machine: QemuGuest;
  readonly #consoleSockets: readonly string[];
  #started = 0;
  #directories = 0;

  constructor(cleanup: Cleanup, machine: QemuGuest, consoleSockets: readonly string[], why: string) {
    this.#cleanup = cleanup;
    this.#machine = machine;
    this.#consoleSockets = consoleSockets;
    this.description = `a machine that QEMU emulates (${why})`;
  }

  /** Scripts run one after the other. */
  async run(script: string, deadlineMs = 60_000): Promise<string> {
    return this.#machine.run(
      `cat >/host/tmp/script <<'@@end of script@@'
${script}
@@end of script@@
      chroot /host /bin/busybox sh -e /tmp/script`,
      deadlineMs,
    );
  }

  async directory(): Promise<string> {
    this.#directories += 1;
    return this.run(`mkdir /tmp/ringside-${this.#directories}; echo /tmp/ringside-${this.#directories}`);
  }

  async startVm(args: readonly string[], command: 'run' | 'serve' = 'run'): Promise<Guest> {
    const index = this.#started;
    const socket = this.#consoleSockets[index];
    if (socket === undefined) throw new Error(`an emulated machine starts ${CONSOLES} virtual machines, no more`);
    this.#started += 1;
    const child = new Child(process.execPath, [BRIDGE, socket]);
    this.#cleanup.add(() => child.stop());
    // A port can be opened once, so one descriptor is for both directions; and the VMM gets its input through a pipe,
    // which ends with it.
    await this.run(
      `for port in /sys/class/virtio-ports/*; do
        if [ "$(cat $port/name)" = console${index} ]; then device=/dev/\${port##*/}; fi
      done
      mkfifo /tmp/console${index}
      (
        set +e
        exec 3<>$device
        cat <&3 >/tmp/console${index} &
        ${shellWords([...RINGSIDE, 'vm', command, ...args])} </tmp/console${index} >&3 2>&3 3>&-
        echo "@@vm ended $?@@" >&3
        kill $!
      ) >/dev/null 2>&1 </dev/null &`,
    );
    return new Guest(child);
  }
}

/** Boots the emulated machine, which `cleanup` ends. `why` it is needed goes into its description. */
export const bootNestedKvmHost = async (cleanup: Cleanup, contents: KvmHostContents, why: string): Promise<KvmHost> => {
  const directory = cleanup.directory();
  const image = join(directory, 'root.img');
  const modules = findModules(peerPath('cloud kernel modules'), [...KVM_MODULES, ...(contents.modules ?? [])]);
  makeHostImage(image, {
    programs: (contents.programs ?? []).map((name) => peerPath(name)),
    files: [...modules, ...(contents.files ?? [])],
  });
  const sockets = Array.from({ length: CONSOLES }, (_, index) => join(directory, `console${index}`));
  const machine = await bootQemu(cleanup, {
    machine: 'q35',
    cpus: 2,
    memoryMiB: MEMORY_MIB,
    extra: [
      ...['-drive', `file=${image},if=virtio,format=raw,readonly=on`],
      ...['-device', 'virtio-serial-pci'],
      ...sockets.flatMap((socket, index) => [
        ...['-chardev', `socket,id=console${index},path=${socket},server=on,wait=off`],
        ...['-device', `virtserialport,chardev=console${index},name=console${index}`],
      ]),
    ],
  });
  await machine.run(
    `mkdir /host /image /written
    mount -t ext4 -o ro /dev/vda /image
    ${modules.map((module) => `insmod /image${module}${basename(module) === 'kvm-amd.ko' ? ' nested=0' : ''}`).join('\n')}
    mount -t tmpfs tmpfs /written
    mkdir /written/upper /written/work
    mount -t overlay overlay -o lowerdir=/image,upperdir=/written/upper,workdir=/written/work /host
    for point in proc sys dev; do mount --bind /$point /host/$point; done
    test -c /dev/kvm
    ip link set lo up`,
    60_000,
  );
  return new NestedKvmHost(cleanup, machine, sockets, why);
};
