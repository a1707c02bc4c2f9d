import { describe, expect, it } from 'vitest';
import { createOpenApi } from '../../../../vmm-client/api/openapi.ts';

const document = createOpenApi('1.2.3');

/** Every value of a key, wherever it is. */
function collect(value: unknown, key: string): unknown[] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([name, each]) => [...(name === key ? [each] : []), ...collect(each, key)]);
}

describe('the OpenAPI document', () => {
  it('has the routes of Cloud Hypervisor that there are, with its methods', () => {
    const methods = Object.entries(document.paths).map(([path, item]) => [path, Object.keys(item)]);
    expect(Object.fromEntries(methods)).toEqual({
      '/vmm.ping': ['get'],
      '/vmm.shutdown': ['put'],
      '/vm.create': ['put'],
      '/vm.boot': ['put'],
      '/vm.info': ['get'],
      '/vm.counters': ['get'],
      '/vm.pause': ['put'],
      '/vm.resume': ['put'],
      '/vm.shutdown': ['put'],
      '/vm.reboot': ['put'],
      '/vm.delete': ['put'],
    });
  });

  it('refers only to schemas that it has', () => {
    const names = collect(document, '$ref').map((ref) => String(ref).replace('#/components/schemas/', ''));
    expect(names.length).toBeGreaterThan(20);
    for (const name of names) expect(Object.keys(document.components.schemas)).toContain(name);
  });

  it('names each operation once', () => {
    const ids = collect(document.paths, 'operationId');
    expect(new Set(ids).size).toBe(11);
  });

  it('knows every field of VmConfig in the document of Cloud Hypervisor', () => {
    const theirs = [
      ...['cpus', 'memory', 'payload', 'rate_limit_groups', 'disks', 'net', 'rng', 'balloon', 'fs', 'pmem', 'serial'],
      ...[
        'generic_vhost_user',
        'console',
        'debug_console',
        'devices',
        'user_devices',
        'vdpa',
        'vsock',
        'numa',
        'iommu',
      ],
      ...['watchdog', 'rtc', 'pvpanic', 'pci_segments', 'platform', 'tpm', 'landlock_enable', 'landlock_rules'],
    ];
    const ours = Object.keys(document.components.schemas.VmConfig?.properties ?? {});
    expect(ours).toEqual(expect.arrayContaining(theirs));
  });

  it('says that it is OpenAPI 3.1, of this version', () => {
    expect(document).toMatchObject({ openapi: '3.1.0', info: { title: 'ringside', version: '1.2.3' } });
    expect(JSON.parse(JSON.stringify(document))).toEqual(document);
  });
});
