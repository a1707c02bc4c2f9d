/** What a memory device takes along to another host. What comes from there is checked: it may be anything. */

import { HOTPLUG_BLOCK_BYTES } from '../../config-limits.ts';
import { VmError } from '../../errors.ts';
import { bytesOf, fieldsOf, integerOf } from '../../state/codec.ts';
import { bytesFor } from './blocks.ts';
import type { HotplugRegion } from './region.ts';

/** Addresses and sizes in bytes. */
export interface MemState {
  readonly start: number;
  readonly size: number;
  readonly requested: number;
  readonly usable: number;
  /** Bit N % 8 of byte N / 8 is set where block N is plugged. */
  readonly plugged: Uint8Array;
}

/** @throws VmError - a device with this region cannot have been so */
export function checkMemState(value: unknown, region: HotplugRegion): MemState {
  const what = 'memory device';
  const fields = fieldsOf(value, what);
  const start = integerOf(fields.start, `${what}: start`);
  const size = integerOf(fields.size, `${what}: size`);
  if (start !== region.start || size !== region.size) {
    throw new VmError(
      `${what}: its region was ${size} bytes at 0x${start.toString(16)}, ` +
        `it is ${region.size} bytes at 0x${region.start.toString(16)} here`,
    );
  }
  const inBlocks = (bytes: number, name: string): number => {
    if (bytes % HOTPLUG_BLOCK_BYTES === 0) return bytes;
    throw new VmError(`${what}: ${name}: ${bytes} is not a multiple of ${HOTPLUG_BLOCK_BYTES} bytes`);
  };
  const { hotplugBytes } = region;
  const requested = inBlocks(integerOf(fields.requested, `${what}: requested`, { maximum: hotplugBytes }), 'requested');
  const usable = inBlocks(integerOf(fields.usable, `${what}: usable`, { minimum: requested, maximum: size }), 'usable');
  const count = size / HOTPLUG_BLOCK_BYTES;
  const plugged = bytesOf(fields.plugged, `${what}: plugged`, bytesFor(count));
  const end = usable / HOTPLUG_BLOCK_BYTES;
  for (let block = end; block < plugged.length * 8; block += 1) {
    if (((plugged[block >> 3] as number) & (1 << (block & 7))) !== 0) {
      throw new VmError(`${what}: block ${block} is plugged, ${end} are usable`);
    }
  }
  return { start, size, requested, usable, plugged };
}
