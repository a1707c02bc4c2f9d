/**
 * The freestanding test guest in QEMU's microvm under TCG: the machine on which the guest itself is judged, by a second
 * implementation of virtio-mmio, and where the same back ends serve the same driver as under our own machine.
 */

import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath } from '../peers.ts';
import {
  buildGuest,
  type GuestForm,
  GuestOutput,
  type GuestParameters,
  guestCommandLine,
  guestProgramPeers,
} from './guest-program.ts';

/** What a test needs for startQemuGuest. */
export const qemuGuestPeers: readonly PeerName[] = ['qemu-system-x86_64', ...guestProgramPeers];

export interface QemuGuestOptions {
  /** QEMU enters an ELF by PVH and a bzImage in real mode; it has no other way. */
  readonly form?: Exclude<GuestForm, 'linux64'>;
  readonly parameters: GuestParameters;
  /** Sockets of vhost-user-blk back ends. */
  readonly disks?: readonly string[];
  /** Image files that QEMU serves itself. */
  readonly images?: readonly string[];
  /** Sockets of vhost-user-net back ends. */
  readonly networks?: readonly string[];
  readonly memoryMiB?: number;
  readonly cpus?: number;
  readonly queues?: number;
}

const MACHINE =
  'microvm,acpi=on,auto-kernel-cmdline=off,isa-serial=on,rtc=off,pic=off,pit=off,ioapic2=off,memory-backend=m';

/** Starts a guest that `cleanup` kills at the latest. It ends when it switches itself off. */
export const startQemuGuest = (cleanup: Cleanup, options: QemuGuestOptions): GuestOutput => {
  const memory = options.memoryMiB ?? 128;
  const queues = options.queues ?? 1;
  // microvm fills its transports from the last one down; their interrupts begin at 16 without a second I/O APIC.
  const parameters = { ...options.parameters, mmio: '0xfeb00000,0x200,8', last: 1, gsi: 16 };
  const child = new Child(peerPath('qemu-system-x86_64'), [
    ...['-machine', MACHINE],
    ...['-object', `memory-backend-memfd,id=m,size=${memory}M,share=on`, '-m', `${memory}M`],
    ...['-accel', 'tcg', '-cpu', 'max', '-smp', String(options.cpus ?? 1)],
    ...['-global', 'virtio-mmio.force-legacy=false', '-nodefaults', '-no-user-config'],
    ...['-nographic', '-serial', 'stdio'],
    ...['-kernel', buildGuest(options.form ?? 'pvh'), '-append', guestCommandLine(parameters)],
    ...(options.disks ?? []).flatMap((socket, n) => [
      ...['-chardev', `socket,id=d${n},path=${socket},reconnect=1`],
      ...['-device', `vhost-user-blk,chardev=d${n},num-queues=${queues}`],
    ]),
    ...(options.images ?? []).flatMap((path, n) => [
      ...['-drive', `file=${path},format=raw,if=none,id=i${n}`],
      ...['-device', `virtio-blk-device,drive=i${n},serial=qemu${n},num-queues=${queues}`],
    ]),
    ...(options.networks ?? []).flatMap((socket, n) => [
      ...['-chardev', `socket,id=n${n},path=${socket},reconnect=1`],
      ...['-netdev', `vhost-user,id=v${n},chardev=n${n}`, '-device', `virtio-net-device,netdev=v${n}`],
    ]),
  ]);
  cleanup.add(() => child.stop());
  return new GuestOutput(child);
};
