/**
 * Which devices are behind which virtual IOMMU (VIOT). A system binds no driver to a listed device before the IOMMU's own
 * is there. Source: ACPI 6.5, 5.2, Virtual I/O Translation Table (VIOT); Linux, drivers/acpi/viot.c.
 *
 *     header of the table (36 bytes), node count u16, node offset u16, reserved u64
 *     virtio-iommu based on MMIO: type 4 u8, reserved u8, length u16, reserved u32, base address u64
 *     MMIO endpoint: type 2 u8, reserved u8, length u16, endpoint u32, base address u64, output node u16, 6 reserved bytes
 */

import { concat } from './aml.ts';

export interface ViotOptions {
  /** Guest physical address of the IOMMU's registers. */
  readonly iommu: number;
  /** Devices behind it: number of the endpoint, guest physical address of the registers. */
  readonly endpoints: readonly { readonly id: number; readonly address: number }[];
}

const NODE_MMIO_ENDPOINT = 2;
const NODE_VIRTIO_IOMMU_MMIO = 4;
const ENDPOINT_BYTES = 24;
const IOMMU_BYTES = 16;
/** Where the first node is, from the start of the table. It is the IOMMU. */
const FIRST_NODE = 48;
const TABLE_HEADER_BYTES = 36;

function node(type: number, length: number, address: number): DataView {
  const view = new DataView(new ArrayBuffer(length));
  view.setUint8(0, type);
  view.setUint16(2, length, true);
  view.setBigUint64(8, BigInt(address), true);
  return view;
}

/** The table without its header. */
export function encodeViotBody({ iommu, endpoints }: ViotOptions): Uint8Array {
  const head = new DataView(new ArrayBuffer(FIRST_NODE - TABLE_HEADER_BYTES));
  head.setUint16(0, 1 + endpoints.length, true);
  head.setUint16(2, FIRST_NODE, true);
  const nodes = endpoints.map(({ id, address }) => {
    const view = node(NODE_MMIO_ENDPOINT, ENDPOINT_BYTES, address);
    view.setUint32(4, id, true);
    view.setUint16(16, FIRST_NODE, true);
    return view;
  });
  const views = [head, node(NODE_VIRTIO_IOMMU_MMIO, IOMMU_BYTES, iommu), ...nodes];
  return concat(...views.map(({ buffer }) => new Uint8Array(buffer as ArrayBuffer)));
}
