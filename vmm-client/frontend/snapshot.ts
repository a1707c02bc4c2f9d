/**
 * A suspended device, as another back end needs it to go on: what was negotiated, where the rings lie and stand, and what
 * the back end itself knows. It holds no descriptor, so it can be sent or stored. Guest memory is not in it.
 * Source: vhost-user, Migrating back-end state, Inflight I/O tracking.
 */

import { readSync, writeSync } from 'node:fs';
import { createSealedMemfd } from '../../protocol/sys/owned-fd.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import type { RingPlace } from './device-setup.ts';
import type { InflightRegion } from './hand-over.ts';

/** A stopped ring, and its place in guest addresses (I/O virtual ones behind an IOMMU). */
export interface RingSnapshot extends RingPlace {
  readonly index: number;
  /** Entries. */
  readonly size: number;
  /** From GET_VRING_BASE: 16 bits of a split ring, 32 of a packed one. */
  readonly base: number;
}

/** The in-flight region, with its bytes. */
export interface InflightSnapshot {
  readonly numQueues: number;
  readonly queueSize: number;
  readonly bytes: Uint8Array;
}

export interface DeviceSnapshot {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  /** The first bytes of the configuration space, as many as were asked for. */
  readonly config: Uint8Array;
  readonly rings: readonly RingSnapshot[];
  readonly inflight: InflightSnapshot | undefined;
  /** What only the back end understands; undefined where it has no DEVICE_STATE. */
  readonly deviceState: Uint8Array | undefined;
}

/** Reads the in-flight region. Its back end has stopped. */
export function captureInflight({ area, fd }: InflightRegion): InflightSnapshot {
  const bytes = new Uint8Array(area.mmapSize);
  let done = 0;
  while (done < bytes.length) {
    const got = readSync(fd.fd, bytes, done, bytes.length - done, area.mmapOffset + done);
    if (got === 0) throw new PeerError(`the in-flight region has ${done} bytes, ${bytes.length} were agreed on`);
    done += got;
  }
  return { numQueues: area.numQueues, queueSize: area.queueSize, bytes };
}

/** Makes an in-flight region of the same content, for another back end. The caller owns its descriptor. @throws SysError */
export function recreateInflight({ numQueues, queueSize, bytes }: InflightSnapshot): InflightRegion {
  const fd = createSealedMemfd('ringside-inflight', bytes.length);
  const region = { area: { mmapSize: bytes.length, mmapOffset: 0, numQueues, queueSize }, fd };
  fillInflight(region, bytes);
  return region;
}

/** Writes the content of a region of that size. @throws Error - its file cannot be written */
export function fillInflight({ area, fd }: InflightRegion, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd.fd, bytes, done, bytes.length - done, area.mmapOffset + done);
  }
}
