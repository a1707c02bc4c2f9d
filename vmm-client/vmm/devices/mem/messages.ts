/** What driver and memory device say to each other, and the configuration space. Source: VIRTIO 1.3, 5.15.4, 5.15.6. */

import {
  VIRTIO_MEM_CONFIG as CONFIG,
  VIRTIO_MEM_REQ as REQ,
  VIRTIO_MEM_RESP as RESP,
  VIRTIO_MEM_CONFIG_BYTES,
  VIRTIO_MEM_REQ_BYTES,
  VIRTIO_MEM_RESP_BYTES,
} from '../../../../protocol/virtio/mem.ts';
import { HOTPLUG_BLOCK_BYTES } from '../../config-limits.ts';
import type { HotplugRegion } from './region.ts';

/** A request as it came. All but its type mean nothing for UNPLUG ALL. */
export interface MemRequest {
  readonly type: number;
  /** Guest address; inexact, and then above all of memory, where it does not fit into a number. */
  readonly address: number;
  /** Blocks. */
  readonly count: number;
}

/** Undefined: it is shorter than a request, or there is no room for a response. */
export function parseRequest(bytes: Uint8Array, writable: number): MemRequest | undefined {
  if (bytes.length < VIRTIO_MEM_REQ_BYTES || writable < VIRTIO_MEM_RESP_BYTES) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return {
    type: view.getUint16(REQ.type, true),
    address: Number(view.getBigUint64(REQ.addr, true)),
    count: view.getUint16(REQ.nb_blocks, true),
  };
}

export function encodeResponse(type: number, state = 0): Uint8Array {
  const bytes = new Uint8Array(VIRTIO_MEM_RESP_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(RESP.type, type, true);
  view.setUint16(RESP.state, state, true);
  return bytes;
}

/** In bytes. */
export interface MemSizes {
  readonly usable: number;
  readonly plugged: number;
  readonly requested: number;
}

export function encodeConfig({ start, size }: HotplugRegion, { usable, plugged, requested }: MemSizes): Uint8Array {
  const bytes = new Uint8Array(VIRTIO_MEM_CONFIG_BYTES);
  const view = new DataView(bytes.buffer);
  const set = (offset: number, value: number): void => view.setBigUint64(offset, BigInt(value), true);
  set(CONFIG.block_size, HOTPLUG_BLOCK_BYTES);
  set(CONFIG.addr, start);
  set(CONFIG.region_size, size);
  set(CONFIG.usable_region_size, usable);
  set(CONFIG.plugged_size, plugged);
  set(CONFIG.requested_size, requested);
  return bytes;
}
