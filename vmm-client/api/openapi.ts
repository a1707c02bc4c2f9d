/**
 * The OpenAPI document: every route, with the schemas that requests are validated against. Served as it is; the server
 * registers the same routes from ROUTES, so that nothing is in one and not in the other.
 */

import { type Schema, VM_CONFIG_SCHEMAS } from './vm-config-schema.ts';
import type { VmmControl } from './vmm-control.ts';

export const API_ROOT = '/api/v1';

/** One route: its name in the path, what it calls. Those with GET answer with a body, those with PUT without. */
export interface Route {
  readonly name: string;
  readonly method: 'GET' | 'PUT';
  readonly operation: keyof VmmControl;
  readonly summary: string;
  /** Component schemas. */
  readonly body?: string;
  readonly answer?: string;
  /** What states other than the one that is needed answer: 404 nothing is created, 405 another state. */
  readonly refusals: readonly (404 | 405)[];
}

export const ROUTES: readonly Route[] = [
  { name: 'vmm.ping', method: 'GET', operation: 'ping', summary: 'Says who answers', answer: 'VmmPing', refusals: [] },
  { name: 'vmm.shutdown', method: 'PUT', operation: 'shutdownVmm', summary: 'Ends the VMM', refusals: [] },
  {
    name: 'vm.create',
    method: 'PUT',
    operation: 'create',
    summary: 'Takes a configuration; nothing runs yet',
    body: 'VmConfig',
    refusals: [405],
  },
  { name: 'vm.boot', method: 'PUT', operation: 'boot', summary: 'Starts what was created', refusals: [404, 405] },
  {
    name: 'vm.info',
    method: 'GET',
    operation: 'info',
    summary: 'Returns configuration and state',
    answer: 'VmInfo',
    refusals: [404],
  },
  {
    name: 'vm.counters',
    method: 'GET',
    operation: 'counters',
    summary: 'Returns counters, by device',
    answer: 'VmCounters',
    refusals: [404, 405],
  },
  { name: 'vm.pause', method: 'PUT', operation: 'pause', summary: 'Stops the vCPUs', refusals: [404, 405] },
  { name: 'vm.resume', method: 'PUT', operation: 'resume', summary: 'Lets the vCPUs go on', refusals: [404, 405] },
  { name: 'vm.shutdown', method: 'PUT', operation: 'shutdown', summary: 'Stops the machine', refusals: [404, 405] },
  { name: 'vm.reboot', method: 'PUT', operation: 'reboot', summary: 'Starts the machine anew', refusals: [404, 405] },
  { name: 'vm.delete', method: 'PUT', operation: 'delete', summary: 'Forgets the configuration', refusals: [] },
];

const integer: Schema = { type: 'integer' };
const string: Schema = { type: 'string' };

const ANSWER_SCHEMAS: Readonly<Record<string, Schema>> = {
  VmmPing: {
    type: 'object',
    required: ['build_version', 'version', 'pid', 'features'],
    properties: { build_version: string, version: string, pid: integer, features: { type: 'array', items: string } },
  },
  VmInfo: {
    type: 'object',
    required: ['config', 'state', 'memory_actual_size'],
    properties: {
      config: { $ref: '#/components/schemas/VmConfig' },
      state: { type: 'string', enum: ['Created', 'Running', 'Shutdown', 'Paused'] },
      memory_actual_size: { type: 'integer', description: 'Bytes.' },
      device_tree: { type: 'object', additionalProperties: { $ref: '#/components/schemas/DeviceNode' } },
    },
  },
  DeviceNode: {
    type: 'object',
    properties: {
      id: string,
      resources: { type: 'array' },
      parent: { type: ['string', 'null'] },
      children: { type: 'array', items: string },
      pci_bdf: { type: ['string', 'null'] },
    },
  },
  VmCounters: { type: 'object', additionalProperties: { type: 'object', additionalProperties: integer } },
  Refusal: {
    type: 'array',
    items: string,
    description: 'What was wrong: one sentence, then what caused it.',
  },
};

const REFUSALS: Readonly<Record<number, string>> = {
  400: 'The request is not what this route takes.',
  404: 'Nothing is created.',
  405: 'The machine is not in the state that this needs.',
  500: 'It could not be done.',
};

const json = (schema: string) => ({
  content: { 'application/json': { schema: { $ref: `#/components/schemas/${schema}` } } },
});

function describeRoute({ operation, summary, body, answer, refusals }: Route): object {
  const success =
    answer === undefined ? { 204: { description: 'Done.' } } : { 200: { description: 'The answer.', ...json(answer) } };
  const failures = [400, ...refusals, 500].map((status) => [
    status,
    { description: REFUSALS[status], ...json('Refusal') },
  ]);
  return {
    operationId: operation,
    summary,
    ...(body === undefined ? {} : { requestBody: { required: true, ...json(body) } }),
    responses: { ...success, ...Object.fromEntries(failures) },
  };
}

/** The document; `version` is that of the program. */
export function createOpenApi(version: string) {
  return {
    openapi: '3.1.0',
    info: {
      title: 'ringside',
      description: "The part of Cloud Hypervisor's REST API that this VMM has.",
      version,
    },
    servers: [{ url: `http://localhost${API_ROOT}` }],
    paths: Object.fromEntries(
      ROUTES.map((route) => [`/${route.name}`, { [route.method.toLowerCase()]: describeRoute(route) }]),
    ),
    components: { schemas: { ...VM_CONFIG_SCHEMAS, ...ANSWER_SCHEMAS } },
  };
}
