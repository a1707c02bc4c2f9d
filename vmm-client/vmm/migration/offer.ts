/** What a source says before it sends memory: what the destination has to build. */

import type { CheckedConfig } from '../check-config.ts';
import { VmError } from '../errors.ts';
import { MAX_VIRTIO_DEVICES, PAGE_BYTES } from '../layout.ts';
import { parseConfig } from '../parse-config.ts';
import { fieldsOf, flagOf, integerOf, listOf, textOf } from '../state/codec.ts';
import type { PageRange } from './page-set.ts';

/** How a machine came to be laid out while it ran: it need not be as a boot of its configuration would lay it out. */
export interface MachineLayout {
  readonly ranges: readonly PageRange[];
  /** Slot by id of the device. */
  readonly slots: ReadonlyMap<string, number>;
}

export interface Offer {
  readonly config: CheckedConfig;
  readonly layout: MachineLayout;
  /** Whether the guest runs, and is to run there. */
  readonly isRunning: boolean;
}

/** RAM has a few ranges: below the hole, above it, what was added. */
const MAX_RANGES = 64;

/** A layout as plain data. */
export function plainLayout({ ranges, slots }: MachineLayout): unknown {
  return {
    ranges: ranges.map(({ guestAddress, length }) => ({ guestAddress, length })),
    slots: [...slots].map(([id, slot]) => ({ id, slot })),
  };
}

/** @throws VmError - it is none */
export function parseLayout(value: unknown): MachineLayout {
  const { ranges, slots } = fieldsOf(value, 'layout');
  const parsed = listOf(slots, 'layout.slots', MAX_VIRTIO_DEVICES).map((each) => {
    const { id, slot } = fieldsOf(each, 'layout.slots');
    const maximum = MAX_VIRTIO_DEVICES - 1;
    return [textOf(id, 'layout.slots.id'), integerOf(slot, 'layout.slots.slot', { maximum })] as const;
  });
  const taken = new Map(parsed);
  if (taken.size !== parsed.length || new Set(taken.values()).size !== parsed.length) {
    throw new VmError('layout.slots: two devices have the same id or the same slot');
  }
  return {
    ranges: listOf(ranges, 'layout.ranges', MAX_RANGES).map((each) => {
      const { guestAddress, length } = fieldsOf(each, 'layout.ranges');
      const range = {
        guestAddress: integerOf(guestAddress, 'layout.ranges.guestAddress'),
        length: integerOf(length, 'layout.ranges.length', { minimum: PAGE_BYTES }),
      };
      if (range.guestAddress % PAGE_BYTES !== 0 || range.length % PAGE_BYTES !== 0) {
        throw new VmError(`layout.ranges: ${range.length} bytes at ${range.guestAddress} are not whole pages`);
      }
      return range;
    }),
    slots: taken,
  };
}

export function plainOffer({ config, layout, isRunning }: Offer): unknown {
  return { config, layout: plainLayout(layout), isRunning };
}

/** @throws VmError, VmConfigError - it is none, or of a machine that cannot be */
export function parseOffer(value: unknown): Offer {
  const { config, layout, isRunning } = fieldsOf(value, 'the offer');
  return { config: parseConfig(config), layout: parseLayout(layout), isRunning: flagOf(isRunning, 'isRunning') };
}

/** @throws VmError - RAM that was built is not the RAM that is to come */
export function checkRanges(built: readonly PageRange[], wanted: readonly PageRange[]): void {
  const text = (ranges: readonly PageRange[]) =>
    ranges.map(({ guestAddress, length }) => `${length} bytes at 0x${guestAddress.toString(16)}`).join(', ');
  if (text(built) === text(wanted)) return;
  throw new VmError(`RAM is ${text(built)} here, and ${text(wanted)} in the state of the machine`);
}
