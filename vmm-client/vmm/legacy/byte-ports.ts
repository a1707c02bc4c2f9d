/** Wide accesses to devices whose registers are one byte each: the bus splits them, the lowest byte first, as ISA does. */

/** Reads `size` registers from `offset` as one little-endian value. */
export function readPorts(offset: number, size: number, read: (offset: number) => number): number {
  let value = 0;
  for (let i = 0; i < size; i += 1) value += read(offset + i) * 2 ** (8 * i);
  return value;
}

/** Writes a little-endian value to `size` registers from `offset`. Kept when the last of them is. */
export function writePorts(
  offset: number,
  size: number,
  value: number,
  write: (offset: number, value: number) => void | Promise<void>,
): void | Promise<void> {
  let waiting: Promise<void> | undefined;
  for (let i = 0; i < size; i += 1) waiting = write(offset + i, (value >>> (8 * i)) & 0xff) ?? waiting;
  return waiting;
}
