/** The JSON schemas of what vm.queues answers. */

import type { Schema } from './schema.ts';

const integer: Schema = { type: 'integer' };
const number: Schema = { type: 'number' };
const string: Schema = { type: 'string' };
const refer = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` });

/** An object that has all of `properties`, and perhaps those of `optional`. */
const whole = (
  properties: Readonly<Record<string, Schema>>,
  optional: Readonly<Record<string, Schema>> = {},
): Schema => ({
  type: 'object',
  required: Object.keys(properties),
  properties: { ...properties, ...optional },
});

export const QUEUE_SCHEMAS: Readonly<Record<string, Schema>> = {
  VmQueues: whole({
    at_ms: { type: 'number', description: 'On a clock of the VMM that only goes forward.' },
    window_ms: { type: 'number', description: 'What rates and means are over.' },
    devices: { type: 'array', items: refer('DeviceQueues') },
    vcpus: { type: 'array', items: refer('VcpuTime') },
    watch: refer('QueueWatch'),
  }),
  DeviceQueues: whole({
    id: string,
    slot: integer,
    kind: string,
    status: { type: 'string', enum: ['down', 'driver', 'running', 'needs reset', 'failed'] },
    backend: { enum: ['connected', 'away', null], description: 'Null for a device that the VMM serves itself.' },
    queues: { type: 'array', items: refer('Queue') },
  }),
  Queue: whole(
    {
      index: integer,
      name: string,
      role: {
        type: 'string',
        enum: ['requests', 'buffers'],
        description: 'What is in flight: requests that are to be answered, or buffers for what may come.',
      },
      state: { type: 'string', enum: ['off', 'idle', 'busy', 'waiting', 'stuck', 'empty', 'unknown'] },
      size: { type: 'integer', description: 'Entries.' },
      in_flight: { type: 'integer', description: 'Chains that are available and not used.' },
      mean_in_flight: number,
      rate: { type: 'number', description: 'Chains used a second.' },
      latency_us: {
        type: ['number', 'null'],
        description: 'From available to used, in the mean; null for buffers and where none was used.',
      },
      waiting_ms: { type: 'number', description: 'For how long something was in flight and nothing was used.' },
      used: { type: 'integer', description: 'Chains used since the watch began or the queue was started.' },
      exact: { type: 'boolean', description: 'False where the figures cannot be relied on.' },
    },
    { reason: { type: 'string', description: 'Why the state is unknown.' } },
  ),
  VcpuTime: whole({ index: integer, cpu_ms: { type: 'number', description: 'CPU time of its thread so far.' } }),
  QueueWatch: whole({
    period_ms: { type: 'number', description: 'Between two looks at the rings.' },
    looks: integer,
    look_us: { type: 'number', description: 'What one look takes, in the mean.' },
  }),
};
