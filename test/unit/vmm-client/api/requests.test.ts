/** What the routes for a machine that is there take, refuse, and hand over. */

import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createApp } from '../../../../vmm-client/api/app.ts';
import { FakeControl } from '../../../support/vm/fake-control.ts';

const log = { info: () => undefined, error: () => undefined };

/** Route, operation, body, what the operation is given. */
const accepted: readonly (readonly [route: string, operation: string, body: object, given?: object])[] = [
  ['vm.add-disk', 'addDisk', { path: '/d', id: 'd', iommu: true }],
  ['vm.add-disk', 'addDisk', { path: '/d', serial: null, pci_segment: 0, sparse: true }, { path: '/d' }],
  ['vm.add-net', 'addNet', { tap: 't', mtu: 1500 }],
  ['vm.add-fs', 'addFs', { tag: 't', socket: '/f' }],
  ['vm.add-vsock', 'addVsock', { cid: 3, socket: '/v' }],
  ['vm.remove-device', 'removeDevice', { id: '_disk0' }],
  ['vm.resize', 'resize', { desired_ram: 2 ** 31 }],
  ['vm.resize', 'resize', { desired_vcpus: 2, desired_ram: null, desired_balloon: null }, { desired_vcpus: 2 }],
  ['vm.resize-disk', 'resizeDisk', { id: 'd', desired_size: 2 ** 40 }],
  ['vm.snapshot', 'snapshot', { destination_url: 'file:///s' }],
  ['vm.restore', 'restore', { source_url: 'file:///s' }],
  [
    'vm.restore',
    'restore',
    { source_url: 'file:///s', resume: true, devices: [{ id: 'd', path: '/p', socket: null }], prefault: false },
    { source_url: 'file:///s', resume: true, devices: [{ id: 'd', path: '/p' }] },
  ],
  ['vm.send-migration', 'sendMigration', { destination_url: 'tcp:h:1', downtime_ms: 60_000, timeout_s: 604_800 }],
  [
    'vm.send-migration',
    'sendMigration',
    { destination_url: 'unix:/m', local: false, auto_converge: true, connections: 1 },
    { destination_url: 'unix:/m', local: false, auto_converge: true },
  ],
  ['vm.receive-migration', 'receiveMigration', { receiver_url: 'unix:/m', devices: [{ id: 'n', tap: 't' }] }],
];

const refused: readonly (readonly [sentence: string, body: unknown])[] = [
  ['vm.add-disk: the body: null is not an object', null],
  ['vm.add-disk: queue_size: 1 is below the minimum of 4', { path: '/d', queue_size: 1 }],
  ['vm.add-disk: colour: there is no such field', { path: '/d', colour: 'red' }],
  ['vm.add-disk: iommu: "on" is not true or false', { path: '/d', iommu: 'on' }],
  ['vm.add-disk: id: "a b" does not match ^[A-Za-z0-9_.:-]{1,64}$', { path: '/d', id: 'a b' }],
  ['vm.add-net: mac: 7 is not a string or null', { tap: 't', mac: 7 }],
  ['vm.add-net: fds: descriptors are not taken over', { tap: 't', fds: [3] }],
  ['vm.add-fs: socket is missing', { tag: 't' }],
  ['vm.add-vsock: the body: null is not an object', null],
  ['vm.add-vsock: cid: 2 is below the minimum of 3', { cid: 2, socket: '/v' }],
  ['vm.remove-device: id is missing', {}],
  ['vm.remove-device: the body: a list is not an object', ['_disk0']],
  ['vm.resize: desired_ram: "2G" is not a whole number or null', { desired_ram: '2G' }],
  ['vm.resize: desired_ram: -1 is below the minimum of 0', { desired_ram: -1 }],
  ['vm.resize: desired_vcpus: 255 is above the maximum of 254', { desired_vcpus: 255 }],
  ['vm.resize: desired_balloon: there is no balloon device', { desired_balloon: 1 }],
  ['vm.resize-disk: desired_size is missing', { id: 'd' }],
  ['vm.resize-disk: desired_size: 511 is below the minimum of 512', { id: 'd', desired_size: 511 }],
  ['vm.resize-disk: desired_size: 1e+30 is above the maximum of 9007199254740991', { id: 'd', desired_size: 1e30 }],
  ['vm.snapshot: destination_url: "/dir" does not match ^file:///', { destination_url: '/dir' }],
  ['vm.restore: source_url is missing', { resume: true }],
  ['vm.restore: resume: 1 is not true or false', { source_url: 'file:///s', resume: 1 }],
  ['vm.restore: devices[0].id is missing', { source_url: 'file:///s', devices: [{ path: '/d' }] }],
  ['vm.restore: devices[0].mac: there is no such field', { source_url: 'file:///s', devices: [{ id: 'd', mac: 'x' }] }],
  ['vm.send-migration: destination_url: "http://h" does not match ^(unix:|tcp:)', { destination_url: 'http://h' }],
  ['vm.send-migration: downtime_ms: 0 is below the minimum of 1', { destination_url: 'unix:/m', downtime_ms: 0 }],
  [
    'vm.send-migration: downtime_ms: 60001 is above the maximum of 60000',
    { destination_url: 'unix:/m', downtime_ms: 60_001 },
  ],
  ['vm.send-migration: timeout_s: 0 is below the minimum of 1', { destination_url: 'unix:/m', timeout_s: 0 }],
  ['vm.send-migration: local: 1 is not true or false', { destination_url: 'unix:/m', local: 1 }],
  [
    'vm.send-migration: connections: memory goes through one connection',
    { destination_url: 'unix:/m', connections: 2 },
  ],
  ['vm.receive-migration: receiver_url is missing', {}],
];

describe.each([true, false])('requests, schemas compiled beforehand: %s', (compileSchemas) => {
  let app: FastifyInstance;
  let control: FakeControl;
  const forwarding = new Proxy({} as FakeControl, {
    get:
      (_, name) =>
      (...args: unknown[]) =>
        Reflect.apply(Reflect.get(control, name), control, args),
  });
  const put = (route: string, body: unknown) =>
    app.inject({ method: 'PUT', url: `/api/v1/${route}`, payload: JSON.stringify(body) });

  beforeAll(async () => {
    app = createApp({ control: forwarding, log, version: '1.2.3', compileSchemas }, () => false);
    await app.ready();
  });
  afterAll(() => app.close());
  beforeEach(() => {
    control = new FakeControl();
  });

  it.each(accepted.map(([route, operation, body, given]) => ({ route, operation, body, given })))(
    '$route gives $operation $body',
    async ({ route, operation, body, given = body }) => {
      const response = await put(route, body);

      expect(control.requests).toEqual([[operation, given]]);
      expect([response.statusCode, response.body]).toEqual(
        route.startsWith('vm.add-') ? [200, '{"id":"_disk0","slot":3}'] : [204, ''],
      );
    },
  );

  it.each(refused)('400: %s', async (sentence, body) => {
    const response = await put(sentence.slice(0, sentence.indexOf(':')), body);

    expect(response.json()).toEqual([sentence]);
    expect(response.statusCode).toBe(400);
    expect(control.calls).toEqual([]);
  });

  it('answers 204 to an addition where the machine does not run', async () => {
    control.added = undefined;
    const response = await put('vm.add-net', { tap: 't' });
    expect([response.statusCode, response.body]).toEqual([204, '']);
  });
});
