/** The JSON schemas of what routes answer. */

import { QUEUE_SCHEMAS } from './queue-schemas.ts';
import type { Schema } from './schema.ts';

const integer: Schema = { type: 'integer' };
const string: Schema = { type: 'string' };

export const ANSWER_SCHEMAS: Readonly<Record<string, Schema>> = {
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
    required: ['id', 'resources', 'parent', 'children', 'pci_bdf', 'kind', 'slot', 'address', 'interrupt', 'state'],
    properties: {
      id: string,
      resources: { type: 'array', items: { type: 'object' } },
      parent: { type: ['string', 'null'] },
      children: { type: 'array', items: string },
      pci_bdf: { type: ['string', 'null'] },
      kind: { type: 'string', enum: ['disk', 'net', 'fs', 'vsock', 'iommu', 'mem'] },
      slot: { type: 'integer', description: 'Of the virtio-mmio transports.' },
      address: { type: 'integer', description: 'Guest physical, of the registers.' },
      interrupt: { type: 'integer', description: 'Global system interrupt.' },
      state: { type: 'string', enum: ['present', 'added', 'removal requested'] },
    },
  },
  AddedDevice: { type: 'object', required: ['id', 'slot'], properties: { id: string, slot: integer } },
  VmProgress: {
    type: 'object',
    required: [
      ...['operation', 'phase', 'round', 'bytes_done', 'bytes_total', 'dirty_bytes', 'bytes_per_second'],
      'elapsed_ms',
    ],
    properties: {
      operation: { type: 'string', enum: ['snapshot', 'restore', 'send-migration', 'receive-migration'] },
      phase: { type: 'string', description: 'At the end completed, cancelled or failed.' },
      round: { type: 'integer', description: 'Of memory: the first sends all of it.' },
      bytes_done: integer,
      bytes_total: integer,
      dirty_bytes: { type: 'integer', description: 'Written since it was sent.' },
      bytes_per_second: integer,
      elapsed_ms: integer,
      converges: { type: 'boolean', description: 'False while the guest writes faster than is sent.' },
      throttle_percent: {
        type: 'integer',
        description: 'For how much of the time the vCPUs are held, so that the guest writes less.',
      },
      downtime_ms: { type: 'integer', description: 'For how long the guest stood still.' },
      error: { type: 'string', description: 'Why nothing came of it.' },
    },
  },
  ...QUEUE_SCHEMAS,
  VmCounters: { type: 'object', additionalProperties: { type: 'object', additionalProperties: integer } },
  Refusal: {
    type: 'array',
    items: string,
    description: 'What was wrong: one sentence, then what caused it.',
  },
};
