/** The IOMMU of a machine as a device for its slot. */

import { IOMMU_SLOT } from '../../layout.ts';
import type { Log } from '../../log.ts';
import type { PlannedLocal } from '../../slots/plan.ts';
import { LocalDevice } from '../local/local-device.ts';
import { type IommuOptions, VirtioIommu } from './iommu.ts';

/** The device and what is planned for its slot. Devices that it is to be before are opened with its `endpoint`s. */
export function planIommu(ram: IommuOptions['ram'], log: Log): { iommu: VirtioIommu; planned: PlannedLocal } {
  const iommu = new VirtioIommu({ ram, slot: IOMMU_SLOT, log: (line) => log.warn(line) });
  const open = (): LocalDevice => new LocalDevice(iommu, { ram });
  return { iommu, planned: { kind: 'iommu', id: '__iommu', slot: IOMMU_SLOT, open } };
}
