/**
 * What the IOMMU takes along to another host, as plain data: `bypass`, and each domain with its mappings, four numbers
 * each, and the endpoints that are attached to it. What comes back is anything, and is set up as its driver would.
 *
 *     {bypass, domains: [{id, bypass, endpoints: [id, ...], mappings: [iova, size, guest address, permission, ...]}]}
 */

import {
  VIRTIO_IOMMU_ATTACH_F_BYPASS,
  VIRTIO_IOMMU_S_FAULT,
  VIRTIO_IOMMU_S_OK,
} from '../../../../protocol/virtio/iommu.ts';
import { VmError } from '../../errors.ts';
import { fieldsOf, flagOf, integerOf, listOf } from '../../state/codec.ts';
import { type AddressSpaces, DOMAIN_END, MAX_MAPPINGS } from './address-spaces.ts';

const NUMBERS = 4;
/** Mappings that are made before the event loop has its turn. */
const MAPPINGS_A_TURN = 1024;

export function saveSpaces(spaces: AddressSpaces): unknown {
  const domains = [...spaces.domains].map((domain) => {
    const attached = [...spaces.endpoints.values()].filter((endpoint) => endpoint.domain === domain);
    return {
      id: domain.id,
      bypass: domain.bypass,
      endpoints: attached.map(({ id }) => id),
      mappings: [...domain.mappings()].flatMap(({ iova, size, guestAddress, permission }) => [
        iova,
        size,
        guestAddress,
        permission,
      ]),
    };
  });
  return { bypass: spaces.bypass, domains };
}

/** Sets up what `saveSpaces` returned, where nothing is set up. @throws VmError - it is something else */
export async function restoreSpaces(spaces: AddressSpaces, state: unknown, what: string): Promise<void> {
  const { bypass, domains } = fieldsOf(state, what);
  await spaces.setBypass(flagOf(bypass, `${what}: bypass`));
  for (const each of listOf(domains, `${what}: domains`, spaces.endpoints.size))
    await restoreDomain(spaces, each, what);
}

async function restoreDomain(spaces: AddressSpaces, state: unknown, what: string): Promise<void> {
  const { id, bypass, endpoints, mappings } = fieldsOf(state, `${what}: domain`);
  const domain = integerOf(id, `${what}: id of a domain`, { maximum: DOMAIN_END });
  const where = `${what}: domain ${domain}`;
  const flags = flagOf(bypass, `${where}: bypass`) ? VIRTIO_IOMMU_ATTACH_F_BYPASS : 0;
  for (const each of listOf(endpoints, `${where}: endpoints`, spaces.endpoints.size)) {
    const endpoint = integerOf(each, `${where}: endpoint`);
    const status = await spaces.attach(domain, endpoint, flags);
    if (status !== VIRTIO_IOMMU_S_OK) throw new VmError(`${where}: endpoint ${endpoint} cannot be attached to it`);
  }
  const numbers = listOf(mappings, `${where}: mappings`, NUMBERS * MAX_MAPPINGS);
  if (numbers.length % NUMBERS !== 0) throw new VmError(`${where}: ${numbers.length} numbers are no mappings`);
  for (let at = 0; at < numbers.length; at += NUMBERS) {
    await restoreMapping(spaces, domain, numbers.slice(at, at + NUMBERS), where);
    if (at % (NUMBERS * MAPPINGS_A_TURN) === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

async function restoreMapping(
  spaces: AddressSpaces,
  domain: number,
  numbers: readonly unknown[],
  where: string,
): Promise<void> {
  const [iova, size, guestAddress, permission] = numbers.map((each) => integerOf(each, `${where}: mapping`)) as [
    number,
    number,
    number,
    number,
  ];
  const start = BigInt(iova);
  const status = await spaces.map(domain, start, start + BigInt(size) - 1n, BigInt(guestAddress), permission);
  if (status === VIRTIO_IOMMU_S_OK) return;
  const why = status === VIRTIO_IOMMU_S_FAULT ? 'is not RAM' : 'cannot be mapped';
  throw new VmError(
    `${where}: ${size} bytes at guest address 0x${guestAddress.toString(16)} for I/O address 0x${iova.toString(16)}: that ${why}`,
  );
}
