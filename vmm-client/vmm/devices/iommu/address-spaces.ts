/**
 * What the IOMMU's driver has set up: domains, their mappings, and which endpoint is attached to which. Every change
 * answers with a status of the standard, and only when all devices are where it says. One change at a time.
 * Source: VIRTIO 1.3, 5.13.6 Device operations.
 */

import {
  VIRTIO_IOMMU_ATTACH_F_BYPASS,
  VIRTIO_IOMMU_FAULT_R_DOMAIN,
  VIRTIO_IOMMU_FAULT_R_MAPPING,
  VIRTIO_IOMMU_MAP_F_READ,
  VIRTIO_IOMMU_MAP_F_WRITE,
  VIRTIO_IOMMU_S_DEVERR,
  VIRTIO_IOMMU_S_FAULT,
  VIRTIO_IOMMU_S_INVAL,
  VIRTIO_IOMMU_S_NOENT,
  VIRTIO_IOMMU_S_NOMEM,
  VIRTIO_IOMMU_S_OK,
  VIRTIO_IOMMU_S_RANGE,
} from '../../../../protocol/virtio/iommu.ts';
import type { SharedRegion } from '../../../frontend/hand-over.ts';
import { type IoMapping, IoMappings } from '../../../frontend/io-mappings.ts';
import { RangeTable } from '../../../frontend/range-table.ts';
import { MAX_VIRTIO_DEVICES, PAGE_BYTES } from '../../layout.ts';
import { Domain, type MappableRam, type MappedPiece, piecesOf } from './domain.ts';

/** Last I/O virtual address and last number of a domain that there are. */
export const INPUT_END = 2 ** 48 - 1;
export const DOMAIN_END = 0xffff;

/** Mappings of all domains together, which take 28 MiB then: a driver cannot make the VMM larger than that. */
export const MAX_MAPPINGS = 131_072;

const PAGE_MASK = BigInt(PAGE_BYTES - 1);
const ACCESS = VIRTIO_IOMMU_MAP_F_READ | VIRTIO_IOMMU_MAP_F_WRITE;

/** A device behind the IOMMU, there or not. Its front end listens to `mappings`. */
export interface Endpoint {
  readonly id: number;
  readonly mappings: IoMappings;
  /** What it is attached to. */
  domain: Domain | undefined;
}

export interface SpacesOptions {
  readonly ram: MappableRam & { readonly regions: readonly SharedRegion[] };
  /** Slots that have no endpoint. */
  readonly without: readonly number[];
  /** A device wanted to go where it may not: reason of the standard, endpoint, address, what it wanted. */
  onFault(reason: number, endpoint: number, iova: bigint, permission: number): void;
  /** A back end does not take a mapping, or does not let go of one. */
  onRefusal(endpoint: number, error: Error): void;
}

export class AddressSpaces {
  readonly endpoints: ReadonlyMap<number, Endpoint>;
  readonly #ram: MappableRam;
  readonly #onRefusal: (endpoint: number, error: Error) => void;
  /** All of RAM, by guest addresses: what endpoints in bypass mode see. */
  readonly #identity = new RangeTable<IoMapping>();
  /** What the others without a domain see. */
  readonly #nothing = new RangeTable<IoMapping>();
  readonly #domains = new Map<number, Domain>();
  #bypass = false;
  #mappings = 0;

  constructor({ ram, without, onFault, onRefusal }: SpacesOptions) {
    this.#ram = ram;
    this.#onRefusal = onRefusal;
    for (const region of ram.regions) this.#identity.add(identityOf(region));
    const endpoints = new Map<number, Endpoint>();
    for (let id = 0; id < MAX_VIRTIO_DEVICES; id++) {
      if (without.includes(id)) continue;
      const mappings = new IoMappings((iova, permission) => {
        const isAttached = endpoints.get(id)?.domain !== undefined;
        onFault(isAttached ? VIRTIO_IOMMU_FAULT_R_MAPPING : VIRTIO_IOMMU_FAULT_R_DOMAIN, id, iova, permission);
      });
      endpoints.set(id, { id, mappings, domain: undefined });
    }
    this.endpoints = endpoints;
  }

