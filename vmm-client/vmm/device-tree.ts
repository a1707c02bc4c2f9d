/** The devices of a machine as vm.info shows them. */

import type { DeviceNode } from '../api/vmm-control.ts';
import { VIRTIO_MMIO_BYTES } from './layout.ts';
import type { MachineDevice } from './virtio-slots.ts';

export function describeDeviceTree(devices: readonly MachineDevice[]): Record<string, DeviceNode> {
  const nodes = devices.map(({ id, kind, slot, address, interrupt, state }): [string, DeviceNode] => {
    const resources = [{ MmioAddressRange: { base: address, size: VIRTIO_MMIO_BYTES } }, { LegacyIrq: interrupt }];
    return [id, { id, resources, parent: null, children: [], pci_bdf: null, kind, slot, address, interrupt, state }];
  });
  return Object.fromEntries(nodes);
}
