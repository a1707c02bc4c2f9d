/**
 * What a driver chose and will not say again, where a killed daemon leaves it to the next one: behind the in-flight region,
 * in the file of it, which the front end keeps for us. The region that the protocol knows of ends before, so nobody else
 * looks there. Two slots, of which one is whole whenever the daemon is killed:
 *
 *     sequence u32 @0, bytes u32 @4, CRC-32 u32 @8 of sequence, bytes and content, content @12
 *
 * The front end can write there too: what is found is checked by whoever takes it up.
 */

import { crc32 } from 'node:zlib';

const SLOT_BYTES = 2048;
const HEADER_BYTES = 12;
const CRC_AT = 8;

/** Room for both slots: a page. */
export const KEPT_CHOICES_BYTES = 2 * SLOT_BYTES;

interface Slot {
  readonly sequence: number;
  readonly content: Uint8Array;
}

function checksum(slot: Uint8Array): number {
  return crc32(slot.subarray(HEADER_BYTES), crc32(slot.subarray(0, CRC_AT)));
}

/** @param bytes a copy of a slot, which nobody changes. Returns undefined where it is empty or was not finished */
function parseSlot(bytes: Uint8Array): Slot | undefined {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const sequence = data.getUint32(0, true);
  const end = HEADER_BYTES + data.getUint32(4, true);
  if (sequence === 0 || end > SLOT_BYTES) return undefined;
  const slot = bytes.subarray(0, end);
  if (data.getUint32(CRC_AT, true) !== checksum(slot)) return undefined;
  return { sequence, content: slot.slice(HEADER_BYTES) };
}

export class KeptChoices {
  readonly #slots: readonly [Uint8Array, Uint8Array];

  /** @param memory the front end's, KEPT_CHOICES_BYTES long */
  constructor(memory: ArrayBuffer) {
    this.#slots = [new Uint8Array(memory, 0, SLOT_BYTES), new Uint8Array(memory, SLOT_BYTES, SLOT_BYTES)];
  }

  /** The slot that was finished last, by its number; undefined when none was. */
  #last(): (Slot & { readonly number: number }) | undefined {
    const found = this.#slots.flatMap((memory, number) => {
      const slot = parseSlot(memory.slice());
      return slot === undefined ? [] : [{ ...slot, number }];
    });
    return found.sort((a, b) => b.sequence - a.sequence)[0];
  }

  /** What was stored last; undefined when nothing was. */
  load(): Uint8Array | undefined {
    return this.#last()?.content;
  }

  /** @throws RangeError - it is too long */
  store(content: Uint8Array): void {
    const { sequence = 0, number = 1 } = this.#last() ?? {};
    const slot = new Uint8Array(HEADER_BYTES + content.length);
    if (slot.length > SLOT_BYTES) throw new RangeError(`${content.length} bytes of choices`);
    const data = new DataView(slot.buffer);
    data.setUint32(0, sequence + 1, true);
    data.setUint32(4, content.length, true);
    slot.set(content, HEADER_BYTES);
    data.setUint32(CRC_AT, checksum(slot), true);
    (this.#slots[1 - number] as Uint8Array).set(slot);
  }
}
