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
      '/vm.power-button': ['put'],
      '/vm.reboot': ['put'],
      '/vm.delete': ['put'],
      '/vm.add-disk': ['put'],
      '/vm.add-net': ['put'],
      '/vm.add-fs': ['put'],
      '/vm.add-vsock': ['put'],
      '/vm.remove-device': ['put'],
      '/vm.resize': ['put'],
      '/vm.resize-disk': ['put'],
      '/vm.snapshot': ['put'],
      '/vm.restore': ['put'],
      '/vm.send-migration': ['put'],
      '/vm.receive-migration': ['put'],
      '/vm.cancel-migration': ['put'],
      '/vm.progress': ['get'],
      '/vm.queues': ['get'],
      '/vm.console': ['get'],
      '/vm.console-input': ['put'],
    });
  });

  it('refers only to schemas that it has', () => {
    const names = collect(document, '$ref').map((ref) => String(ref).replace('#/components/schemas/', ''));
    expect(names.length).toBeGreaterThan(20);
    for (const name of names) expect(Object.keys(document.components.schemas)).toContain(name);
  });

  it('names each operation once', () => {
    const ids = collect(document.paths, 'operationId');
    expect(new Set(ids).size).toBe(Object.keys(document.paths).length);
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

  it.each(['disk', 'net', 'fs', 'vsock'])('says that vm.add-%s answers with a place, or with nothing', (kind) => {
    const responses = Object.entries(document.paths).find(([path]) => path === `/vm.add-${kind}`)?.[1];
    expect(collect(responses, '$ref')).toContain('#/components/schemas/AddedDevice');
    expect(Object.keys(Object(collect(responses, 'responses')[0]))).toEqual([
      '200',
      '204',
      '400',
      '404',
      '405',
      '409',
      '500',
    ]);
  });

  it('says that it is OpenAPI 3.1, of this version', () => {
    expect(document).toMatchObject({ openapi: '3.1.0', info: { title: 'ringside', version: '1.2.3' } });
    expect(JSON.parse(JSON.stringify(document))).toEqual(document);
  });
});
