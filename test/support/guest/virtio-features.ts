/** What a guest's drivers have negotiated, by the numbers of the virtio standard, section 6. */

import type { Guest } from './guest.ts';

export const ACCESS_PLATFORM = 33;
export const RING_PACKED = 34;

/** Whether each virtio device of the guest has a feature. By the number of its type: 1 net, 2 block, 19 socket. */
export const devicesWith = async (guest: Guest, feature: number): Promise<ReadonlyMap<number, boolean>> => {
  // `features` is a string of digits, the one of bit 0 first.
  const output = await guest.run(
    'cd /sys/bus/virtio/devices; for d in *; do echo "$(cat $d/device) $(cat $d/features)"; done',
  );
  return new Map(
    output.split('\n').map((line) => {
      const [type = '', bits = ''] = line.split(' ');
      return [Number(type), bits[feature] === '1'];
    }),
  );
};
