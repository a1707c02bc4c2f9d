/** The payload of a packet as pieces of the chain's buffers, behind its header. */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import type { SocketTransfer } from '../../protocol/sys/socket-transfer.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import type { ByteRing } from './byte-ring.ts';

/**
 * Adds `length` bytes of the chain's segments `first` to `end` to a transfer, from `skip` bytes behind the start of the
 * first. Returns how many bytes the transfer had room for.
 */
export function layOutChain(
  chain: DescriptorChain,
  first: number,
  end: number,
  skip: number,
  length: number,
  transfer: SocketTransfer,
): number {
  let toSkip = skip;
  let left = length;
  for (let i = first; i < end && left > 0; i += 1) {
    const size = chain.length[i] as number;
    if (toSkip >= size) {
      toSkip -= size;
      continue;
    }
    const part = Math.min(size - toSkip, left);
    if (!transfer.append((chain.address[i] as number) + toSkip, part)) break;
    toSkip = 0;
    left -= part;
  }
  return length - left;
}

/** Copies `length` bytes of the chain's readable part, from `skip` on, to the end of a ring. */
export function copyChain(
  chain: DescriptorChain,
  memory: GuestMemory,
  skip: number,
  length: number,
  ring: ByteRing,
): void {
  let toSkip = skip;
  let left = length;
  for (let i = 0; left > 0; i += 1) {
    const size = chain.length[i] as number;
    if (toSkip >= size) {
      toSkip -= size;
      continue;
    }
    const part = Math.min(size - toSkip, left);
    ring.append(memory, (chain.guest[i] as number) + toSkip, part);
    toSkip = 0;
    left -= part;
  }
}
