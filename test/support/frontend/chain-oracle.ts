/**
 * What a descriptor chain means, decided slowly and plainly from VIRTIO 1.3, 2.7.5, byte ranges as BigInt: the second
 * opinion on protocol/virtqueue/chain.ts.
 */

export interface OracleRegion {
  readonly start: bigint;
  readonly end: bigint;
}

export interface OracleTable {
  /** Reads 16 bytes of guest memory, or undefined when they are not mapped. */
  readonly read: (address: bigint) => Uint8Array | undefined;
  readonly regions: readonly OracleRegion[];
  /** Guest address of the ring's descriptor table. */
  readonly table: bigint;
  readonly queueSize: number;
  readonly indirect: boolean;
  /** Descriptors a chain may have when it uses an indirect table. */
  readonly indirectLimit: number;
}

export interface OracleChain {
  /** hard: cannot be walked. soft: walked, but wrong. */
  readonly fault: 'none' | 'soft' | 'hard';
  /** [address, length] of what is readable and writable; neighbours joined. */
  readonly readable: readonly [bigint, bigint][];
  readonly writable: readonly [bigint, bigint][];
  /** Address of the last byte of the last writable buffer that is not empty; -1n when there is none, or not all mapped. */
  readonly lastWritable: bigint;
}

interface Descriptor {
  readonly address: bigint;
  readonly length: bigint;
  readonly flags: number;
  readonly next: number;
}

const decode = (bytes: Uint8Array): Descriptor => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
  return {
    address: view.getBigUint64(0, true),
    length: BigInt(view.getUint32(8, true)),
    flags: view.getUint16(12, true),
    next: view.getUint16(14, true),
  };
};

/** Whether every byte of the range is in some region. */
const isMapped = (regions: readonly OracleRegion[], address: bigint, length: bigint): boolean => {
  let at = address;
  const end = address + length;
  while (at < end) {
    const region = regions.find(({ start, end }) => start <= at && at < end);
    if (region === undefined) return false;
    at = region.end;
  }
  return true;
};

/** Ranges with empty ones left out and neighbours joined. */
export const joinRanges = (ranges: readonly (readonly [bigint, bigint])[]): [bigint, bigint][] => {
  const joined: [bigint, bigint][] = [];
  for (const [address, length] of ranges) {
    const last = joined.at(-1);
    if (length === 0n) continue;
    if (last !== undefined && last[0] + last[1] === address) last[1] += length;
    else joined.push([address, length]);
  }
  return joined;
};

const HARD: OracleChain = { fault: 'hard', readable: [], writable: [], lastWritable: -1n };

export const walkSlowly = (head: number, options: OracleTable): OracleChain => {
  const { regions } = options;
  const readable: [bigint, bigint][] = [];
  const writable: [bigint, bigint][] = [];
  let table = options.table;
  let entries = BigInt(options.queueSize);
  let limit = options.queueSize;
  let index = BigInt(head);
  let inIndirect = false;
  let soft = false;
  let bytes = 0n;
  let lastWritable = -1n;

  for (let visited = 1; ; visited += 1) {
    if (visited > limit) return HARD;
    const raw = options.read(table + 16n * index);
    if (raw === undefined) return HARD;
    const { address, length, flags, next } = decode(raw);
    if ((flags & 4) !== 0) {
      const mayBe = options.indirect && !inIndirect && (flags & 1) === 0;
      if (!mayBe || length === 0n || length % 16n !== 0n || !isMapped(regions, address, length)) return HARD;
      inIndirect = true;
      table = address;
      entries = length / 16n;
      index = 0n;
      limit = options.indirectLimit;
      continue;
    }
    const isWritable = (flags & 2) !== 0;
    if (!isWritable && joinRanges(writable).length > 0) soft = true;
    bytes += length;
    if (bytes >= 2n ** 32n) return HARD;
    if (length > 0n) {
      const mapped = isMapped(regions, address, length);
      if (!mapped) soft = true;
      if (isWritable) lastWritable = mapped ? address + length - 1n : -1n;
      (isWritable ? writable : readable).push([address, length]);
    }
    if ((flags & 1) === 0) break;
    index = BigInt(next);
    if (index >= entries) return HARD;
  }
  return {
    fault: soft ? 'soft' : 'none',
    readable: joinRanges(readable),
    writable: joinRanges(writable),
    lastWritable,
  };
};
