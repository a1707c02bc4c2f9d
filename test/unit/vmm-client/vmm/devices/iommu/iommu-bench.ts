/** An IOMMU with a guest's memory and rings, and its driver's requests in literal bytes of VIRTIO 1.3, 5.13.6. */

import { VirtioIommu } from '../../../../../../vmm-client/vmm/devices/iommu/iommu.ts';
import type { LocalDevice } from '../../../../../../vmm-client/vmm/devices/local/local-device.ts';
import { LocalBench, RING_FEATURES } from '../local/local-bench.ts';

/** INPUT_RANGE, DOMAIN_RANGE, MAP_UNMAP, PROBE, BYPASS_CONFIG. */
export const IOMMU_FEATURES = 0b101_0111n;

export const S = { ok: 0, unsupp: 2, deverr: 3, inval: 4, range: 5, noent: 6, fault: 7, nomem: 8 } as const;
/** What a request is answered with that is not understood. */
export const NO_ANSWER = 'no answer';

export const request = (
  type: number,
  length: number,
  fields: readonly (readonly [at: number, value: number | bigint])[],
) => {
  const view = new DataView(new ArrayBuffer(length));
  view.setUint8(0, type);
  for (const [at, value] of fields) {
    if (typeof value === 'bigint') view.setBigUint64(at, value, true);
    else view.setUint32(at, value, true);
  }
  return new Uint8Array(view.buffer);
};

export class IommuBench extends LocalBench {
  iommu!: VirtioIommu;
  device!: LocalDevice;
  readonly lines: string[] = [];

  constructor() {
    super([64, 16]);
  }

  /** A new IOMMU in slot 18, whose driver is there unless `features` is undefined. */
  async start(features: bigint | undefined = RING_FEATURES | IOMMU_FEATURES): Promise<void> {
    this.create();
    await this.device.activate(this.activation(features));
  }

  create(): void {
    this.lines.length = 0;
    this.iommu = new VirtioIommu({ ram: this.guest.deviceMemory, slot: 18, log: (line) => this.lines.push(line) });
    this.device = this.open(this.iommu);
  }

  /** The status of a request. */
  async ask(bytes: Uint8Array, room = 4): Promise<number | string> {
    const answer = await this.run(bytes, room);
    return answer.length === 0 ? NO_ANSWER : (answer[answer.length - 4] ?? -1);
  }

  attach(domain: number, endpoint: number, flags = 0, reserved = 0): Promise<number | string> {
    return this.ask(
      request(1, 20, [
        [4, domain],
        [8, endpoint],
        [12, flags],
        [16, reserved],
      ]),
    );
  }

  detach(domain: number, endpoint: number): Promise<number | string> {
    return this.ask(
      request(2, 20, [
        [4, domain],
        [8, endpoint],
      ]),
    );
  }

  /** The end is inclusive. */
  map(domain: number, start: number | bigint, end: number | bigint, to: number | bigint, flags = 3) {
    return this.ask(
      request(3, 36, [
        [4, domain],
        [8, BigInt(start)],
        [16, BigInt(end)],
        [24, BigInt(to)],
        [32, flags],
      ]),
    );
  }

  unmap(domain: number, start: number | bigint, end: number | bigint): Promise<number | string> {
    return this.ask(
      request(4, 28, [
        [4, domain],
        [8, BigInt(start)],
        [16, BigInt(end)],
      ]),
    );
  }

  /** Where an endpoint finds an I/O virtual address in guest memory, and what it may do there. */
  reach(endpoint: number, iova: number): { readonly offset: number; readonly permission: number } | undefined {
    const mapping = this.iommu.endpoint(endpoint).find(iova);
    if (mapping === undefined) return undefined;
    const offset = mapping.userAddress + iova - mapping.iova - this.guest.ram.userAddress;
    return { offset, permission: mapping.permission };
  }
}
