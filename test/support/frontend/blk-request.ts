/**
 * Block requests as bytes in guest memory. Source: VIRTIO 1.3, 5.2.6: header type u32 @0, reserved u32 @4, sector u64
 * @8; then data; the last device-writable byte is the status (0 OK, 1 IOERR, 2 UNSUPP).
 */

import type { GuestRam } from './guest-ram.ts';
import { INDIRECT, type RawDescriptor, type RawVirtqueue, WRITE } from './raw-virtqueue.ts';

/** Guest memory with rings in it, and room for requests behind them. */
export interface RequestMemory {
  readonly ram: GuestRam;
  readonly dataStart: number;
  queue(index?: number): RawVirtqueue;
}

export const TYPE = {
  IN: 0,
  OUT: 1,
  SCSI_CMD: 2,
  FLUSH: 4,
  GET_ID: 8,
  DISCARD: 11,
  WRITE_ZEROES: 13,
  SECURE_ERASE: 14,
} as const;

export const STATUS = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;

/** What the status byte holds before the device writes it. */
export const UNTOUCHED = 0xa5;

export interface Answer {
  /** The status byte; UNTOUCHED when the device left it alone. */
  readonly status: number;
  /** Length in the used entry. */
  readonly usedLength: number;
  /** Copy of the device-writable data. */
  readonly data: Uint8Array;
}

export interface BlkRequest {
  readonly type: number;
  readonly sector?: number | bigint;
  /** Device-readable data. */
  readonly out?: Uint8Array;
  /** Bytes of device-writable data. */
  readonly inBytes?: number;
  /** Ring to use; default 0. */
  readonly queue?: number;
  /** Put the chain into an indirect table. */
  readonly indirect?: boolean;
}

/** Where one request's pieces are in guest memory (offsets). The areas of different slots do not overlap. */
export class RequestArea {
  readonly header: number;
  readonly status: number;
  readonly table: number;
  readonly data: number;
  readonly frontend: RequestMemory;

  /** Slot n takes 4 KiB and `dataBytes` of data, all behind the rings. */
  constructor(frontend: RequestMemory, slot = 0, dataBytes = 0x1_0000) {
    const at = frontend.dataStart + slot * (0x1000 + dataBytes);
    if (at + 0x1000 + dataBytes > frontend.ram.length) throw new Error(`no memory for request slot ${slot}`);
    this.frontend = frontend;
    this.header = at;
    this.status = at + 0xff0;
    this.table = at + 0x400;
    this.data = at + 0x1000;
  }

  putHeader(type: number, sector: number | bigint = 0): void {
    const { view } = this.frontend.ram;
    view.setUint32(this.header, type, true);
    view.setUint32(this.header + 4, 0, true);
    view.setBigUint64(this.header + 8, BigInt.asUintN(64, BigInt(sector)), true);
    view.setUint8(this.status, UNTOUCHED);
  }

  putData(bytes: Uint8Array): void {
    this.frontend.ram.bytes.set(bytes, this.data);
  }

  get statusByte(): number {
    return this.frontend.ram.view.getUint8(this.status);
  }

  headerDescriptor(length = 16): RawDescriptor {
    return { address: this.frontend.ram.guest(this.header), length };
  }

  dataDescriptor(length: number, flags = 0, offset = 0): RawDescriptor {
    return { address: this.frontend.ram.guest(this.data + offset), length, flags };
  }

  statusDescriptor(length = 1): RawDescriptor {
    return { address: this.frontend.ram.guest(this.status), length, flags: WRITE };
  }

  /** Writes the chain into the indirect table of this area and returns the descriptor that refers to it. */
  indirect(chain: readonly RawDescriptor[]): RawDescriptor {
    this.frontend.queue(0).setChain(0, chain, this.table);
    return { address: this.frontend.ram.guest(this.table), length: 16 * chain.length, flags: INDIRECT };
  }
}

/** Writes a well-formed request and its chain starting at descriptor `first`; does not make it available. */
export const prepareRequest = (frontend: RequestMemory, request: BlkRequest, first = 0, slot = 0): RequestArea => {
  const { out, inBytes } = request;
  const area = new RequestArea(frontend, slot);
  area.putHeader(request.type, request.sector);
  const chain = [area.headerDescriptor()];
  if (out !== undefined) {
    area.putData(out);
    chain.push(area.dataDescriptor(out.length));
  }
  if (inBytes !== undefined) chain.push(area.dataDescriptor(inBytes, WRITE));
  chain.push(area.statusDescriptor());
  const ring = frontend.queue(request.queue ?? 0);
  ring.setChain(first, request.indirect === true ? [area.indirect(chain)] : chain);
  return area;
};

/** Does one well-formed request from descriptor 0 on and waits for its end. @throws Error - deadline, wrong used id */
export const doRequest = async (frontend: RequestMemory, request: BlkRequest): Promise<Answer> => {
  const area = prepareRequest(frontend, request);
  const [used] = await frontend.queue(request.queue ?? 0).run(0);
  if (used?.id !== 0) throw new Error(`used entry names head ${used?.id}, 0 was submitted`);
  const data = frontend.ram.bytes.slice(area.data, area.data + (request.inBytes ?? 0));
  return { status: area.statusByte, usedLength: used.length, data };
};
