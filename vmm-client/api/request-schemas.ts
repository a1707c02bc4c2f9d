/** The JSON schemas of all request bodies: configurations, and what the routes for a machine that is there take. */

import { VIRTIO_BLK_SECTOR_BYTES } from '../../protocol/virtio/blk.ts';
import { ID_PATTERN, LIMITS } from '../vmm/config-limits.ts';
import { absent, flag, list, object, optional, type Schema } from './schema.ts';
import { VM_CONFIG_SCHEMAS } from './vm-config-schema.ts';

const ID: Schema = { type: 'string', pattern: ID_PATTERN };
const bytes = (description: string): Schema => optional('integer', { minimum: 0, description });

const FILE_URL: Schema = { type: 'string', pattern: '^file:///', description: 'file:///DIRECTORY, an absolute path.' };
const PEER_URL: Schema = {
  type: 'string',
  pattern: '^(unix:|tcp:)',
  description: 'unix:PATH or tcp:HOST:PORT.',
};
const RestoredDevice = object(
  {
    id: ID,
    socket: optional('string', { minLength: 1, description: 'Of its vhost-user back end.' }),
    path: optional('string', { minLength: 1, description: 'Of its image or block device.' }),
    tap: optional('string', { minLength: 1 }),
  },
  ['id'],
);
export const REQUEST_SCHEMAS: Readonly<Record<string, Schema>> = {
  ...VM_CONFIG_SCHEMAS,
  VmRemoveDevice: object({ id: ID }, ['id']),
  VmResize: object({
    desired_vcpus: optional('integer', LIMITS.vcpus),
    desired_ram: bytes('Bytes altogether: memory.size and up to memory.hotplug_size more.'),
    desired_balloon: absent('there is no balloon device', 0),
  }),
  VmResizeDisk: object(
    {
      id: ID,
      desired_size: {
        type: 'integer',
        minimum: VIRTIO_BLK_SECTOR_BYTES,
        maximum: Number.MAX_SAFE_INTEGER,
        description: 'Bytes.',
      },
    },
    ['id', 'desired_size'],
  ),
  VmConsoleInput: object(
    { text: { type: 'string', minLength: 1, maxLength: 4096, description: 'Sent in UTF-8; Enter is \\r.' } },
    ['text'],
  ),
  VmSnapshotConfig: object({ destination_url: FILE_URL }, ['destination_url']),
  RestoreConfig: object(
    {
      source_url: FILE_URL,
      resume: flag(false),
      devices: list('RestoredDevice'),
      prefault: absent('memory is not faulted in beforehand'),
      net_fds: absent('descriptors are not taken over'),
    },
    ['source_url'],
  ),
  RestoredDevice,
  SendMigrationData: object(
    {
      destination_url: PEER_URL,
      downtime_ms: optional('integer', {
        ...LIMITS.downtimeMs,
        description: 'For how long the guest may stand still, in milliseconds (default 300).',
      }),
      timeout_s: optional('integer', { ...LIMITS.migrationTimeoutS, description: 'Seconds; without it no limit.' }),
      local: {
        ...flag(false),
        description: 'The destination is on this host and gets the memory itself; destination_url is unix:PATH.',
      },
      auto_converge: { ...flag(true), description: 'Slow a guest down that writes memory faster than it is sent.' },
      connections: absent('memory goes through one connection', 1),
      timeout_strategy: absent('a migration that takes too long is cancelled', 'Cancel'),
    },
    ['destination_url'],
  ),
  ReceiveMigrationData: object({ receiver_url: PEER_URL, devices: list('RestoredDevice') }, ['receiver_url']),
};