  get domains(): Iterable<Domain> {
    return this.#domains.values();
  }

  get domainCount(): number {
    return this.#domains.size;
  }

  /** Mappings of all domains together. */
  get mappingCount(): number {
    return this.#mappings;
  }

  get attachedCount(): number {
    return [...this.endpoints.values()].filter(({ domain }) => domain !== undefined).length;
  }

  /** Whether endpoints that are attached to nothing reach all of RAM. */
  get bypass(): boolean {
    return this.#bypass;
  }

  async setBypass(bypass: boolean): Promise<void> {
    this.#bypass = bypass;
    await Promise.all([...this.endpoints.values()].map((endpoint) => this.#show(endpoint)));
  }

  #tableOf({ domain }: Endpoint): RangeTable<IoMapping> {
    if (domain === undefined) return this.#bypass ? this.#identity : this.#nothing;
    // An endpoint only reads it.
    return domain.bypass ? this.#identity : domain.table;
  }

  /** Resolves when the device reaches what it is to and nothing else, with false when it may not have let go of the rest. */
  #show(endpoint: Endpoint): Promise<boolean> {
    return this.#tell(endpoint, ({ mappings }) => mappings.use(this.#tableOf(endpoint), INPUT_END + 1));
  }

  async #tell(endpoint: Endpoint, tell: (endpoint: Endpoint) => Promise<void>): Promise<boolean> {
    try {
      await tell(endpoint);
      return true;
    } catch (error) {
      this.#onRefusal(endpoint.id, error as Error);
      return false;
    }
  }

  async attach(id: number, endpointId: number, flags: number): Promise<number> {
    if ((flags & ~VIRTIO_IOMMU_ATTACH_F_BYPASS) !== 0) return VIRTIO_IOMMU_S_INVAL;
    const endpoint = this.endpoints.get(endpointId);
    if (endpoint === undefined) return VIRTIO_IOMMU_S_NOENT;
    if (id > DOMAIN_END) return VIRTIO_IOMMU_S_RANGE;
    const bypass = flags !== 0;
    const domain = this.#domains.get(id) ?? new Domain(id, bypass);
    if (domain.bypass !== bypass) return VIRTIO_IOMMU_S_INVAL;
    return this.#move(endpoint, domain);
  }

  async detach(id: number, endpointId: number): Promise<number> {
    const endpoint = this.endpoints.get(endpointId);
    if (endpoint === undefined) return VIRTIO_IOMMU_S_NOENT;
    if (endpoint.domain === undefined || endpoint.domain.id !== id) return VIRTIO_IOMMU_S_INVAL;
    return this.#move(endpoint, undefined);
  }

  async #move(endpoint: Endpoint, to: Domain | undefined): Promise<number> {
    const from = endpoint.domain;
    if (from === to) return VIRTIO_IOMMU_S_OK;
    if (to !== undefined) this.#domains.set(to.id, to);
    endpoint.domain = to;
    if (from !== undefined && this.#endpointsOf(from).length === 0) this.#drop(from);
    return statusOf(await this.#show(endpoint));
  }

  /** A domain that nothing is attached to ceases to exist. */
  #drop(domain: Domain): void {
    this.#domains.delete(domain.id);
    this.#mappings -= domain.count;
  }

  #endpointsOf(domain: Domain): Endpoint[] {
    return [...this.endpoints.values()].filter((endpoint) => endpoint.domain === domain);
  }

  /** The end is inclusive. */
  async map(id: number, start: bigint, end: bigint, physical: bigint, flags: number): Promise<number> {
    if ((flags & ~ACCESS) !== 0 || flags === 0 || end < start) return VIRTIO_IOMMU_S_INVAL;
    if (((start | physical | (end + 1n)) & PAGE_MASK) !== 0n) return VIRTIO_IOMMU_S_RANGE;
    if (id > DOMAIN_END || end > BigInt(INPUT_END)) return VIRTIO_IOMMU_S_RANGE;
    const domain = this.#domains.get(id);
    if (domain === undefined) return VIRTIO_IOMMU_S_NOENT;
    if (domain.bypass) return VIRTIO_IOMMU_S_INVAL;
    // As large as RAM can be at most, these are exact; what is not RAM need not be.
    const size = Number(end - start) + 1;
    const wanted = { iova: Number(start), size, guestAddress: Number(physical), permission: flags };
    const pieces = piecesOf(this.#ram, wanted);
    if (pieces === undefined) return VIRTIO_IOMMU_S_FAULT;
    if (this.#mappings >= MAX_MAPPINGS) return VIRTIO_IOMMU_S_NOMEM;
    if (domain.overlaps(wanted.iova, wanted.iova + size)) return VIRTIO_IOMMU_S_INVAL;
    domain.add(pieces);
    this.#mappings += 1;
    // Who does not take it now asks for it when it is needed.
    await Promise.all(
      this.#endpointsOf(domain).map((endpoint) => this.#tell(endpoint, (each) => tellAll(each, pieces))),
    );
    return VIRTIO_IOMMU_S_OK;
  }

  /** The end is inclusive. What lies above all mappings that there can be is unmapped already. */
  async unmap(id: number, start: bigint, end: bigint): Promise<number> {
    if (end < start) return VIRTIO_IOMMU_S_INVAL;
    if (id > DOMAIN_END) return VIRTIO_IOMMU_S_RANGE;
    const domain = this.#domains.get(id);
    if (domain === undefined) return VIRTIO_IOMMU_S_NOENT;
    if (domain.bypass) return VIRTIO_IOMMU_S_INVAL;
    if (start > BigInt(INPUT_END)) return VIRTIO_IOMMU_S_OK;
    const from = Number(start);
    const to = Number(end > BigInt(INPUT_END) ? BigInt(INPUT_END) : end) + 1;
    const removed = domain.remove(from, to);
    if (removed === undefined) return VIRTIO_IOMMU_S_RANGE;
    this.#mappings -= removed;
    if (removed === 0) return VIRTIO_IOMMU_S_OK;
    const unmap = ({ mappings }: Endpoint): Promise<void> => mappings.tellUnmapped(from, to - from);
    const gone = await Promise.all(this.#endpointsOf(domain).map((endpoint) => this.#tell(endpoint, unmap)));
    return statusOf(gone.every(Boolean));
  }

  /** Detaches all endpoints. */
  async clear(): Promise<void> {
    this.#domains.clear();
    this.#mappings = 0;
    for (const endpoint of this.endpoints.values()) endpoint.domain = undefined;
    await this.setBypass(this.#bypass);
  }

  async memoryAdded(region: SharedRegion): Promise<void> {
    const mapping = identityOf(region);
    if (this.#identity.add(mapping) !== undefined) return;
    await this.#tellBypassing(({ mappings }) => mappings.tellMapped(mapping));
  }

  async memoryRemoved({ region: { guestAddress, size } }: SharedRegion): Promise<void> {
    this.#identity.remove(guestAddress, guestAddress + size);
    await this.#tellBypassing(({ mappings }) => mappings.tellUnmapped(guestAddress, size));
  }

  async #tellBypassing(tell: (endpoint: Endpoint) => Promise<void>): Promise<void> {
    const bypassing = [...this.endpoints.values()].filter((endpoint) => this.#tableOf(endpoint) === this.#identity);
    await Promise.all(bypassing.map((endpoint) => this.#tell(endpoint, tell)));
  }
}

function identityOf({ region }: SharedRegion): IoMapping {
  const { guestAddress: iova, size, userAddress } = region;
  return { iova, size, userAddress, permission: ACCESS };
}

async function tellAll({ mappings }: Endpoint, pieces: readonly MappedPiece[]): Promise<void> {
  for (const piece of pieces) await mappings.tellMapped(piece);
}

/** A back end that does not let go of what is unmapped has gone wrong, and the driver nothing. */
function statusOf(isGone: boolean): number {
  return isGone ? VIRTIO_IOMMU_S_OK : VIRTIO_IOMMU_S_DEVERR;
}
