/**
 * fio at work in a guest: random writes of blocks with checksums, each read back and compared some time after it was
 * written. It runs while something happens to the guest or to the daemon, and is stopped when enough has.
 */

import type { PeerName } from '../peers.ts';
import type { Guest } from './guest.ts';

/** Programs that the guest needs, and the host. */
export const loadPrograms: readonly PeerName[] = ['fio'];

export interface DiskLoadOptions {
  /** Each works on 8 MiB of /dev/vda, one behind the other. */
  readonly jobs?: number;
  /** More of fio's arguments, `--fsync=16` for instance. */
  readonly extra?: string;
}

/** The console must stay free: the guest may be asked other things, and may be at another place when it ends. */
export const startDiskLoad = async (guest: Guest, options: DiskLoadOptions = {}): Promise<void> => {
  const { jobs = 2, extra = '' } = options;
  await guest.run(`rm -f /tmp/fio
    (/usr/bin/fio --name=verify --filename=/dev/vda --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
      --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=3600 --size=8M \
      --numjobs=${jobs} --offset_increment=8M --group_reporting ${extra} >/tmp/fio 2>&1 &
    echo $! >/tmp/fio.pid
    wait $! || status=$?
    echo "@@ended \${status:-0}" >>/tmp/fio) &`);
  // Before that it takes no signals.
  await guest.waitUntil('grep -q Starting /tmp/fio');
};

/** Stops it. @throws Error - when it found a block wrong, or a request failed, with fio's report */
export const stopDiskLoad = async (guest: Guest, deadlineMs = 60_000): Promise<void> => {
  // To the one that started the jobs, which then tells each of them once.
  await guest.run('kill -INT $(cat /tmp/fio.pid)');
  await guest.waitUntil('grep -q @@ended /tmp/fio', deadlineMs);
  const report = await guest.run('cat /tmp/fio');
  if (!/err= 0/.test(report) || /verify: bad|io_u error|got signal/.test(report)) {
    throw new Error(`fio is not content:\n${report}`);
  }
};
